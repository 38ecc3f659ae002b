"""The tables of docs/benchmarks.md: each between two marks, each replaced by the command that is named above it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(name: str, text: str, page: Path = PAGE) -> None:
    """Put text between the marks `<!-- NAME -->` and `<!-- /NAME -->` of the page."""
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    before = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(marks[0]) + r".*?" + re.escape(marks[1]), re.DOTALL)
    if not pattern.search(before):
        raise SystemExit(f"{page} has no marks {marks[0]} … {marks[1]}")
    page.write_text(pattern.sub(lambda _: f"{marks[0]}\n{text}\n{marks[1]}", before), encoding="utf-8")


def machine() -> str:
    """Say what the figures were measured on."""
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, shared with others"
