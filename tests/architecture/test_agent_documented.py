"""Every command and option of `edgepress-agent` stands in its how-to."""

from pathlib import Path

import click
from edgepress_agent.cli import cli

HOW_TO = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "run-an-agent.md").read_text(encoding="utf-8")


def test_every_command_and_option_is_documented() -> None:
    assert isinstance(cli, click.Group)
    missing = []
    for name, command in cli.commands.items():
        if f"edgepress-agent {name}" not in HOW_TO:
            missing.append(name)
        for option in command.params:
            shown = isinstance(option, click.Option) and not option.hidden
            if shown and not any(f"{one}" in HOW_TO for one in option.opts):
                missing.append(f"{name} {option.opts[0]}")
    assert not missing
