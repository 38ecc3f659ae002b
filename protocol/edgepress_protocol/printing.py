"""JSON for people and scripts, as every `--json` prints it."""

from __future__ import annotations

import re

import msgspec

_NUMBERS = re.compile(r"\[\n[-+\d.eE,\s]+\]")
"""An array of nothing but numbers; no line break is inside a string of JSON, so this is never in one."""


def indented(data: object) -> str:
    """Render records or plain data as indented JSON, numbers of one array side by side.

    >>> print(indented({"counts": [1, 2], "name": "p50"}))
    {
      "counts": [1, 2],
      "name": "p50"
    }
    """
    text = msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
    return _NUMBERS.sub(lambda found: "[" + ", ".join(found[0][1:-1].replace(",", " ").split()) + "]", text)
