"""Reports that the host has not yet acknowledged, on disk: it acknowledges by a `want` without the trial."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgepress_protocol.errors import Rejected
from edgepress_protocol.messages import Report, decode_to_host, encode

from edgepress_agent.log import logger
from edgepress_agent.state.files import Files, write_atomically

_SUFFIX = ".report"
_BEGUN = ".begun"


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
        self._write(report.trial, _SUFFIX, encode(report))
        self.forgive(report.trial)

    def begin(self, trial: str) -> None:
        """Count that a trial is about to run, in case nobody survives it."""
        self._write(trial, _BEGUN, str(self.attempts(trial) + 1).encode())

    def attempts(self, trial: str) -> int:
        """How many runs of a trial nobody saw the end of."""
        try:
            return int(self._path(trial, _BEGUN).read_bytes())
        except (FileNotFoundError, ValueError):
            return 0

    def forgive(self, trial: str) -> None:
        """Forget the attempts of a trial: it was stopped on purpose, or has ended."""
        self._remove(self._path(trial, _BEGUN))

    def waiting(self) -> tuple[Report, ...]:
        """Every report not yet acknowledged."""
        return tuple(self._reports.values())

    def keep_only(self, trials: Collection[str]) -> None:
        """Forget the reports whose trials the host no longer lists."""
        for trial in [trial for trial in self._reports if trial not in trials]:
            del self._reports[trial]
        for path in self._folder.iterdir():
            if path.stem not in trials:
                self._remove(path)

    def _write(self, trial: str, suffix: str, data: bytes) -> None:
        path = self._path(trial, suffix)
        try:
            write_atomically(self._files, path, data)
        except OSError as error:
            # A full disk must not lose a measurement: it is in memory, and is sent all the same.
            logger.warning("%s: %s; kept until the next restart only", path, error.strerror)

    def _remove(self, path: Path) -> None:
        try:
            self._files.remove(path)
        except OSError as error:
            # A disk that has become read-only must not end the agent: what is there too long is sent once more.
            logger.warning("%s: %s", path, error.strerror)

    def _path(self, trial: str, suffix: str) -> Path:
        return self._folder / f"{trial}{suffix}"


def _read(path: Path) -> list[Report]:
    try:
        message = decode_to_host(path.read_bytes())
    except Rejected as error:
        logger.warning("%s is damaged (%s): its trial will run again", path, error)
        return []
    return [message] if isinstance(message, Report) else []
