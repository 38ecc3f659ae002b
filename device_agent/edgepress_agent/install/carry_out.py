"""Does the steps of a plan below a root, and says each in one line."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from edgepress_protocol.errors import Unavailable, UsageError

from edgepress_agent.install.facts import group_id, under
from edgepress_agent.install.plan import Command, File, Folder, Gone, Step
from edgepress_agent.install.unit import USER


def carry_out(steps: Sequence[Step], root: Path, say: Callable[[str], None]) -> None:
    """Do every step; what is as it should be is left alone.

    Raises:
        UsageError: this user may not write there.
        Unavailable: a program is not there, or failed.
    """
    try:
        for step in steps:
            say(_do(step, root))
    except PermissionError as error:
        raise UsageError(f"{error.filename}: {error.strerror}; run it as root (sudo)") from error
    except OSError as error:
        raise Unavailable(f"{error.filename}: {error.strerror}") from error


def describe(step: Step, root: Path) -> str:
    """Say what a step would do, without what a file holds: a broker's password may stand there."""
    match step:
        case Folder(path):
            return f"would make {path}"
        case File(path):
            return f"would write {path}"
        case Gone(path):
            return f"would remove {path}"
        case Command():
            return f"would run {' '.join(_words(step, root))}"


def _do(step: Step, root: Path) -> str:
    match step:
        case Folder(path):
            target = under(root, path)
            if target.is_dir():
                return f"unchanged {path}"
            target.mkdir(mode=0o755, parents=True)
            return f"made {path}"
        case File():
            return _write(step, root)
        case Gone(path):
            return _remove(path, under(root, path))
        case Command():
            return _run(_words(step, root))


def _write(file: File, root: Path) -> str:
    target = under(root, file.path)
    mode = 0o640 if file.private else 0o644
    group = group_id(root, USER) if file.private else None
    if _is_so(target, file.text, mode, group):
        return f"unchanged {file.path}"
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(file.text)
        if group is not None:
            os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    fresh.replace(target)
    return f"wrote {file.path}"


def _is_so(target: Path, text: str, mode: int, group: int | None) -> bool:
    """Whether a file has this text and may be read by those who should."""
    if not target.is_file() or target.read_text("utf-8", errors="replace") != text:
        return False
    now = target.stat()
    return stat.S_IMODE(now.st_mode) == mode and group in (None, now.st_gid)


def _remove(path: Path, target: Path) -> str:
    if target.is_dir():
        shutil.rmtree(target)
    elif target.exists():
        target.unlink()
    else:
        return f"not there {path}"
    return f"removed {path}"


def _run(words: list[str]) -> str:
    program = shutil.which(words[0])
    if program is None:
        raise Unavailable(f"{words[0]} is not there: the service needs systemd")
    done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join((done.stderr or done.stdout).split()) or f"exit status {done.returncode}"
        raise Unavailable(f"{' '.join(words)}: {reason}")
    return f"ran {' '.join(words)}"


def _words(command: Command, root: Path) -> list[str]:
    rooted = command.rooted and root != Path("/")
    return [command.words[0], *([f"--root={root}"] if rooted else []), *command.words[1:]]
