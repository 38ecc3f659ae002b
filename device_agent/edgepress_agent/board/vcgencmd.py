"""Raspberry Pi's `vcgencmd`; below a recorded tree, its recorded answers in fake/vcgencmd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from edgepress_protocol.errors import Unavailable

from edgepress_agent.board.sysfs import is_simulated, read_text

_TIMEOUT_S = 2.0


def ask(root: Path, command: str) -> str | None:
    """Return what the firmware answers; None where this is no Pi, or it does not know the command.

    Raises:
        Unavailable: the tool is there and fails, as it does for a user outside the group `video`.
    """
    answer = read_text(root / "fake/vcgencmd" / command) if is_simulated(root) else _run(command)
    return None if answer is None or "error=1" in answer else answer


def _run(command: str) -> str | None:
    tool = shutil.which("vcgencmd")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, command], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"vcgencmd {command}: {error}") from error
    if done.returncode != 0 and "error=1" not in done.stdout:
        raise Unavailable(f"vcgencmd {command}: {(done.stderr or done.stdout).strip()}; is the user in group video?")
    return done.stdout.strip()
