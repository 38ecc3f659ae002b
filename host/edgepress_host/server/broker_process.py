"""The child process that is the embedded broker: `python -m edgepress_host.server.broker_process CONFIG.toml`."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys

from iotcore import IotCoreBroker

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the broker until the parent, whose id is the second argument, is gone."""
    config, parent = sys.argv[1], int(sys.argv[2])
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the kernel was told
        return
    # rumqttd writes a record at level ERROR for every packet.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    IotCoreBroker(config_path=config).run_forever()


if __name__ == "__main__":
    main()
