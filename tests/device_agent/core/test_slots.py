"""Whatever the power does, the current slot holds a complete, verified model."""

import contextlib
import errno
import os
import random
from pathlib import Path

import msgspec
import pytest
from edgepress_agent.state.files import Files, write_atomically
from edgepress_agent.state.slots import Pair, Slots
from edgepress_protocol.errors import Rejected, Unavailable
from edgepress_protocol.manifest import Manifest, TensorSpec, digest
from edgepress_protocol.messages import Active, encode
from edgepress_protocol.signing import PrivateKey
from edgepress_protocol.transfer import describe

KEY = PrivateKey.generate("slots")
TENSOR = (TensorSpec("x", "float32", (None, 2)),)


class PowerCut(BaseException):
    """Nothing in the agent may catch this."""


class CutFiles(Files):
    """Real files; before operation number `after` the power fails, and what was not synced may be lost."""

    def __init__(self, after: int, lost: str = "none") -> None:
        self.left = after
        self.lost = lost
        self.unsynced: dict[Path, None] = {}
        self.entries: list[tuple[Path, object]] = []

    def _spend(self) -> None:
        if self.left == 0:
            raise PowerCut
        self.left -= 1

    def write(self, path, data):
        self._spend()
        self.unsynced[path] = None
        self._entry(path, lambda: path.unlink(missing_ok=True))
        super().write(path, data)

    def link(self, source, target):
        self._spend()
        super().link(source, target)
        self._entry(target, lambda: target.unlink(missing_ok=True))

    def make_folder(self, path):
        self._spend()
        super().make_folder(path)

    def replace(self, source, target):
        self._spend()
        old = target.read_bytes() if target.is_file() else None
        super().replace(source, target)
        self.unsynced = {
            (target / path.relative_to(source) if source in {path, *path.parents} else path): None
            for path in self.unsynced
        }

        def undo():
            target.replace(source)
            if old is not None:
                target.write_bytes(old)

        self._entry(target, undo)

    def sync(self, path):
        self._spend()
        super().sync(path)
        self.unsynced.pop(path, None)
        self.entries = [(parent, undo) for parent, undo in self.entries if parent != path]

    def remove(self, path):
        self._spend()
        super().remove(path)

    def _entry(self, path, undo):
        self.entries.append((path.parent, undo))

    def fail(self) -> None:
        """Files that were not synced are cut in half; of the entries that were not synced, all are lost, or one."""
        for path in self.unsynced:
            if path.is_file():
                data = path.read_bytes()
                path.write_bytes(data[: len(data) // 2])
        lost = {"none": [], "all": self.entries[::-1], "oldest": self.entries[:1]}[self.lost]
        for _, undo in lost:
            with contextlib.suppress(FileNotFoundError):
                undo()


class Shelf:
    """A store of files to fill slots from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def model(self, number: int):
        data = random.Random(number).randbytes(2000)
        (self.folder / digest(data)).write_bytes(data)
        manifest = Manifest(f"v{number}", "onnx", describe(data)[0], TENSOR, TENSOR)
        signed = KEY.sign("manifest", encode(manifest))
        return signed, Active(f"{number:032x}", digest(signed.payload), manifest.variant)

    def path(self, sha256: str) -> Path:
        return self.folder / sha256


def install(slots: Slots, shelf: Shelf, number: int) -> Active:
    signed, active = shelf.model(number)
    slots.prepare(signed, shelf.path)
    slots.switch(active)
    return active


@pytest.mark.parametrize("lost", ["none", "all", "oldest"])
def test_the_power_may_fail_between_any_two_operations(tmp_path, lost):
    outcomes = set()
    for cut_after in range(100):
        folder = tmp_path / str(cut_after)
        folder.mkdir(parents=True)
        shelf = Shelf(folder / "blobs")
        files = CutFiles(-1, lost)
        slots = Slots(folder / "slots", KEY.public, files)
        install(slots, shelf, 1)
        second = install(slots, shelf, 2)
        files.left, files.unsynced, files.entries = cut_after, {}, []
        third = shelf.model(3)[1]
        done = False
        try:
            install(slots, shelf, 3)
            done = True
        except PowerCut:
            files.fail()
        after = Slots(folder / "slots", KEY.public, Files())
        assert after.restore() == "", f"cut after {cut_after} operations"
        current = after.pair.current
        assert current in {second, third}, f"cut after {cut_after} operations: {after.pair}"
        assert after.open(current.manifest).model.stat().st_size == 2000
        outcomes.add(current.variant)
        if done:
            assert current == third
            break
    assert done
    assert outcomes == {"v2", "v3"}


def test_switch_and_back(tmp_path):
    shelf = Shelf(tmp_path / "blobs")
    slots = Slots(tmp_path / "slots", KEY.public, Files())
    first, second = install(slots, shelf, 1), install(slots, shelf, 2)
    assert slots.pair == Pair(second, first)
    slots.switch(first)
    assert slots.pair == Pair(first, second)
    again = msgspec.structs.replace(first, deployment="f" * 32)
    slots.switch(again)
    assert slots.pair == Pair(again, second), "another deployment of the same model moves nothing"
    third = install(slots, shelf, 3)
    assert slots.pair == Pair(third, again)
    slots.settle()
    assert {path.name for path in (tmp_path / "slots").iterdir()} == {third.manifest, first.manifest, "slots.json"}
    assert len(slots.blobs()) == 2


def test_a_switch_that_is_undone_leaves_the_previous_model_to_roll_back_to(tmp_path):
    shelf = Shelf(tmp_path / "blobs")
    slots = Slots(tmp_path / "slots", KEY.public, Files())
    first, second = install(slots, shelf, 1), install(slots, shelf, 2)
    before = slots.pair
    install(slots, shelf, 3)
    slots.put_back(before)
    slots.settle()
    assert slots.pair == Pair(second, first)
    assert slots.open(first.manifest).manifest.variant == "v1"
    assert {path.name for path in (tmp_path / "slots").iterdir()} == {second.manifest, first.manifest, "slots.json"}


def test_a_damaged_current_slot_falls_back_to_the_previous_and_says_so(tmp_path):
    shelf = Shelf(tmp_path / "blobs")
    slots = Slots(tmp_path / "slots", KEY.public, Files())
    first, second = install(slots, shelf, 1), install(slots, shelf, 2)
    model = slots.open(second.manifest).model
    model.write_bytes(b"rotten" + model.read_bytes()[6:])
    after = Slots(tmp_path / "slots", KEY.public, Files())
    assert "v2 is given up: the SHA-256 of its model is not the manifest's" in after.restore()
    assert after.pair == Pair(first, None)
    assert Slots(tmp_path / "slots", KEY.public, Files()).restore() == ""


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe\x00", b'{"current": 7}'])
def test_a_damaged_list_of_slots_loses_no_model(tmp_path, damage):
    shelf = Shelf(tmp_path / "blobs")
    slots = Slots(tmp_path / "slots", KEY.public, Files())
    first, second = install(slots, shelf, 1), install(slots, shelf, 2)
    os.utime(tmp_path / "slots" / first.manifest, (1, 1))
    (tmp_path / "slots" / "slots.json").write_bytes(damage)
    after = Slots(tmp_path / "slots", KEY.public, Files())
    assert "slots.json is damaged" in after.restore()
    assert [after.pair.current.manifest, after.pair.previous.manifest] == [second.manifest, first.manifest]
    again = Slots(tmp_path / "slots", KEY.public, Files())
    assert (again.restore(), again.pair) == ("", after.pair)


class FullFiles(Files):
    """Nothing more can be written."""

    def write(self, path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    def remove(self, path):
        raise OSError(errno.EROFS, "Read-only file system")


def test_a_damaged_slot_on_a_full_disk_still_falls_back(tmp_path):
    shelf = Shelf(tmp_path / "blobs")
    slots = Slots(tmp_path / "slots", KEY.public, Files())
    first, second = install(slots, shelf, 1), install(slots, shelf, 2)
    slots.open(second.manifest).model.write_bytes(b"rotten")
    after = Slots(tmp_path / "slots", KEY.public, FullFiles())
    assert "v2 is given up" in after.restore()
    assert after.pair == Pair(first, None)
    assert after.open(first.manifest)


def test_a_slot_signed_by_another_key_is_given_up(tmp_path):
    shelf = Shelf(tmp_path / "blobs")
    install(Slots(tmp_path / "slots", KEY.public, Files()), shelf, 1)
    after = Slots(tmp_path / "slots", PrivateKey.generate("other").public, Files())
    assert "not signed by the trusted key 'other'" in after.restore()
    assert after.pair == Pair()


def test_a_slot_whose_files_are_gone_cannot_be_opened(tmp_path):
    slots = Slots(tmp_path / "slots", KEY.public, Files())
    with pytest.raises(Unavailable, match="No such file"):
        slots.open("0" * 64)


def test_a_forged_manifest_fills_no_slot(tmp_path):
    shelf = Shelf(tmp_path / "blobs")
    signed, _ = shelf.model(1)
    slots = Slots(tmp_path / "slots", PrivateKey.generate("other").public, Files())
    with pytest.raises(Rejected):
        slots.prepare(signed, shelf.path)
    assert not list((tmp_path / "slots").iterdir())


def test_write_atomically_never_leaves_a_mixture(tmp_path):
    for cut_after in range(5):
        path = tmp_path / f"{cut_after}.json"
        path.write_bytes(b"old" * 100)
        files = CutFiles(cut_after, "all")
        try:
            write_atomically(files, path, b"new" * 100)
        except PowerCut:
            files.fail()
        assert path.read_bytes() in {b"old" * 100, b"new" * 100}
