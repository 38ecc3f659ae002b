"""Everything that the agent keeps on the disk, below its state folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgepress_protocol.errors import UsageError

from edgepress_agent.settings import Settings
from edgepress_agent.state.files import Files
from edgepress_agent.state.memory import Memory
from edgepress_agent.state.outbox import Outbox
from edgepress_agent.state.slots import Slots
from edgepress_agent.state.store import Store
from edgepress_agent.wire.fetch import Fetches


@dataclass(frozen=True)
class Disk:
    """The parts of the state folder; `work` is emptied at every start."""

    memory: Memory
    store: Store
    fetches: Fetches
    slots: Slots
    outbox: Outbox
    work: Path


def open_disk(settings: Settings, files: Files) -> Disk:
    """Open the state folder, and make what is not there yet.

    Raises:
        UsageError: it cannot be written, or holds another device's state.
    """
    base = settings.state_dir
    work = base / "work"
    try:
        if trouble(base):
            # The children that serve need a folder to work in, if only in memory.
            work = Path(tempfile.mkdtemp(prefix="edgepress-", dir=os.environ.get("RUNTIME_DIRECTORY")))
        else:
            # The folder itself stays: a full disk might not give it back, and what is active must be served.
            work.mkdir(exist_ok=True)
            for left_over in work.iterdir():
                _remove(left_over)
        store = Store(base / "blobs", files)
        return Disk(
            memory=Memory(base, settings.fleet, settings.device_id, files),
            store=store,
            fetches=Fetches(base / "partial", store),
            slots=Slots(base / "slots", settings.trusted, files),
            outbox=Outbox(base / "outbox", files),
            work=work,
        )
    except OSError as error:
        raise UsageError(f"--state-dir {base}: {error.strerror}; choose a folder that this user can write") from error


def trouble(state_dir: Path) -> str:
    """Return one line where nothing can be written; empty where all is well."""
    if os.access(state_dir, os.W_OK):
        return ""
    return f"{state_dir} is read-only: what is active is served, and nothing can be fetched or kept"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
