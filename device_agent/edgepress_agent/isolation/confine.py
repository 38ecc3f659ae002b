"""MAIN PATH of a child's confinement: it gives up privileges, files, network and processes, in that order.

What this kernel does not have is not an error: the child runs all the same, and what is missing is said in a line.
Linux only; nothing heavy is imported, since what these guards refuse must be refused to the imports of the runtime too.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgepress_agent.isolation import landlock, privileges, seccomp, sight
from edgepress_agent.measure.pipe import Confine, Confined

LARGEST_FILE_BYTES = 256 * 1024 * 1024
"""A runtime may write such files as a profile of its layers, into the one folder that it may write to."""


def confine(plan: Confine) -> Confined:
    """Confine this process, which must have one thread as yet: what it starts later is confined with it."""
    os.chdir(plan.scratch)
    if plan.off:
        return Confined((), ())
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE_BYTES, LARGEST_FILE_BYTES))
    polite = _give_way(plan.nice)
    tried = (
        _put_on("no-new-privileges", privileges.never_gain),
        _put_on("no-capabilities", privileges.drop),
        _put_on("landlock", lambda: landlock.restrict(sight.paths(plan))),
        _put_on("seccomp", lambda: seccomp.refuse(unix_sockets=plan.gpu)),
    )
    on = tuple(name for name, missing in tried if not missing)
    return Confined((*polite, *on), tuple(f"{name}: {missing}" for name, missing in tried if missing))


def _put_on(name: str, guard: Callable[[], str]) -> tuple[str, str]:
    """Return a guard's name with what it says of itself, and why it is missing here; empty where it is not."""
    try:
        return f"{name} {guard()}".strip(), ""
    except OSError as error:
        return name, error.strerror or str(error)


def _give_way(nice: int) -> list[str]:
    """Let others on this board go first, by so many steps."""
    if nice == 0:
        return []
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    # Where the kernel groups processes by session, this process is alone in its own, and its own nice says nothing.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))
    return [f"nice {nice}"]
