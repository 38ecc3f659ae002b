"""What a Python does when it starts, and all that it starts: the agent becomes a second interpreter."""

from __future__ import annotations

import os
from pathlib import Path


def at_start(folder: Path, code: str) -> dict[str, str]:
    """Environment in which every Python runs this code first, as its sitecustomize."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def speaking(folder: Path, versions: tuple[int, int]) -> dict[str, str]:
    """Environment of an edition that speaks these protocol versions."""
    return at_start(folder, f"import edgepress_protocol.version as v; v.SPOKEN = {versions}")
