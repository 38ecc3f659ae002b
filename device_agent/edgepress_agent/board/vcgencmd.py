"""Raspberry Pi's firmware commands: by the kernel's mailbox, or by the program `vcgencmd` where that is missing.

Below a recorded tree, its recorded answers in fake/vcgencmd.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from edgepress_protocol.errors import Unavailable

from edgepress_agent.board import mailbox
from edgepress_agent.board.sysfs import is_simulated, read_text

_TIMEOUT_S = 2.0
_UNKNOWN = "error=1"
"""How the firmware begins its answer to a command that it does not know."""


def ask(root: Path, command: str) -> str | None:
    """Return what the firmware answers; None where this is no Pi, or it does not know the command.

    Raises:
        Unavailable: it is there and cannot be asked, as it is for a user outside the group `video`.
    """
    answer = read_text(root / "fake/vcgencmd" / command) if is_simulated(root) else _ask_here(root, command)
    return None if answer is None or answer.startswith(_UNKNOWN) else answer


def _ask_here(root: Path, command: str) -> str | None:
    devices = mailbox.devices(root)
    return mailbox.ask(devices, command) if devices else _run(command)


def _run(command: str) -> str | None:
    tool = shutil.which("vcgencmd")
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, command], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"vcgencmd {command}: {error}") from error
    said = done.stdout.strip()
    if done.returncode != 0 and _UNKNOWN not in said:
        raise Unavailable(f"vcgencmd {command}: {(done.stderr or said).strip()}; is the user in group video?")
    # It says the code of an error first, the firmware's own words after it.
    return said[said.index(_UNKNOWN) :] if _UNKNOWN in said else said
