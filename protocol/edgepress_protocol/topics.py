"""Topics of the wire: `edgepress/v1/<fleet>/…`, never more than seven levels.

`v1` is the layout of this tree. What the messages mean is negotiated apart (see `version`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgepress_protocol.errors import Rejected, UsageError

ROOT = "edgepress/v1"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"
_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile(r"^[0-9a-f]{64}\Z")


def check_name(name: str, what: str) -> str:
    """Return `name` where it can be a fleet's or a device's name.

    Raises:
        UsageError: it has other characters than letters, digits, `-` and `_`, or is longer than 64.
    """
    if not _NAME.match(name):
        raise UsageError(f"{what} {name!r}: use 1 to 64 letters, digits, '-' or '_', a letter or digit first")
    return name


@dataclass(frozen=True)
class DeviceTopic:
    """A topic of one device, taken apart."""

    device_id: str
    leaf: str


class Topics:
    """The topics of one fleet."""

    def __init__(self, fleet: str) -> None:
        self.fleet = check_name(fleet, "fleet")
        self.root = f"{ROOT}/{fleet}"
        self.host_state = f"{self.root}/host/state"
        self.every_blob = f"{self.root}/blob/+"

    def device(self, device_id: str, leaf: str) -> str:
        """Topic `leaf` (up, state, want, need, chunk, report, tm) of one device."""
        return f"{self.root}/d/{check_name(device_id, 'device')}/{leaf}"

    def every_device(self, leaf: str) -> str:
        """Subscription to one leaf of all devices."""
        return f"{self.root}/d/+/{leaf}"

    def blob(self, sha256: str) -> str:
        """Broadcast topic of the chunks of one blob, named by the SHA-256 of its wire form."""
        if not _DIGEST.match(sha256):
            raise Rejected(f"blob topic: {sha256!r} is not a SHA-256 in lower-case hex")
        return f"{self.root}/blob/{sha256}"

    def parse_device(self, topic: str) -> DeviceTopic:
        """Take apart a topic below `d/`.

        Raises:
            Rejected: it is none of this fleet's device topics.
        """
        head, _, rest = topic.partition(f"{self.root}/d/")
        device_id, _, leaf = rest.partition("/")
        if head or not _NAME.match(device_id) or not leaf or "/" in leaf:
            raise Rejected(f"not a device topic of fleet {self.fleet!r}: {topic!r}")
        return DeviceTopic(device_id, leaf)
