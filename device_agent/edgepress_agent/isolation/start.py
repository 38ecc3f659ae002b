"""A child's first moments: `python -m edgepress_agent.isolation.start MODULE FD PARENT_PID …`, started by the agent.

It ties its life to the agent's, hears what it may keep, gives up everything else, and only then becomes MODULE,
whose `main` finds FD, PARENT_PID and the rest as its arguments. No runtime, no numpy and no thread comes before.
"""

from __future__ import annotations

import importlib
import socket
import sys

import msgspec

from edgepress_agent.isolation.confine import confine
from edgepress_agent.measure import process
from edgepress_agent.measure.pipe import Confine, pack, receive


def main() -> None:
    """Confine this process, and go on as the module that was asked for."""
    module, descriptor, parent_pid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    process.die_with(parent_pid)
    process.be_first_to_go()
    process.forget_peak()  # opens what can no longer be opened from here on
    with socket.socket(fileno=descriptor) as connection:
        plan = receive(connection)
        if plan is None:
            return
        confined = confine(msgspec.msgpack.decode(plan, type=Confine))
        connection.sendall(pack(confined))
        connection.detach()
    del sys.argv[1]
    importlib.import_module(module).main()


if __name__ == "__main__":
    main()
