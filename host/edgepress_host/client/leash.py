"""A process that ends with the one that started it, however that one ends.

`python -m edgepress_host.client.leash PARENT COMMAND…` becomes COMMAND. The new process itself asks the kernel
(prctl(2), PR_SET_PDEATHSIG, which survives execve): asked between fork and exec, Python's own hooks would run there
and could be interrupted.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def leash(parent: int, number: signal.Signals) -> bool:
    """Have this process sent a signal when `parent` ends; False where it has already ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def main() -> None:
    """Take the leash, and become the command."""
    parent, *command = sys.argv[1:]
    if leash(int(parent), signal.SIGTERM):
        os.execvp(command[0], command)  # noqa: S606 - it is the command that our own parent named


if __name__ == "__main__":
    main()
