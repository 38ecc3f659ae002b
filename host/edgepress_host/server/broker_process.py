"""The child process that is the embedded broker: `python -m edgepress_host.server.broker_process CONFIG.toml`."""

from __future__ import annotations

import logging
import signal
import sys

from iotcore import IotCoreBroker

from edgepress_host.client.leash import leash


def main() -> None:
    """Run the broker until the parent, whose id is the second argument, is gone."""
    config, parent = sys.argv[1], int(sys.argv[2])
    if not leash(parent, signal.SIGKILL):
        return
    # rumqttd writes a record at level ERROR for every packet.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    IotCoreBroker(config_path=config).run_forever()


if __name__ == "__main__":
    main()
