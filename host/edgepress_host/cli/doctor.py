"""`edgepress doctor`."""

from __future__ import annotations

import click

from edgepress_host.cli._shared import Settings, console, json_option, pass_settings, print_json, safe

MARKS = {"ok": "[green]ok[/]", "optional": "[yellow]absent[/]", "missing": "[red]missing[/]"}


@click.command()
@json_option
@pass_settings
def command(settings: Settings, as_json: bool) -> None:
    """Say what is installed, what is missing, and what to do."""
    from edgepress_host import doctor

    checks = doctor.examine(settings.data_dir)
    if as_json:
        print_json({"checks": checks})
    else:
        width = max(len(check.name) for check in checks)
        out = console()
        for check in checks:
            pad = " " * (len("missing") - len(MARKS[check.state].split("]")[1].split("[")[0]))
            out.print(f"{MARKS[check.state]}{pad}  {safe(check.name):<{width}}  {safe(check.found)}")
            if check.remedy:
                out.print(f"{'':<9}{'':<{width}}  → {safe(check.remedy)}")
    if any(check.state == "missing" for check in checks):
        raise click.exceptions.Exit(1)
