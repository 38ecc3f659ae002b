"""A trial that can begin: its files, and the board that it is measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepress_protocol.manifest import Manifest
from edgepress_protocol.messages import Trial

from edgepress_agent import runtimes, sensors
from edgepress_agent.measure.pipe import Open

Says = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A trial whose files are here and verified."""

    trial: Trial
    manifest: Manifest
    model: Path
    evaluation: Path | None
    golden: Path | None
    work_dir: Path

    def open(self) -> Open:
        """Return what the child is asked first.

        Raises:
            Unsupported: no runtime here runs the format.
        """
        options = self.trial.options
        return Open(
            manifest=self.manifest,
            model=str(self.model.resolve()),
            runtime=runtimes.get(self.manifest.format)[0].name,
            threads=options.threads,
            batch=options.batch,
            golden=None if self.golden is None else str(self.golden.resolve()),
            evaluation=None if self.evaluation is None else str(self.evaluation.resolve()),
            memory_limit_bytes=options.memory_limit_bytes,
            providers=options.providers,
        )


@dataclass(frozen=True)
class Place:
    """What every part of a trial is given: the board's sensors, where they are read, and whom to tell."""

    board: Sequence[sensors.Source]
    root: Path
    say: Says
