"""Two slots, current and previous, and one small file that says which is which.

A slot is a folder named by its manifest, complete and synced before it gets that name; `slots.json` is replaced in
one step. So whatever the power does, the current slot holds a complete, verified model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from edgepress_protocol.errors import EdgepressError, Rejected, Unavailable
from edgepress_protocol.manifest import Manifest, digest
from edgepress_protocol.messages import Active, Signed, decode_signed, encode
from edgepress_protocol.signing import PublicKey

from edgepress_agent.log import logger
from edgepress_agent.state.files import Files, is_full, sha256_of, write_atomically
from edgepress_agent.wants import open_manifest

NO_DEPLOYMENT = "0" * 32
"""Stands for the deployment of a salvaged slot, whose own is not known any more."""


class Pair(msgspec.Struct, frozen=True):
    """What occupies the two slots."""

    current: Active | None = None
    previous: Active | None = None

    def switched_to(self, active: Active) -> Pair:
        """Return the pair after `active` became current; the same model under another deployment keeps its slot."""
        if self.current is None or self.current.manifest == active.manifest:
            return Pair(active, self.previous)
        return Pair(active, self.current)


@dataclass(frozen=True)
class Opened:
    """A slot whose signature and digests were just verified."""

    manifest: Manifest
    model: Path
    golden: Path | None


class Slots:
    """The `slots` folder."""

    def __init__(self, folder: Path, trusted: PublicKey, files: Files) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._trusted = trusted
        self._files = files
        self._shared: dict[str, tuple[str, ...]] = {}
        self.pair = Pair()

    def restore(self) -> str:
        """Read the pair at start-up; a damaged slot is given up. Return one line about that, or nothing."""
        found, damage = self._read()
        occupied = [active for active in (found.current, found.previous) if active is not None]
        wrong = {active.manifest: self._what_is_wrong(active) for active in occupied}
        self.pair = Pair(*(active for active in occupied if not wrong[active.manifest]))
        problems = damage + [
            f"the slot of {active.variant} is given up: {wrong[active.manifest]}"
            for active in occupied
            if wrong[active.manifest]
        ]
        if problems:
            logger.error("%s", "; ".join(problems))
            try:
                self._commit(self.pair)
            except OSError as error:
                # What is left is served all the same; the next start finds the same damage.
                logger.warning("slots.json: %s", error.strerror)
        self.settle()
        return "; ".join(problems)

    def open(self, manifest_sha256: str) -> Opened:
        """Verify signature and digests of a slot, and return what it holds.

        Raises:
            Rejected: another key signed it, or its bytes have changed.
            Unavailable: it is not there, or cannot be read.
        """
        slot = self._folder / manifest_sha256
        try:
            signed = decode_signed((slot / "manifest").read_bytes())
            manifest = open_manifest(signed, self._trusted)
            if digest(signed.payload) != manifest_sha256:
                raise Rejected("its manifest is another one")
            for blob, name in _contents(manifest):
                if sha256_of(slot / name) != blob:
                    raise Rejected(f"the SHA-256 of its {name} is not the manifest's")
        except OSError as error:
            raise Unavailable(f"slot {manifest_sha256[:12]}…: {error.strerror}") from error
        self._shared[manifest_sha256] = tuple(blob for blob, _ in _contents(manifest))
        return Opened(manifest, slot / "model", slot / "golden" if manifest.golden else None)

    def prepare(self, signed: Signed, blobs: Callable[[str], Path]) -> None:
        """Fill a slot, complete and synced, beside those in use; `blobs` finds a verified file by its digest.

        Raises:
            Rejected: the trusted key did not sign the manifest.
            Unavailable: the disk is full, or fails.
        """
        contents = _contents(open_manifest(signed, self._trusted))
        slot = self._folder / digest(signed.payload)
        fresh = slot.with_suffix(".new")
        files = self._files
        try:
            if not slot.exists():
                files.remove(fresh)
                files.make_folder(fresh)
                for blob, name in contents:
                    files.link(blobs(blob), fresh / name)
                    files.sync(fresh / name)
                files.write(fresh / "manifest", encode(signed))
                files.sync(fresh / "manifest")
                files.sync(fresh)
                files.replace(fresh, slot)
                files.sync(self._folder)
        except OSError as error:
            raise Unavailable(_say(error)) from error
        self._shared[slot.name] = tuple(blob for blob, _ in contents)

    def switch(self, active: Active) -> None:
        """Make a prepared slot the current one; the current one becomes the previous.

        What was the previous is kept until `settle`, for a switch that has to be undone.

        Raises:
            Unavailable: the disk is full, or fails; nothing has changed.
        """
        self.put_back(self.pair.switched_to(active))

    def put_back(self, pair: Pair) -> None:
        """Set both slots, to undo a switch.

        Raises:
            Unavailable: the disk is full, or fails; nothing has changed.
        """
        try:
            self._commit(pair)
        except OSError as error:
            raise Unavailable(_say(error)) from error
        self.pair = pair

    def settle(self) -> None:
        """Remove what is in neither slot any more."""
        kept = {active.manifest for active in (self.pair.current, self.pair.previous) if active is not None}
        for path in self._folder.iterdir():
            if path.name != "slots.json" and path.name not in kept:
                try:
                    self._files.remove(path)
                except OSError as error:
                    # It holds room until the next switch, no more.
                    logger.warning("%s: %s", path, error.strerror)

    def blobs(self) -> frozenset[str]:
        """Digests of the files that the slots share with the store."""
        occupied = [active for active in (self.pair.current, self.pair.previous) if active is not None]
        return frozenset(blob for active in occupied for blob in self._shared[active.manifest])

    def _what_is_wrong(self, active: Active) -> str:
        try:
            self.open(active.manifest)
        except EdgepressError as error:
            return str(error)
        return ""

    def _commit(self, pair: Pair) -> None:
        write_atomically(self._files, self._folder / "slots.json", msgspec.json.encode(pair))

    def _read(self) -> tuple[Pair, list[str]]:
        try:
            return msgspec.json.decode((self._folder / "slots.json").read_bytes(), type=Pair), []
        except FileNotFoundError:
            return Pair(), []
        except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
            pair = self._salvaged()
            which = f"the slot filled last, {pair.current.variant}, is taken" if pair.current else "no slot is whole"
            return pair, [f"slots.json is damaged ({error}): {which}"]

    def _salvaged(self) -> Pair:
        """Return what the slots themselves tell: of those that are whole, the one filled last is the current."""
        filled = sorted(self._folder.glob("?" * 64), key=lambda slot: slot.stat().st_mtime_ns, reverse=True)
        whole = [active for active in map(self._salvage, filled) if active is not None]
        return Pair(*whole[:2])

    def _salvage(self, slot: Path) -> Active | None:
        try:
            return Active(NO_DEPLOYMENT, slot.name, self.open(slot.name).manifest.variant)
        except EdgepressError as error:
            logger.warning("slot %s…: %s", slot.name[:12], error)
            return None


def _contents(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Files of a slot: the digest of each, and its name there."""
    golden = ((manifest.golden.blob.sha256, "golden"),) if manifest.golden else ()
    return ((manifest.model.sha256, "model"), *golden)


def _say(error: OSError) -> str:
    return "disk full: no room for another slot" if is_full(error) else f"slots: {error.strerror}"
