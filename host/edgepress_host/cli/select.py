"""`edgepress select`: the best variant per kind of board within a budget, and why each other one lost."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgepress_host import units
from edgepress_host.choice import figures
from edgepress_host.choice.budget import GOALS, Budget
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
    variants_option,
)

if TYPE_CHECKING:
    from edgepress_host.choice.choices import SavedChoice
    from edgepress_host.choice.select import Choice, Per, Standing
    from edgepress_host.client.artifacts import Artifact
    from edgepress_host.client.client import Client

OUTCOMES = {"chosen": "[bold green]chosen[/]", "front": "[cyan]front[/]", "lost": "[dim]lost[/]"}


NO_LIMIT = "none"


def _limit(name: str, number: type[float] | type[int], unit: str, words: str) -> Callable[[Any], Any]:
    def read(text: str) -> float | str:
        try:
            return text if text == NO_LIMIT else number(text)
        except ValueError:
            kind = "a whole number" if number is int else "a number"
            raise click.BadParameter(f"expected {kind} or {NO_LIMIT}, got {text!r}") from None

    return click.option(name, type=read, metavar=f"{unit}|{NO_LIMIT}", help=words)


def budget_options(function: Callable[..., None]) -> Callable[..., None]:
    """Limits, collected into `limits`: those that were given, by their names in a recipe; None for `none`."""
    decorators = (
        _limit("--max-accuracy-drop", float, "X", "Against the original; 0.01 is one point."),
        _limit("--p95-latency-ms", float, "MS", "Limit of the 95th percentile."),
        _limit("--peak-memory-bytes", int, "BYTES", "Limit over the empty runtime's memory."),
        _limit("--max-file-bytes", int, "BYTES", "Limit of the file."),
        _limit("--energy-mj", float, "MJ", "Limit of one inference, net of idle."),
        click.option("--minimise", type=click.Choice(GOALS), help="What decides within the budget."),
    )

    @functools.wraps(function)
    def collected(*args: Any, **given: Any) -> None:
        limits = {name: given.pop(name) for name in list(given) if name in Budget.__struct_fields__}
        asked = {name: value for name, value in limits.items() if value is not None}
        function(*args, limits={name: None if value == NO_LIMIT else value for name, value in asked.items()}, **given)

    made = collected
    for decorator in reversed(decorators):
        made = decorator(made)
    return made


@click.command()
@variants_option
@budget_options
@click.option(
    "--per",
    type=click.Choice(["kind", "device"]),
    default="kind",
    show_default=True,
    help="One choice for each of these.",
)
@json_option
@pass_settings
def command(settings: Settings, folder: Path | None, limits: dict[str, Any], per: Per, as_json: bool) -> None:
    """Choose per kind of board: budget first, then the Pareto front, then what is to be minimised.

    The budget is that of the recipe behind --variants; options here go before it, and `none` lifts a limit of it. The
    choice is kept for `edgepress deploy --selected`.
    """
    from edgepress_host.choice import choices

    scope = scope_of(folder, limits)
    if folder is None and not scope.budget.limits:
        say("no --variants: no recipe's budget; limits are only those given here")
    with controller(settings) as client:
        made = choose(client, scope, per)
    choices.write(settings.choice_file, made)
    if as_json:
        print_json(made)
        return
    if not made.choices:
        say("nothing is measured yet: edgepress profile DIR")
    for choice in made.choices:
        _print(choice)


class Scope(msgspec.Struct, frozen=True):
    """What is chosen from (None: all that the controller knows), and within which budget."""

    artifacts: Sequence[Artifact] | None
    budget: Budget
    folder: str | None = None


def scope_of(folder: Path | None, limits: dict[str, Any]) -> Scope:
    """Read the folder and its recipe's budget; `limits` go before that. Raises UsageError."""
    from edgepress_host import variants
    from edgepress_host.client import artifacts

    budget = Budget() if folder is None else variants.read(folder).budget
    budget = msgspec.structs.replace(budget, **limits)
    budget.check()
    if folder is None:
        return Scope(None, budget)
    return Scope(artifacts.of_folder(folder), budget, str(folder.resolve()))


def choose(client: Client, scope: Scope, per: Per) -> SavedChoice:
    """Ask the controller what was measured, and choose."""
    from edgepress_host.choice import facts, naming
    from edgepress_host.choice.choices import SavedChoice
    from edgepress_host.choice.select import pick

    known = client.manifests()
    wanted = naming.latest(known) if scope.artifacts is None else facts.manifests_of(scope.artifacts, known)
    entries = facts.entries(wanted, known, client.measurements(), client.trials(), client.devices())
    return SavedChoice(
        choices=pick(entries, scope.budget, per=per),
        manifests={naming.name_of(one): one.manifest for one in wanted},
        made_unix_s=time.time(),
        folder=scope.folder,
    )


def _print(choice: Choice) -> None:
    screen = console()
    several = len(choice.devices) > 1
    of = f": {', '.join(choice.devices)} (median latency, largest memory, lowest accuracy)" if several else ""
    screen.print(f"\n[bold]{safe(choice.group)}[/]{safe(of)}")
    screen.print(f"budget: {budget_line(choice.budget)}; compared in {_compared(choice)}")
    numbers = ("accuracy", "p95", "memory", "file", "energy")
    shown = table(("", "variant", *numbers, "why"), right=numbers)
    untried = [one for one in choice.standings if one.reason.startswith(figures.NEVER_TRIED)]
    for standing in choice.standings:
        if standing in untried:
            continue
        shown.add_row(OUTCOMES[standing.outcome], safe(standing.name), *_figures(standing), _why(standing))
    screen.print(shown)
    for (format_, reason), count in Counter((one.format, one.reason) for one in untried).items():
        screen.print(f"[dim]{count} in {safe(format_)}: {safe(reason)}[/]")
    if any(standing.figures.unstable for standing in choice.standings):
        screen.print("[dim]unstable: the windows differ by more than 5 %, so the worst window's p95 counts[/]")
    if any(one.figures.accuracy_from == "host" for one in choice.standings if one not in untried):
        screen.print("[dim]*: accuracy measured by the host on validate, not on the device[/]")
    if choice.chosen is None:
        screen.print(f"[red]no choice[/]: {safe(choice.why)}")


def _compared(choice: Choice) -> str:
    return ", ".join(figures.WORDS[key] for key in choice.compared) or "nothing"


def _figures(standing: Standing) -> tuple[str, ...]:
    found = standing.figures
    mark = "*" if found.accuracy_from == "host" else ""
    return (
        units.score(found.accuracy) + mark,
        units.ms(found.p95_latency_ms),
        units.size(found.peak_memory_bytes),
        units.size(found.file_bytes),
        units.mj(found.energy_mj),
    )


def _why(standing: Standing) -> str:
    marks = f" [{', '.join(note.partition(':')[0] for note in standing.notes)}]" if standing.notes else ""
    return safe(standing.reason + marks)


def budget_line(budget: Budget) -> str:
    """Write a budget on one line."""
    limits = [
        f"{word} at most {figures.shown(key, value)}"
        for word, key, value in (
            ("accuracy drop", "accuracy_drop", budget.max_accuracy_drop),
            ("p95 latency", "p95_latency_ms", budget.p95_latency_ms),
            ("peak memory", "peak_memory_bytes", budget.peak_memory_bytes),
            ("energy", "energy_mj", budget.energy_mj),
            ("file", "file_bytes", budget.max_file_bytes),
        )
        if value is not None
    ]
    return f"{', '.join(limits) or 'no limits'}; lowest {figures.WORDS[budget.minimise]}"
