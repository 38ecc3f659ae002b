"""Reports that the host has not yet acknowledged, on disk: it acknowledges by a `want` without the trial."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgepress_protocol.errors import Rejected
from edgepress_protocol.messages import Report, decode_to_host, encode

from edgepress_agent.files import Files, write_atomically
from edgepress_agent.log import logger

_SUFFIX = ".report"


class Outbox:
    """One file per report; all of them are small, and held in memory too."""

    def __init__(self, folder: Path, files: Files) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files = files
        self._reports = {report.trial: report for path in sorted(folder.glob(f"*{_SUFFIX}")) for report in _read(path)}

    def __len__(self) -> int:
        return len(self._reports)

    def __contains__(self, trial: str) -> bool:
        return trial in self._reports

    def put(self, report: Report) -> None:
        """Keep a report until its trial is gone from the host's `want`."""
        self._reports[report.trial] = report
        try:
            write_atomically(self._files, self._path(report.trial), encode(report))
        except OSError as error:
            # A full disk must not lose a measurement: it is in memory, and is sent all the same.
            logger.warning("%s: %s; kept until the next restart only", self._path(report.trial), error.strerror)

    def waiting(self) -> tuple[Report, ...]:
        """Every report not yet acknowledged."""
        return tuple(self._reports.values())

    def keep_only(self, trials: Collection[str]) -> None:
        """Forget the reports whose trials the host no longer lists."""
        for trial in [trial for trial in self._reports if trial not in trials]:
            del self._reports[trial]
            self._files.remove(self._path(trial))

    def _path(self, trial: str) -> Path:
        return self._folder / f"{trial}{_SUFFIX}"


def _read(path: Path) -> list[Report]:
    try:
        message = decode_to_host(path.read_bytes())
    except Rejected as error:
        logger.warning("%s is damaged (%s): its trial will run again", path, error)
        return []
    return [message] if isinstance(message, Report) else []
