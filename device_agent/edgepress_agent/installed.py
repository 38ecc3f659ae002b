"""What is installed beside the agent, by the names of the folders that installers leave (PEP 376).

importlib.metadata says the same; it carries a mail parser, a megabyte that an idle board would hold for ever.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path


def version(package: str) -> str | None:
    """Return the version of an installed distribution; None where there is none of that name."""
    wanted = _normal(package)
    return next((found for name, found, _ in _distributions() if name == wanted), None)


def entry_points(group: str) -> dict[str, str]:
    """Return the entry points of a group: names, and what they point to as `module:attribute` or `module`."""
    points: dict[str, str] = {}
    seen = set()
    for name, _, folder in _distributions():
        if name not in seen:
            seen.add(name)
            for point, target in _read(folder / "entry_points.txt", group):
                points.setdefault(point, target)
    return points


def _distributions() -> Iterator[tuple[str, str, Path]]:
    for place in sys.path:
        with contextlib.suppress(OSError):
            for folder in sorted(Path(place or ".").iterdir()):
                if folder.suffix in {".dist-info", ".egg-info"}:
                    name, _, rest = folder.stem.partition("-")
                    yield _normal(name), re.sub(r"-py\d.*$", "", rest), folder


def _read(path: Path, group: str) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return
    section = ""
    for line in map(str.strip, lines):
        if line.startswith("["):
            section = line.strip("[]").strip()
        elif section == group and "=" in line and not line.startswith(("#", ";")):
            name, _, target = line.partition("=")
            yield name.strip(), target.partition("[")[0].strip()


def _normal(name: str) -> str:
    """Names differ in case and in their dashes only (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
