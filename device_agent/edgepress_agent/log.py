"""Logging: one line per event, on standard error, for the journal; a message that repeats is said once."""

from __future__ import annotations

import logging

logger = logging.getLogger("edgepress_agent")

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LEVEL_NAMES = tuple(_LEVELS)


def configure(level: str) -> None:
    """Send the agent's log to standard error; the journal adds the time itself, a terminal gets it here."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(_LEVELS[level])
    # The client's own complaints about a lost socket say nothing that the link does not say better.
    logging.getLogger("mqtt").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)


class Said:
    """Remembers the last line per subject, so that only a change is logged."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def warn(self, subject: str, line: str) -> None:
        """Log `line` unless it is what was last said about `subject`."""
        if self._lines.get(subject) != line:
            self._lines[subject] = line
            logger.warning("%s", line)

    def forget(self, subject: str) -> None:
        """Let the next line about `subject` be logged whatever it is."""
        self._lines.pop(subject, None)


def sparingly(count: int) -> bool:
    """Whether the `count`-th of many like events is worth a line: the 1st, 2nd, 4th, 8th, …."""
    return count & (count - 1) == 0
