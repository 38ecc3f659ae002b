"""`--set KEY=VALUE`: values as TOML writes them, and words without its quotes."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Any

from edgepress_protocol.errors import UsageError


def parsed(texts: Iterable[str]) -> dict[str, Any]:
    """Return values by key. Raises UsageError where a text has no key or says a key again."""
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value) or "\n" in text:
            raise UsageError(f"--set: expected KEY=VALUE, such as seed=1 or kind=channel, got {text!r}")
        if key in values:
            raise UsageError(f"--set: {key} is there twice; say it once")
        values[key] = _value(value)
    return values


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # A word such as module:attr, which TOML would want in quotes that a shell takes away. Types are checked later.
        return text
