"""The open trials of a `want`: their files fetched, measured one at a time, reported until the host drops them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import MAX_TEXT, Blob
from edgepress_protocol.messages import Failed, Progress, Report, Trial

from edgepress_agent.log import logger
from edgepress_agent.measure.bench import Bench, Outcome, Phase
from edgepress_agent.measure.needs import unmet
from edgepress_agent.state.disk import Disk
from edgepress_agent.wants import Wanted, blobs_of_trial
from edgepress_agent.wire.voice import Voice

if TYPE_CHECKING:
    from edgepress_agent.measure.job import Job

MAX_ATTEMPTS = 3
"""A board that resets under load (a weak power supply) or runs out of memory must not do so for ever."""


class Trials:
    """What the host wants measured, and how far it is."""

    def __init__(self, disk: Disk, bench: Bench, voice: Voice) -> None:
        self._disk = disk
        self._bench = bench
        self._voice = voice
        self._wanted: Wanted | None = None
        self._phases: dict[str, tuple[str, str]] = {}

    def want(self, wanted: Wanted) -> None:
        """Take up the host's list: forget what is gone from it, report again what has ended, refuse what cannot run."""
        self._wanted = wanted
        listed = {trial.id for trial in wanted.want.trials}
        for gone in self._bench.trials() - listed:
            self._bench.withdraw(gone)
        self._phases = {trial: phase for trial, phase in self._phases.items() if trial in listed}
        self._disk.outbox.keep_only(listed)
        self._voice.reports(self._disk.outbox.waiting())
        for trial in self.open():
            if reason := self._why_not(trial):
                self.end(trial.id, reason)

    def open(self) -> tuple[Trial, ...]:
        """Trials that have not ended, in the host's order."""
        if self._wanted is None:
            return ()
        return tuple(trial for trial in self._wanted.want.trials if trial.id not in self._disk.outbox)

    def blobs(self) -> tuple[Blob, ...]:
        """Blobs of the open trials, in their order."""
        return tuple(blob for trial in self.open() for blob in self._blobs_of(trial))

    def look(self) -> None:
        """Offer to the bench every trial whose files are here."""
        for trial in self.open():
            if self._bench.has(trial.id):
                continue
            if all(self._disk.store.holds(blob) for blob in self._blobs_of(trial)):
                self.phase(trial.id, "queued", "")
                self._bench.offer(self._job(trial))
            else:
                self.phase(trial.id, "fetching", "")

    def give_up(self, stuck: dict[str, str]) -> bool:
        """End the first trial that waits for a blob which cannot be had; return whether there was one."""
        for trial in self.open():
            for blob in self._blobs_of(trial):
                if blob.sha256 in stuck:
                    self.end(trial.id, Failed("error", stuck[blob.sha256]))
                    return True
        return False

    def refuse(self, blob: Blob, failed: Failed) -> None:
        """End every trial that needs a blob which is not what its manifest says."""
        for trial in self.open():
            if blob in self._blobs_of(trial):
                self.end(trial.id, failed)

    def end(self, trial_id: str, outcome: Outcome | None) -> None:
        """Keep and say how a trial ended, unless the host has dropped it meanwhile; None where there is no outcome."""
        for trial in self.open():
            if trial.id == trial_id and outcome is not None:
                if isinstance(outcome, Failed):
                    # Longer ones would be refused by the host, and sent again for ever.
                    outcome = Failed(outcome.kind, outcome.detail[:MAX_TEXT])
                report = Report(trial_id, trial.manifest, outcome)
                self._disk.outbox.put(report)
                self._voice.reports([report])
                if isinstance(outcome, Failed):
                    logger.warning("trial %s… failed (%s): %s", trial_id[:12], outcome.kind, outcome.detail)
                else:
                    logger.info("trial %s… measured", trial_id[:12])

    def stopped(self) -> None:
        """Clear what is being measured of blame: the agent stops on purpose."""
        for trial in self._bench.trials():
            self._disk.outbox.forgive(trial)

    def phase(self, trial_id: str, phase: Phase, detail: str) -> None:
        """Say where a trial stands, if that is news."""
        before, _ = self._phases.get(trial_id, ("", ""))
        if phase == "measuring" and before != "measuring":
            self._disk.outbox.begin(trial_id)
        if self._phases.get(trial_id) != (phase, detail):
            self._phases[trial_id] = (phase, detail)
            self._voice.progress(Progress(trial_id, phase, detail))

    def _why_not(self, trial: Trial) -> Failed | None:
        if self._wanted is None:
            return None
        # The attempt that is under way has been counted already, and nobody has gone down in it.
        if not self._bench.has(trial.id) and (attempts := self._disk.outbox.attempts(trial.id)) >= MAX_ATTEMPTS:
            return Failed("crash", f"the board or the agent went down {attempts} times during this trial: given up")
        try:
            reason = unmet(self._wanted.manifest(trial.manifest))
        except Rejected as error:
            return Failed("rejected", str(error))
        return Failed("unsupported", reason) if reason else None

    def _blobs_of(self, trial: Trial) -> tuple[Blob, ...]:
        if self._wanted is None:
            return ()
        return blobs_of_trial(trial, self._wanted.manifest(trial.manifest))

    def _job(self, trial: Trial) -> Job:
        if self._wanted is None:
            raise AssertionError("no want was taken up")
        # Late: a board that measures nothing need not hold it.
        from edgepress_agent.measure.job import Job

        manifest = self._wanted.manifest(trial.manifest)
        path = self._disk.store.path
        return Job(
            trial=trial,
            manifest=manifest,
            model=path(manifest.model.sha256),
            evaluation=path(trial.evaluation.blob.sha256) if trial.evaluation else None,
            golden=path(manifest.golden.blob.sha256) if manifest.golden else None,
            work_dir=self._disk.work,
        )
