from __future__ import annotations

import errno

import pytest
from edgepress_host.press.store import Store, disk, key_of, no_space, write_atomically
from edgepress_protocol.errors import Unavailable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def test_what_was_kept_comes_back(tmp_path):
    store = Store(tmp_path)
    store.keep("a", {"n": 1}, {"graph": b"bytes"})
    entry = Store(tmp_path).fetch("a")
    assert entry is not None
    assert (entry.facts, entry.blobs) == ({"n": 1}, {"graph": b"bytes"})
    assert store.fetch("b") is None


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 1), at=st.floats(0, 0.999), value=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_entry_is_as_good_as_absent(tmp_path, which, at, value, cut):
    store = Store(tmp_path)
    store.keep("a", {"n": 1, "notes": ["x"]}, {"graph": b"some bytes of a graph"})
    path = files_of(tmp_path)[which]
    content = bytearray(path.read_bytes())
    position = int(at * len(content))
    if cut:
        del content[position:]
    else:
        content[position] ^= value
    path.write_bytes(content)
    entry = store.fetch("a")
    assert entry is None or (entry.facts, entry.blobs) == (
        {"n": 1, "notes": ["x"]},
        {"graph": b"some bytes of a graph"},
    )
    if which == 0 or cut:
        assert entry is None or not cut
    store.keep("a", {"n": 1, "notes": ["x"]}, {"graph": b"some bytes of a graph"})
    assert store.fetch("a") is not None


def test_a_key_depends_on_every_part_and_not_on_the_order_of_tables():
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})
    assert len({key_of("a", 1), key_of("a", 2), key_of("b", 1), key_of("a", "1")}) == 4


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_line_that_says_what_to_do(tmp_path):
    line = r"the disk is full .*; free some space and run the same command again"
    with pytest.raises(Unavailable, match=line), disk(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_found_behind_another_librarys_error():
    error = RuntimeError("cannot save")
    assert not no_space(error)
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert no_space(error)
