"""What the controller remembers, in SQLite: one writer, every commit on disk before it is acted upon."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from edgepress_protocol.errors import Unavailable, UsageError
from edgepress_protocol.manifest import Blob
from edgepress_protocol.messages import Measured
from sqlalchemy import ForeignKey, create_engine, delete, event, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from edgepress_host.fleet.fleet import manifest_of
from edgepress_host.fleet.records import OPEN, Changes, DeviceRecord, Note, Outcome, TrialRecord
from edgepress_host.fleet.rollout import Rollout
from edgepress_host.server.views import Change

SCHEMA_VERSION = 1
EVENTS_KEPT = 100_000
SQLITE_MAX = (1 << 63) - 1

T = TypeVar("T")


class Base(DeclarativeBase):
    """All tables. Records are kept whole as JSON, beside the columns by which they are looked for."""


class SchemaRow(Base):
    """The one row says of which edition the tables are."""

    __tablename__ = "schema_version"
    version: Mapped[int] = mapped_column(primary_key=True)


class DeviceRow(Base):
    """A device; its generation outlives every restart."""

    __tablename__ = "devices"
    id: Mapped[str] = mapped_column(primary_key=True)
    generation: Mapped[int]
    record: Mapped[bytes]


class BlobRow(Base):
    """A stored file and its wire form."""

    __tablename__ = "blobs"
    sha256: Mapped[str] = mapped_column(primary_key=True)
    wire_sha256: Mapped[str] = mapped_column(index=True)
    blob: Mapped[bytes]
    added_unix_s: Mapped[float]


class ManifestRow(Base):
    """A manifest's payload, as it is signed."""

    __tablename__ = "manifests"
    sha256: Mapped[str] = mapped_column(primary_key=True)
    payload: Mapped[bytes]
    stats: Mapped[bytes]
    added_unix_s: Mapped[float]


class TrialRow(Base):
    """A trial, open or ended."""

    __tablename__ = "trials"
    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    device: Mapped[str] = mapped_column(index=True)
    manifest: Mapped[str] = mapped_column(ForeignKey("manifests.sha256"), index=True)
    state: Mapped[str] = mapped_column(index=True)
    record: Mapped[bytes]


class OutcomeRow(Base):
    """How a trial ended; the columns are the measured numbers, empty where nothing was measured."""

    __tablename__ = "outcomes"
    trial: Mapped[str] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    device: Mapped[str] = mapped_column(index=True)
    manifest: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    p50_ms: Mapped[float | None]
    p95_ms: Mapped[float | None]
    peak_bytes: Mapped[int | None]
    accuracy: Mapped[float | None]
    energy_mj: Mapped[float | None]
    simulated: Mapped[bool | None]
    outcome: Mapped[bytes]


class RolloutRow(Base):
    """A rollout, open or ended."""

    __tablename__ = "rollouts"
    id: Mapped[str] = mapped_column(primary_key=True)
    created_unix_s: Mapped[float]
    phase: Mapped[str] = mapped_column(index=True)
    record: Mapped[bytes]


class EventRow(Base):
    """What happened, for people and for whoever waits for changes."""

    __tablename__ = "events"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    unix_s: Mapped[float]
    note: Mapped[bytes]


class Database:
    """The tables of one data directory."""

    def __init__(self, path: Path) -> None:
        """Open or make the database.

        Raises:
            UsageError: it is of another edition of edgepress, or no database.
        """
        self._path = path
        self._engine = create_engine(f"sqlite:///{path}")
        event.listen(self._engine, "connect", _set_pragmas)
        with self._session() as session:
            Base.metadata.create_all(session.connection())
            versions = list(session.scalars(select(SchemaRow.version)))
            if not versions:
                session.add(SchemaRow(version=SCHEMA_VERSION))
            elif versions != [SCHEMA_VERSION]:
                raise UsageError(
                    f"{path} has tables of edition {versions[0]}, this edgepress reads {SCHEMA_VERSION}; upgrade it"
                )
        path.chmod(0o600)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    # ---- the fleet

    def keep(self, changes: Changes, rollouts: Iterable[Rollout], now_unix_s: float) -> None:
        """Keep everything that came of one event, or nothing of it."""
        with self._session() as session:
            for record in changes.devices.values():
                session.merge(DeviceRow(id=record.id, generation=record.generation, record=_json(record)))
            for device_id in changes.forgotten:
                session.execute(delete(DeviceRow).where(DeviceRow.id == device_id))
            number = session.scalar(select(func.max(TrialRow.number))) or 0
            for trial in changes.trials.values():
                row = session.get(TrialRow, trial.trial.id)
                if row is None:
                    number += 1
                    row = TrialRow(id=trial.trial.id, number=number, device=trial.device, manifest=trial.trial.manifest)
                    session.add(row)
                row.state, row.record = trial.state, _json(trial)
            session.flush()  # outcomes refer to trials
            for outcome in changes.outcomes:
                session.merge(_outcome_row(outcome))
            for rollout in rollouts:
                session.merge(
                    RolloutRow(
                        id=rollout.id, created_unix_s=rollout.created_unix_s, phase=rollout.phase, record=_json(rollout)
                    )
                )
            session.add_all(EventRow(unix_s=now_unix_s, note=_json(note)) for note in changes.notes)

    def devices(self) -> list[DeviceRecord]:
        """All devices."""
        with self._session() as session:
            return [_read(row, DeviceRecord) for row in session.scalars(select(DeviceRow.record))]

    def trials(self, *, state: str | None = None, device: str | None = None) -> list[TrialRecord]:
        """Trials in the order in which they were made; `open` stands for every state that has not ended."""
        query = select(TrialRow.record).order_by(TrialRow.number)
        if state is not None:
            query = query.where(TrialRow.state.in_(OPEN if state == "open" else [state]))
        if device is not None:
            query = query.where(TrialRow.device == device)
        with self._session() as session:
            return [_read(row, TrialRecord) for row in session.scalars(query)]

    def outcomes(self, *, manifest: str | None = None, device: str | None = None) -> list[Outcome]:
        """Trials that ended in numbers, in the order in which the trials were made."""
        query = select(OutcomeRow.outcome).join(TrialRow).where(OutcomeRow.kind == "measured").order_by(TrialRow.number)
        if manifest is not None:
            query = query.where(OutcomeRow.manifest == manifest)
        if device is not None:
            query = query.where(OutcomeRow.device == device)
        with self._session() as session:
            return [_read(row, Outcome) for row in session.scalars(query)]

    def rollouts(self) -> list[Rollout]:
        """All rollouts, oldest first."""
        with self._session() as session:
            return [
                _read(row, Rollout)
                for row in session.scalars(select(RolloutRow.record).order_by(RolloutRow.created_unix_s))
            ]

    # ---- files and manifests

    def add_blob(self, blob: Blob, now_unix_s: float) -> None:
        """Keep the description of a stored file."""
        with self._session() as session:
            session.merge(
                BlobRow(sha256=blob.sha256, wire_sha256=blob.wire.sha256, blob=_json(blob), added_unix_s=now_unix_s)
            )

    def blob(self, sha256: str) -> Blob | None:
        """Find the description of a file by its own digest."""
        with self._session() as session:
            row = session.get(BlobRow, sha256)
            return _read(row.blob, Blob) if row else None

    def blob_by_wire(self, wire_sha256: str) -> Blob | None:
        """Find the description of a file by the digest of its wire form."""
        with self._session() as session:
            found = session.scalars(select(BlobRow.blob).where(BlobRow.wire_sha256 == wire_sha256)).first()
            return _read(found, Blob) if found else None

    def add_manifest(self, sha256: str, payload: bytes, stats: dict[str, Any], now_unix_s: float) -> None:
        """Keep a manifest; where it is known already, its stats are replaced, and it counts as added now."""
        with self._session() as session:
            row = session.get(ManifestRow, sha256)
            if row is None:
                row = ManifestRow(sha256=sha256, payload=payload)
                session.add(row)
            row.stats, row.added_unix_s = _json(stats), now_unix_s

    def manifests(self) -> list[tuple[str, bytes, dict[str, Any], float]]:
        """Digest, payload, stats and time of every manifest, oldest first."""
        query = select(ManifestRow).order_by(ManifestRow.added_unix_s, ManifestRow.sha256)
        with self._session() as session:
            return [
                (row.sha256, row.payload, _read(row.stats, dict[str, Any]), row.added_unix_s)
                for row in session.scalars(query)
            ]

    def sweep(
        self, in_use: set[str], evaluations: set[str], older_than_unix_s: float
    ) -> tuple[list[str], list[str], list[Blob]]:
        """Remove manifests that no trial, rollout or device (`in_use`) refers to, and files that nothing refers to.

        Returns the digests of the removed manifests and files, and the files that stay.
        """
        with self._session() as session:
            used = in_use | set(session.scalars(select(TrialRow.manifest)))
            used |= {_read(row, Rollout).manifest for row in session.scalars(select(RolloutRow.record))}
            referred, manifests = set(evaluations), []
            for row in session.scalars(select(ManifestRow)).all():
                if row.sha256 not in used and row.added_unix_s <= older_than_unix_s:
                    manifests.append(row.sha256)
                    session.delete(row)
                    continue
                manifest = manifest_of(row.payload)
                referred.add(manifest.model.sha256)
                referred |= {manifest.golden.blob.sha256} if manifest.golden else set()
            blobs, kept = [], []
            for row_of_blob in session.scalars(select(BlobRow)).all():
                if row_of_blob.sha256 in referred or row_of_blob.added_unix_s > older_than_unix_s:
                    kept.append(_read(row_of_blob.blob, Blob))
                else:
                    blobs.append(row_of_blob.sha256)
                    session.delete(row_of_blob)
        return manifests, blobs, kept

    # ---- what happened

    def changes(self, after: int, limit: int = 1000) -> list[Change]:
        """Events after a sequence number, oldest first."""
        query = select(EventRow).where(EventRow.seq > after).order_by(EventRow.seq).limit(limit)
        with self._session() as session:
            return [_change(row.seq, row.unix_s, _read(row.note, Note)) for row in session.scalars(query)]

    def latest_changes(self, limit: int = 200) -> list[Change]:
        """Return the last events, oldest first."""
        query = select(EventRow).order_by(EventRow.seq.desc()).limit(limit)
        with self._session() as session:
            return [_change(row.seq, row.unix_s, _read(row.note, Note)) for row in session.scalars(query)][::-1]

    def last_seq(self) -> int:
        """Sequence number of the latest event; 0 where there is none."""
        with self._session() as session:
            return session.scalar(select(func.max(EventRow.seq))) or 0

    def forget_old_events(self) -> None:
        """Keep the latest events only."""
        with self._session() as session:
            session.execute(delete(EventRow).where(EventRow.seq <= self.last_seq() - EVENTS_KEPT))

    @contextmanager
    def _session(self) -> Iterator[Session]:
        try:
            with Session(self._engine) as session, session.begin():
                yield session
        except DBAPIError as error:
            raise Unavailable(f"database {self._path}: {error.orig}") from error


def _outcome_row(outcome: Outcome) -> OutcomeRow:
    report = outcome.report
    row = OutcomeRow(
        trial=report.trial, device=outcome.device.id, manifest=report.manifest, kind="failed", outcome=_json(outcome)
    )
    if isinstance(report.outcome, Measured):
        found = report.outcome.measurement
        row.kind = "measured"
        row.p50_ms, row.p95_ms = found.latency.p50_ms, found.latency.p95_ms
        row.peak_bytes = min(found.memory.peak_bytes, SQLITE_MAX)
        row.accuracy = found.accuracy.value if found.accuracy else None
        row.energy_mj = found.energy.mj_per_inference if found.energy else None
        row.simulated = found.simulated
    return row


def _change(seq: int, unix_s: float, note: Note) -> Change:
    return Change(seq, unix_s, note.kind, note.text, note.device, note.trial, note.rollout)


def _json(record: object) -> bytes:
    return msgspec.json.encode(record)


def _read(data: bytes, type_: type[T]) -> T:
    return msgspec.json.decode(data, type=type_)


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
