"""How the agent of this board stands: what systemd says of the service, and what the state folder holds."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
from edgepress_protocol.errors import UsageError

from edgepress_agent.install.unit import SERVICE
from edgepress_agent.state.memory import Remembered
from edgepress_agent.state.slots import Pair


class Status(msgspec.Struct, frozen=True):
    """What cannot be known is None; `service` is systemd's word for it, None where it knows no such service."""

    device: str
    broker: str
    service: str | None
    said: str | None
    pid: int | None
    active: str | None
    previous: str | None
    generation: int | None
    waiting_reports: int
    files_bytes: int
    free_disk_bytes: int


def status(config: dict[str, Any], broker: str) -> Status:
    """Look at the service and the folder that a configuration names; nothing is changed.

    Raises:
        UsageError: the folder is not there yet, or this user may not look into it.
    """
    state_dir = Path(config["state_dir"])
    service, said = _service()
    try:
        pair = _read(state_dir / "slots" / "slots.json", Pair) or Pair()
        facts = _read(state_dir / "agent.json", Remembered)
        return Status(
            device=config["device_id"],
            broker=broker,
            service=service,
            said=said,
            pid=_running(state_dir / "lock"),
            active=pair.current.variant if pair.current else None,
            previous=pair.previous.variant if pair.previous else None,
            generation=facts.generation if facts else None,
            waiting_reports=len(list((state_dir / "outbox").glob("*.report"))),
            files_bytes=sum(path.stat().st_size for path in (state_dir / "blobs").glob("*")),
            free_disk_bytes=shutil.disk_usage(state_dir).free,
        )
    except FileNotFoundError as error:
        raise UsageError(f"{state_dir}: not there yet: the agent has not been started") from error
    except PermissionError as error:
        raise UsageError(f"{error.filename}: {error.strerror}; run it as root (sudo), or the agent's user") from error


def describe(status: Status) -> str:
    """Render it for a person."""
    running = "not running" if status.pid is None else f"running, process {status.pid}"
    rows = (
        ("device", status.device),
        ("broker", status.broker),
        ("service", "not installed" if status.service is None else status.service),
        ("agent", running),
        ("says", status.said or ""),
        ("active", status.active or "nothing"),
        ("previous", status.previous or "nothing"),
        ("seen", "nothing of its host" if status.generation is None else f"generation {status.generation}"),
        ("reports", f"{status.waiting_reports} not yet acknowledged"),
        ("files", f"{status.files_bytes / 1e6:,.1f} MB, {status.free_disk_bytes / 1e9:,.1f} GB free"),
    )
    return "\n".join(f"{label:<10} {value}" for label, value in rows if value)


def _service() -> tuple[str | None, str | None]:
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return None, None
    asked = "--property=LoadState,ActiveState,SubState,StatusText"
    done = subprocess.run([systemctl, "show", SERVICE, asked], capture_output=True, text=True, check=False)
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if told.get("LoadState") != "loaded":
        return None, None
    return f"{told.get('ActiveState', 'unknown')} ({told.get('SubState', 'unknown')})", told.get("StatusText") or None


def _running(lock: Path) -> int | None:
    """Return the process that holds the state folder: an agent by whatever it was started."""
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        return int(holder) if holder.isdecimal() else None
    finally:
        os.close(descriptor)
    return None


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
