"""The guides to boards: every command of ours in them is one that exists, and what they quote was printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from edgepress_agent.cli import cli as agent
from edgepress_host.cli import edgepress as host

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {"edgepress": host, "edgepress-agent": agent}
GUIDES = ("raspberry-pi.md", "jetson.md")


def blocks(guide: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "how-to" / guide).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(guide: str) -> list[list[str]]:
    lines = "".join(blocks(guide, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    found = [[Path(each[0]).name, *each[1:]] for each in (w[1:] if w[:1] == ["sudo"] else w for w in words) if each]
    return [each for each in found if each[0] in PROGRAMS]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_of_ours_can_be_given(guide: str) -> None:
    given = commands(guide)
    assert {words[1] for words in given} >= {"probe", "run", "install", "serve", "profile"}
    for program, name, *words in given:
        group = PROGRAMS[program]
        command = group.get_command(click.Context(group), name)
        assert command is not None, f"{program} {name}"
        if isinstance(command, click.Group) and not words[0].startswith("-"):
            assert command.get_command(click.Context(command), words[0]) is not None, f"{program} {name} {words[0]}"
            continue
        command.make_parser(click.Context(command)).parse_args(words)


@pytest.mark.parametrize("guide", GUIDES)
def test_what_is_quoted_was_printed(guide: str) -> None:
    printed = [path.read_text() for path in (ROOT / "tests" / "fixtures" / "boards" / "probe").glob("*.txt")]
    quoted = [block for block in blocks(guide, "text") if block.startswith("sensor")]
    assert quoted
    for block in quoted:
        assert any(block in text for text in printed), block
