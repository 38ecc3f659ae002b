"""`edgepress profile`: measure variants, or any model file, on the boards themselves."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from edgepress_protocol.errors import Unavailable, UsageError
from edgepress_protocol.messages import ProfileOptions

from edgepress_host.cli._shared import (
    Settings,
    console,
    controller,
    devices_option,
    json_option,
    no_wait_option,
    pass_settings,
    print_json,
    say,
    variants_option,
)

if TYPE_CHECKING:
    from edgepress_host.client.artifacts import Artifact, EvaluationFile
    from edgepress_host.client.client import Client
    from edgepress_host.server.views import MeasurementView, TrialsOut, TrialView


class Batch(msgspec.Struct, frozen=True):
    """Artifacts that share an evaluation set; `known` are manifests that the controller has already."""

    artifacts: tuple[Any, ...] = ()
    known: tuple[str, ...] = ()
    evaluation: Any = None


_SECONDS = click.FloatRange(0, 86_400, min_open=True)


def _number(
    flag: str,
    kind: click.IntRange | click.FloatRange,
    default: float,
    metavar: str,
    words: str,
    name: str | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    names = (flag, name) if name else (flag,)
    return click.option(*names, type=kind, default=default, show_default=True, metavar=metavar, help=words)


def _providers(_context: click.Context, _parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return msgspec.convert({"providers": names}, ProfileOptions).providers
    except msgspec.ValidationError as error:
        raise click.BadParameter(f"expected up to 8 words such as tensorrt or cuda, got {' '.join(names)!r}") from error


def profile_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of the measurement, as one `ProfileOptions`."""
    default = ProfileOptions()

    @_number("--windows", click.IntRange(1, 100), default.windows, "N", "Measuring windows.")
    @_number("--window-s", _SECONDS, default.window_s, "S", "Length of a window.")
    @_number("--threads", click.IntRange(1, 256), default.threads, "N", "Threads of the runtime.")
    @_number("--batch", click.IntRange(1, 4096), default.batch, "N", "Samples at a time; a choice rests on 1.")
    @_number("--timeout", _SECONDS, default.timeout_s, "S", "A trial is given up after this.", "timeout_s")
    @click.option(
        "--memory-limit",
        "memory_limit_bytes",
        type=click.IntRange(min=1),
        metavar="BYTES",
        help="Address space that the model may take over the empty runtime's.",
    )
    @_number(
        "--paced", click.FloatRange(0, 1000), default.paced_hz, "HZ", "Also time at this rate; 0: not.", "paced_hz"
    )
    @_number("--soak", click.FloatRange(0, 86_400), default.soak_s, "S", "Also load the board so long.", "soak_s")
    @click.option(
        "--sweep-threads", multiple=True, type=click.IntRange(1, 256), metavar="N", help="Also time with N threads."
    )
    @click.option("--layers", is_flag=True, help="Also time each layer, in a run of its own.")
    @click.option(
        "--provider",
        "providers",
        multiple=True,
        callback=_providers,
        metavar="NAME",
        help="Run on this, such as tensorrt or cuda; given again: where the first cannot. The CPU takes the rest.",
    )
    @click.option("--when-busy", is_flag=True, help="Measure even while the board's serving model has requests.")
    @functools.wraps(function)
    def collected(**given: Any) -> None:
        fields = {name: given.pop(name) for name in list(given) if name in ProfileOptions.__struct_fields__}
        function(options=ProfileOptions(**fields), **given)

    return collected


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="VARIANT|DIR|FILE…")
@variants_option
@devices_option
@profile_options
@click.option(
    "--eval",
    "evaluation",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Labelled samples (safetensors: x, y), instead of those of the folder.",
)
@no_wait_option
@json_option
@pass_settings
def command(
    settings: Settings,
    what: tuple[str, ...],
    folder: Path | None,
    devices: str,
    options: ProfileOptions,
    evaluation: Path | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Measure on the boards: variants by name, a folder of variants, or .onnx and .tflite files as they are.

    Trials of boards that are offline stay queued until they come.
    """
    from edgepress_host.cli._watch import trial_table, wait_for_devices, watch

    own = None if evaluation is None else _evaluation(evaluation)
    batches, names = _local(what, folder, own, settings.data_dir / "golden")
    with controller(settings) as client:
        if names:
            if own is None:
                say("no evaluation set (--variants DIR or --eval FILE): accuracy is not measured on the devices")
            batches.append(Batch(known=_known(client, names), evaluation=own))
        answers = [_queue(client, batch, devices, options) for batch in batches]
        skipped = [one for answer in answers for one in answer.skipped]
        trials = [trial for answer in answers for trial in answer.trials]
        for (device, reason), count in Counter((one.device, one.reason) for one in skipped).items():
            say(f"skipped on {device}: {count} {'variant' if count == 1 else 'variants'}: {reason}")
        measured: dict[str, MeasurementView] = {}
        if wait and trials:
            wait_for_devices(client, {trial.device for trial in trials})
            try:
                trials, measured = watch(client, trials, keep=as_json)
            except KeyboardInterrupt:
                say("the trials stay queued: `edgepress trials` shows them, `edgepress trials cancel --all` ends them")
                raise
            _say_what_is_left(client, trials)
    if as_json:
        views = [view for trial in trials if (view := measured.get(trial.id))]
        print_json({"trials": trials, "skipped": skipped, "measurements": views})
    elif not wait:
        say(f"{len(trials)} trials queued; `edgepress trials` shows where they stand")
    elif trials:
        console().print(trial_table(trials, measured))
    if not trials or (wait and all(trial.state in {"failed", "cancelled"} for trial in trials)):
        raise Unavailable(
            "nothing was measured: every trial failed" if trials else "nothing was measured: every pair was skipped"
        )


def _evaluation(path: Path) -> EvaluationFile:
    from edgepress_host.client.artifacts import evaluation_file

    return evaluation_file(path, "top1")


def _local(
    what: tuple[str, ...], folder: Path | None, own: EvaluationFile | None, work_dir: Path
) -> tuple[list[Batch], list[str]]:
    """Sort what the user named into files of this machine, and names for the controller to resolve."""
    from edgepress_host.choice import naming
    from edgepress_host.client import artifacts

    names = [one for one in what if not _is_path(one)]
    batches: list[Batch] = []
    for path in (Path(one) for one in what if _is_path(one)):
        if path.is_dir():
            batches.append(_of_folder(path, artifacts.of_folder(path), own))
        else:
            from edgepress_host.client import ready

            batches.append(Batch((ready.read(path, work_dir, own),), evaluation=own))
    if folder is None or not names:
        return batches, names
    return [*batches, _of_folder(folder, naming.matching(names, artifacts.of_folder(folder)), own)], []


def _of_folder(folder: Path, chosen: list[Artifact], own: EvaluationFile | None) -> Batch:
    from edgepress_host.client.artifacts import evaluation_of

    evaluation = own or evaluation_of(folder)
    if evaluation is None:
        say("the recipe's metric is the user's own, which no device can compute: accuracy stays the host's")
    return Batch(tuple(chosen), evaluation=evaluation)


def _is_path(text: str) -> bool:
    if Path(text).suffix in {".onnx", ".tflite"} or "/" in text or text in {".", ".."}:
        return True
    return Path(text).is_dir()


def _known(client: Client, names: list[str]) -> tuple[str, ...]:
    from edgepress_host.choice import naming

    known = naming.latest(client.manifests())
    if not known:
        raise UsageError(f"no variant {names[0]!r}; say where it is with --variants DIR")
    return tuple(one.manifest for one in naming.matching(names, known))


def _queue(client: Client, batch: Batch, devices: str, options: ProfileOptions) -> TrialsOut:
    from edgepress_host.client import artifacts
    from edgepress_host.server.views import TrialsIn

    manifests = (*batch.known, *artifacts.push(client, batch.artifacts).values())
    evaluation = artifacts.push_evaluation(client, batch.evaluation)
    return client.queue_trials(TrialsIn(manifests, devices=devices, evaluation=evaluation, options=options))


def _say_what_is_left(client: Client, trials: list[TrialView]) -> None:
    from edgepress_host.cli._watch import ENDED, absence

    for trial in trials:
        if trial.state == "failed":
            say(f"{trial.device}  {trial.variant}:{trial.format}  failed: {trial.detail}")
    left = {trial.device for trial in trials if trial.state not in ENDED}
    if left:
        say(f"trials stay queued: {absence(client, left)}")
