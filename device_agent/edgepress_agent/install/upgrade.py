"""MAIN PATH of `edgepress-agent upgrade`: an environment beside the old one, held against it, switched to, or back.

The unit file is what is switched, in one rename; the environments stay where they are, so the way back is as short.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from edgepress_protocol.errors import Unavailable, UsageError
from edgepress_protocol.measurement import Device

_EXEC = re.compile(r"^ExecStart=(.+) run --config \S+$", re.MULTILINE)


def upgrade(unit: Path, root: Path, new: Callable[[], str], say: Callable[[str], None]) -> None:
    """Let the service start another agent; `new` makes it, and returns how it is started.

    Raises:
        UsageError: there is no service, or the other agent is none to change to.
        Unavailable: it did not start; the old one was started again.
    """
    old_program = program_of(unit)
    before = probed(old_program)
    new_program = new()
    after = probed(new_program)
    if trouble := why_not(before, after):
        raise UsageError(f"{new_program}: {trouble}; the service was left as it is")
    say(f"{before.agent_version} at {old_program}")
    say(f"{after.agent_version} at {new_program}")
    try:
        _install(new_program, root)
    except Unavailable as error:
        _install(old_program, root)
        raise Unavailable(f"{error}; the service is back at {before.agent_version}") from error
    say(f"the service starts {after.agent_version} now; {old_program} can be removed when the host has seen the board")


def why_not(before: Device, after: Device) -> str:
    """Say why one agent may not take another's place; empty where it may. Pure."""
    lost = {runtime.format for runtime in before.runtimes} - {runtime.format for runtime in after.runtimes}
    if lost:
        return f"it has no runtime for {', '.join(sorted(lost))}, which the agent here has: install one beside it"
    if after.speaks[1] < before.speaks[0] or after.speaks[0] > before.speaks[1]:
        return (
            f"it speaks protocol {after.speaks[0]} to {after.speaks[1]}, the agent here {before.speaks[0]} to"
            f" {before.speaks[1]}: no host speaks with both, so upgrade by an edition between them"
        )
    return ""


def program_of(unit: Path) -> str:
    """Return how the installed service starts its agent.

    Raises:
        UsageError: there is no such service.
    """
    try:
        found = _EXEC.search(unit.read_text("utf-8"))
    except FileNotFoundError:
        found = None
    if found is None:
        raise UsageError(f"{unit}: no service of edgepress-agent install there; run that first")
    return found[1]


def probed(program: str) -> Device:
    """Return what an agent says of itself.

    Raises:
        UsageError: it does not start.
    """
    try:
        return msgspec.json.decode(_run([*program.split(" "), "probe", "--json"]), type=Device)
    except (Unavailable, msgspec.MsgspecError) as error:
        raise UsageError(f"{program}: not an agent that starts here: {error}") from error


def environment_beside(old_program: str, wanted: str, runtimes: Sequence[str], say: Callable[[str], None]) -> str:
    """Make a virtual environment with another edition and the same runtimes, beside the old one; return its program.

    Raises:
        UsageError: the old agent is in no virtual environment of its own.
        Unavailable: pip could not install it; nothing is left of the environment.
    """
    prefix = Path(old_program.split(" ", 1)[0]).parents[1]
    settings = prefix / "pyvenv.cfg"
    if not settings.exists():
        raise UsageError(f"{prefix} is no virtual environment: install the other edition yourself, and give --program")
    shared = re.search(r"^include-system-site-packages *= *true", settings.read_text("utf-8"), re.MULTILINE)
    number = next(n for n in range(2, 1000) if not prefix.with_name(f"{_stem(prefix)}-{n}").exists())
    fresh = prefix.with_name(f"{_stem(prefix)}-{number}")
    say(f"installing {wanted} into {fresh}")
    try:
        _run([sys.executable, "-m", "venv", *(["--system-site-packages"] if shared else []), str(fresh)])
        # Runtimes of the system's own are there by the shared site-packages.
        own = [] if shared else list(runtimes)
        _run([str(fresh / "bin/python"), "-m", "pip", "install", "--quiet", wanted, *own])
    except Unavailable:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return str(fresh / "bin" / "edgepress-agent")


def _stem(prefix: Path) -> str:
    return re.sub(r"-\d+$", "", prefix.name)


def _install(program: str, root: Path) -> None:
    """Let an agent write its own unit, and start it: the restart waits until the agent says that it is ready."""
    _run([*program.split(" "), "install", "--root", str(root), "--program", program])


def _run(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"{words[0]}: {error.strerror}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unavailable(f"{words[0]}: {lines[-1]}")
    return done.stdout
