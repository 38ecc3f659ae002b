"""What Python 3.10 lacks, under one name for every Python that runs the agent.

`timeout` raises the built-in TimeoutError, which on 3.10 is not the one that `asyncio.wait_for` raises.
"""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    from asyncio import TaskGroup, timeout
else:
    from taskgroup import TaskGroup, timeout

__all__ = ["TaskGroup", "load_toml", "timeout"]


def load_toml(text: str) -> dict[str, Any]:
    """Read TOML.

    Raises:
        ValueError: it is none.
    """
    # Late: the daemon that is told everything on its command line need not carry it.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
