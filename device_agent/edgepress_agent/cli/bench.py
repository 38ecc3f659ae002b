"""`edgepress-agent bench`: measure a model file on this board, without a host, by the same path as a trial."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
from edgepress_protocol.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepress_protocol.measurement import Measurement
    from edgepress_protocol.messages import ProfileOptions

    from edgepress_agent.measure.noise import Floor

_SECONDS = click.FloatRange(min=0, max=86_400, min_open=True)
_SPARE_S = 600.0
_LEAST_SOAK_S = 120.0


def _threads(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(each) for each in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or not all(1 <= number <= 256 for number in numbers):
        raise click.BadParameter(
            f"expected numbers from 1 to 256 with commas between them, such as 1,2,4; got {text!r}"
        )
    return numbers


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--threads", default="1", show_default=True, callback=_threads, metavar="N,…", help="The first is the headline's."
)
@click.option("--batch", default=1, type=click.IntRange(1, 4096), show_default=True, metavar="N", help="Samples a run.")
@click.option("--windows", default=5, type=click.IntRange(1, 100), show_default=True, metavar="N")
@click.option("--window-s", default=10.0, type=_SECONDS, show_default=True, metavar="S", help="Length of a window.")
@click.option(
    "--paced",
    "paced_hz",
    default=20.0,
    type=click.FloatRange(0, 1000),
    show_default=True,
    metavar="HZ",
    help="Also time runs that begin so often a second; 0 for none.",
)
@click.option("--layers", is_flag=True, help="Also time each layer, in a run of its own.")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="Run on this, such as cuda; given again: where the first cannot.",
)
@click.option(
    "--soak",
    "soak_s",
    default=0.0,
    type=click.FloatRange(0, 86_400),
    metavar="S",
    help="Also load the board for so long: its first minute and its last.",
)
@click.option("--runtime", metavar="NAME", help="Of two runtimes for the format this one, by its package's name.")
@click.option("--aa", is_flag=True, help="Also time the model against itself: this board's noise floor.")
@click.option(
    "--root", default=Path("/"), type=click.Path(path_type=Path, file_okay=False, exists=True), show_default=True
)
@click.option(
    "--measure-lock",
    type=click.Path(path_type=Path, dir_okay=False),
    help="That of an agent on this board, so that the two measure in turn.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    model: Path,
    threads: tuple[int, ...],
    root: Path,
    measure_lock: Path | None,
    runtime: str | None,
    *,
    aa: bool,
    as_json: bool,
    **options: float | bool | tuple[str, ...],
) -> None:
    """Measure an ONNX or TFLite file here, as a trial measures it; accuracy needs a host.

    Inputs are seeded and random.
    """
    import msgspec
    from edgepress_protocol import in_words
    from edgepress_protocol.messages import ProfileOptions
    from edgepress_protocol.printing import indented

    from edgepress_agent import runtimes

    runtimes.offer_only([runtime] if runtime else [])
    soak_s: float = options["soak_s"]  # type: ignore[assignment] # click made it one
    if 0 < soak_s < _LEAST_SOAK_S:
        raise UsageError(f"--soak {soak_s:g}: at least {_LEAST_SOAK_S:g} s, so that its first minute is not its last")
    try:
        asked = msgspec.convert({**options, "threads": threads[0], "sweep_threads": threads[1:]}, ProfileOptions)
    except msgspec.ValidationError as error:
        raise UsageError(f"{error}; a provider is a word such as cuda") from error
    asked = msgspec.structs.replace(asked, timeout_s=_longest_s(asked))
    measured, found = asyncio.run(_run(model, asked, root, measure_lock, aa=aa))
    if as_json:
        click.echo(indented({"model": str(model), "measurement": measured, "noise_floor": found}))
    else:
        click.echo(in_words.table([("model", model.name), *in_words.rows(measured), *_noise(found)]))


def _noise(floor: Floor | None) -> Iterator[tuple[str, str]]:
    if floor is not None:
        middle = f"median {floor.median:.3f} ({floor.median_low:.3f} to {floor.median_high:.3f})"
        single = f"single ratios {floor.low:.3f} to {floor.high:.3f}"
        yield (
            "A/A",
            f"p50 of two processes with this model, {floor.pairs} pairs of {floor.window_s:g} s: {single}, {middle}",
        )
        yield (
            "",
            "two variants whose p50 differ by no more than single ratios do cannot be told apart by a trial of each",
        )


def _longest_s(asked: ProfileOptions) -> float:
    """Bound a run that hangs: every window three times over, and time to load."""
    windows = asked.windows * (3 + len(asked.sweep_threads)) + 20
    return min(86_400.0, 3 * windows * asked.window_s + _SPARE_S)


async def _run(
    model: Path, options: ProfileOptions, root: Path, lock: Path | None, *, aa: bool
) -> tuple[Measurement, Floor | None]:
    from edgepress_protocol.messages import Failed

    from edgepress_agent.measure import local, noise
    from edgepress_agent.measure.profile import profile
    from edgepress_agent.measure.turns import turn
    from edgepress_agent.measure.worker import Ended

    def say(detail: str) -> None:
        click.echo(f"{model.name}: {detail}", err=True)

    with tempfile.TemporaryDirectory(prefix="edgepress-bench-") as folder:
        work_dir = Path(folder)
        lock = lock or work_dir / "measure.lock"
        job = await local.job_of(model, options, work_dir)
        outcome = await profile(job, root=root, lock=lock, on_phase=lambda _, detail: say(detail))
        if isinstance(outcome, Failed):
            raise Unavailable(f"{model}: {outcome.kind}: {outcome.detail}")
        found = None
        if aa:
            try:
                async with turn(lock, lambda: say("another agent on this machine measures")):
                    found = await noise.floor(work_dir, job.open(), options, say)
            except Ended as end:
                raise Unavailable(f"{model}: against itself: {end}") from end
    return outcome.measurement, found
