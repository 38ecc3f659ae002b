"""Logging: one line per event, on standard error, for the journal; a message that repeats is said once."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

logger = logging.getLogger("edgepress_agent")

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LEVEL_NAMES = tuple(_LEVELS)


_JOURNAL_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))


def configure(level: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send the agent's log to standard error: a terminal gets the time, the journal, which has it, the priority."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine(for_journal=_is_journal(environment)))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logger.setLevel(_LEVELS[level])
    # The client's own complaints about a lost socket say nothing that the link does not say better.
    logging.getLogger("mqtt").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)


class _OneLine(logging.Formatter):
    """One event is one line, whatever a broker, a model or a file name has put into it."""

    def __init__(self, *, for_journal: bool) -> None:
        super().__init__("%(message)s" if for_journal else "%(asctime)s %(levelname)s %(message)s")
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in super().format(record))
        if not self._for_journal:
            return line
        priority = next((number for floor, number in _JOURNAL_PRIORITIES if record.levelno >= floor), 7)
        return f"<{priority}>{line}"


def _is_journal(environment: Mapping[str, str]) -> bool:
    """Whether standard error is the stream that systemd has connected to the journal (systemd.exec(5))."""
    try:
        error = os.fstat(2)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{error.st_dev}:{error.st_ino}"


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
