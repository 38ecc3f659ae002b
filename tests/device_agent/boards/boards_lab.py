"""Helpers: the recorded trees of nine boards, small trees made by hand, and what `probe` printed of each board.

`python tests/device_agent/boards/boards_lab.py` writes the golden output anew: look at what changed.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from click.testing import CliRunner
from edgepress_agent.cli import cli

FIXTURES = Path(__file__).parents[2] / "fixtures" / "boards"
GOLDEN = FIXTURES / "probe"
BOARDS = ("agx-orin", "battery", "nano", "orin-nano", "pi3bplus", "pi4", "pi4_ina226", "pi5", "x86-rapl")

OF_THIS_MACHINE = "of the machine that runs the test"
WITHOUT_PROC = ("battery", "x86-rapl")
"""Trees that leave to this machine what it is, beside the rest that all of them do."""


def unpack(folder: Path) -> Path:
    """Write the plain files of the trees, which are all that they have; what is no such file is left out."""
    with tarfile.open(FIXTURES / "trees.tar.gz") as trees:
        for member in trees:
            path = (folder / member.name).resolve()
            if member.isfile() and path.is_relative_to(folder.resolve()) and (content := trees.extractfile(member)):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    return folder


def tree(folder: Path, files: Mapping[str, object]) -> Path:
    """Write a root with these files, each ended by a line feed as the kernel does."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


def probed(root: Path, *more: str) -> str:
    done = CliRunner().invoke(cli, ["probe", "--root", str(root), *more])
    assert done.exit_code == 0, done.output
    return done.stdout


def text_of(root: Path, name: str) -> str:
    """What `probe` prints, without what the machine that runs the test adds of its own."""
    masked = {"free disk", "system", "agent", "runtime"}
    if name in WITHOUT_PROC:
        masked |= {"model", "processor", "memory"}
    label, lines = "", []
    for line in probed(root).splitlines():
        label, continued = (line[:11].strip(), False) if line[:11].strip() else (label, True)
        if label not in masked:
            lines.append(_without_kind(line, name, label))
        elif not continued:
            lines.append(f"{label:<10} {OF_THIS_MACHINE}")
    return "\n".join(lines) + "\n"


def json_of(root: Path, name: str) -> str:
    """What `probe --json` prints, without what the machine that runs the test adds of its own."""
    told = json.loads(probed(root, "--json"))
    for field in ("agent_version", "speaks", "runtimes", "free_disk_bytes"):
        told[field] = OF_THIS_MACHINE
    of_machine = ("kind", "model", "arch", "cpu", "cores", "memory_bytes") if name in WITHOUT_PROC else ()
    for field in ("os", "python", *of_machine):
        told["board"][field] = OF_THIS_MACHINE
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def _without_kind(line: str, name: str, label: str) -> str:
    if label != "board" or name not in WITHOUT_PROC:
        return line
    return f"{label:<10} {OF_THIS_MACHINE} ({line.partition(' (')[2]}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trees = unpack(Path(folder))
        GOLDEN.mkdir(exist_ok=True)
        for each in BOARDS:
            (GOLDEN / f"{each}.txt").write_text(text_of(trees / each, each))
            (GOLDEN / f"{each}.json").write_text(json_of(trees / each, each))
