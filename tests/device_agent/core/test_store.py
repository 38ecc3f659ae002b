"""The store keeps what is in use, evicts the rest oldest first, and notices rot."""

import os

import pytest
from edgepress_agent.state.files import Files
from edgepress_agent.state.memory import Memory
from edgepress_agent.state.store import Store
from edgepress_protocol.errors import Unavailable
from edgepress_protocol.manifest import digest
from edgepress_protocol.transfer import describe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def put(store: Store, folder, data: bytes, age: int = 0):
    temporary = folder / "incoming"
    temporary.write_bytes(data)
    store.adopt(temporary, digest(data))
    os.utime(store.path(digest(data)), (1000 - age, 1000 - age))
    return describe(data)[0]


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff\xfe", b'{"fleet": "home"}'])
def test_a_damaged_memory_is_started_anew(tmp_path, damage):
    Memory(tmp_path, "home", "pi", Files()).saw(7)
    assert Memory(tmp_path, "home", "pi", Files()).facts.generation == 7
    (tmp_path / "agent.json").write_bytes(damage)
    assert Memory(tmp_path, "home", "pi", Files()).facts.generation == 0


def test_the_least_recently_used_go_first_and_what_is_kept_stays(tmp_path):
    store = Store(tmp_path / "blobs", Files())
    old, middle, new = (put(store, tmp_path, bytes([n]) * 100, age=10 - n) for n in range(3))
    store.make_room(150, 350, keep={old.sha256})
    assert [store.present(blob) for blob in (old, middle, new)] == [True, False, True]


def test_a_blob_that_was_used_goes_later(tmp_path):
    store = Store(tmp_path / "blobs", Files())
    old, new = (put(store, tmp_path, bytes([n]) * 100, age=10 - n) for n in range(2))
    assert store.verify(old), "as a trial or a deployment does before it uses it"
    store.make_room(100, 200, keep=())
    assert [store.present(blob) for blob in (old, new)] == [True, False]


def test_what_cannot_fit_evicts_nothing(tmp_path):
    store = Store(tmp_path / "blobs", Files())
    blob = put(store, tmp_path, b"x" * 100)
    with pytest.raises(Unavailable, match=r"disk full: 300 bytes are wanted.*lacks 50"):
        store.make_room(300, 250, keep=())
    assert store.present(blob)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    sizes=st.lists(st.integers(1, 300), max_size=8),
    kept=st.sets(st.integers(0, 7)),
    wanted=st.integers(0, 600),
    quota=st.integers(0, 1500),
)
def test_room_is_made_or_nothing_changes(tmp_path_factory, sizes, kept, wanted, quota):
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder / "blobs", Files())
    blobs = [put(store, folder, bytes([n]) * size, age=n) for n, size in enumerate(sizes)]
    keep = {blobs[n].sha256 for n in kept if n < len(blobs)}
    before = store.used_bytes()
    try:
        store.make_room(wanted, quota, keep)
    except Unavailable:
        assert store.used_bytes() == before
        assert sum(blob.size_bytes for blob in blobs if blob.sha256 in keep) + wanted > quota
    else:
        assert store.used_bytes() + wanted <= quota
    assert all(store.present(blob) for blob in blobs if blob.sha256 in keep)


def test_a_blob_of_a_former_run_is_verified_before_it_is_held(tmp_path):
    blob = put(Store(tmp_path / "blobs", Files()), tmp_path, b"weights" * 50)
    later = Store(tmp_path / "blobs", Files())
    assert later.present(blob)
    assert not later.holds(blob)
    later.verify(blob)
    assert later.holds(blob)


def test_a_rotten_blob_is_removed(tmp_path):
    store = Store(tmp_path / "blobs", Files())
    blob = put(store, tmp_path, b"weights" * 50)
    store.path(blob.sha256).write_bytes(b"Weights" * 50)
    later = Store(tmp_path / "blobs", Files())
    later.verify(blob)
    assert not later.present(blob)
