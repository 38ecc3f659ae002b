"""`edgepress trials`: what is queued, measuring, done, and all that one measured."""

from __future__ import annotations

import click
from edgepress_protocol.errors import UsageError

from edgepress_host.cli._shared import (
    Settings,
    console,
    controller,
    json_option,
    pass_settings,
    print_json,
    safe,
    say,
    table,
)

ENDED = ("done", "failed", "cancelled")


@click.group(invoke_without_command=True)
@json_option
@pass_settings
@click.pass_context
def command(context: click.Context, settings: Settings, as_json: bool) -> None:
    """List trials that have not ended; `list --all` shows every one, `show` what one measured."""
    if context.invoked_subcommand is None:
        _list(settings, everything=False, as_json=as_json)


@command.command(name="list")
@click.option("--all", "everything", is_flag=True, help="Also those that ended.")
@json_option
@pass_settings
def list_trials(settings: Settings, everything: bool, as_json: bool) -> None:
    """List trials."""
    _list(settings, everything=everything, as_json=as_json)


@command.command()
@click.argument("trial", metavar="ID")
@json_option
@pass_settings
def show(settings: Settings, trial: str, as_json: bool) -> None:
    """Show all that a trial measured, and under which conditions; ID may be its first characters."""
    from edgepress_protocol import in_words

    with controller(settings) as client:
        every = {one.id: one for one in client.trials()}
        one = every[_expand(trial, list(every), "trial")]
        found = next((view for view in client.measurements() if view.trial == one.id), None)
    if as_json:
        print_json({"trial": one, "measurement": found})
        return
    head = [("trial", one.id), ("device", one.device), ("model", f"{one.variant}:{one.format}"), ("state", one.state)]
    if found is not None:
        head += [("kind", found.board.kind), *in_words.rows(found.measurement)]
    elif one.detail:
        head.append(("", one.detail))
    click.echo(in_words.table(head))


@command.command()
@click.argument("trials", nargs=-1, metavar="[ID]…")
@click.option("--all", "everything", is_flag=True, help="Every trial that has not ended.")
@json_option
@pass_settings
def cancel(settings: Settings, trials: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Cancel trials by id, or by the first characters of it."""
    if not trials and not everything:
        raise click.UsageError("expected the ids of trials, or --all")
    with controller(settings) as client:
        open_ids = [trial.id for trial in client.trials() if trial.state not in ENDED]
        chosen = open_ids if everything else [_expand(prefix, open_ids, "open trial") for prefix in trials]
        for trial in chosen:
            client.cancel_trial(trial)
    if as_json:
        print_json({"cancelled": chosen})
    else:
        click.echo(f"cancelled {len(chosen)} trials")


def _expand(prefix: str, ids: list[str], kind: str) -> str:
    matching = [trial for trial in ids if trial.startswith(prefix)]
    if len(matching) == 1:
        return matching[0]
    said = f"no {kind}" if not matching else f"{len(matching)} {kind}s"
    raise UsageError(f"{said} with an id that starts with {prefix!r}; see `edgepress trials list --all`")


def _list(settings: Settings, *, everything: bool, as_json: bool) -> None:
    with controller(settings) as client:
        trials = [trial for trial in client.trials() if everything or trial.state not in ENDED]
    if as_json:
        print_json({"trials": trials})
        return
    if not trials:
        say("no trials" if everything else "no open trials; `edgepress trials list --all` shows those that ended")
        return
    shown = table(("trial", "device", "variant", "format", "state", ""))
    for trial in trials:
        shown.add_row(
            trial.id[:8], safe(trial.device), safe(trial.variant), trial.format, trial.state, safe(trial.detail)
        )
    console().print(shown)
    say(f"{len(trials)} trials; `edgepress trials cancel ID` stops one")
