"""Chunks in any order, twice, altered, cut short: the file is right in the end, and nothing is asked for again."""

import hashlib
import os
import random

import pytest
from edgepress_agent.state.download import Partial, clear_leftovers
from edgepress_protocol.codec import encode
from edgepress_protocol.errors import Rejected, Unavailable
from edgepress_protocol.manifest import Blob, Wire, digest
from edgepress_protocol.transfer import decode_frame, describe, encode_frame, from_bitmap, split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHUNK = 1024
ONCE = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def blob_of(data: bytes, codec: str = "none") -> tuple[Blob, list[bytes]]:
    form = encode(codec, data)
    chunks = list(split(form, CHUNK))
    digests = tuple(hashlib.sha256(chunk).digest() for chunk in chunks)
    return Blob(digest(data), len(data), Wire(codec, digest(form), len(form), CHUNK, digests)), chunks


def frames_of(blob: Blob, chunks: list[bytes]) -> list[bytes]:
    return [encode_frame(blob.wire.sha256, index, chunk) for index, chunk in enumerate(chunks)]


def take(partial: Partial, data: bytes) -> bool:
    try:
        return partial.accept(decode_frame(data))
    except Rejected:
        return False


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("partial")


@ONCE
@given(
    data=st.binary(min_size=1, max_size=9000),
    codec=st.sampled_from(["none", "zstd", "shuffle4-zstd", "container"]),
    seed=st.integers(0, 2**32),
    restarts=st.sets(st.integers(0, 30)),
)
def test_any_disorder_ends_in_the_same_file(tmp_path_factory, data, codec, seed, restarts):
    folder = tmp_path_factory.mktemp("partial")
    blob, chunks = blob_of(data, codec)
    rng = random.Random(seed)
    frames = frames_of(blob, chunks)
    bad = [frame[:-1] for frame in frames] + [frame[:16] + bytes([frame[16] ^ 1]) + frame[17:] for frame in frames]
    arriving = frames * 2 + bad
    rng.shuffle(arriving)
    partial = Partial(folder, blob)
    accepted = set()
    for step, frame in enumerate(arriving):
        missing = set(partial.missing)
        if take(partial, frame):
            index = decode_frame(frame).index
            assert index not in accepted, "a chunk counted twice"
            accepted.add(index)
            assert partial.missing == missing - {index}
        else:
            assert partial.missing == missing
        if step in restarts:
            partial.close()
            partial = Partial(folder, blob)
            assert partial.missing == set(range(len(chunks))) - accepted, "it would fetch again what it had"
    assert partial.complete
    assert partial.finish().read_bytes() == data
    assert partial.need(4, stalled=False).missing == b""
    partial.discard()
    assert not list(folder.iterdir())


@ONCE
@given(st.binary(max_size=200))
def test_hostile_frames_change_nothing(tmp_path_factory, junk):
    blob, chunks = blob_of(os.urandom(3000))
    partial = Partial(tmp_path_factory.mktemp("partial"), blob)
    assert not take(partial, junk)
    assert len(partial.missing) == len(chunks)
    partial.discard()


def test_a_torn_journal_and_a_lost_page_cost_only_their_own_chunks(folder):
    blob, chunks = blob_of(os.urandom(10 * CHUNK))
    partial = Partial(folder, blob)
    for frame in frames_of(blob, chunks)[:6]:
        assert take(partial, frame)
    partial.close()
    # The power failed: one page never reached the disk, and the journal is cut off after the marks that it had.
    with (folder / f"{blob.wire.sha256}.part").open("r+b") as part:
        part.seek(2 * CHUNK)
        part.write(b"\0" * CHUNK)
    journal = folder / f"{blob.wire.sha256}.journal"
    journal.write_bytes(journal.read_bytes()[:6])
    partial = Partial(folder, blob)
    assert partial.missing == {2, 6, 7, 8, 9}
    for frame in frames_of(blob, chunks):
        take(partial, frame)
    partial.close()
    assert not Partial(folder, blob).missing, "marks after the torn end must be read"


def test_a_journal_of_junk_is_harmless(folder):
    blob, _ = blob_of(b"x" * 3000)
    Partial(folder, blob).close()
    (folder / f"{blob.wire.sha256}.journal").write_bytes(b"\xff" * 77)
    assert len(Partial(folder, blob).missing) == 3


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_download_takes_all_its_room_at_once_so_that_a_full_disk_shows_before_the_transfer(folder, codec):
    blob, chunks = blob_of(os.urandom(20 * CHUNK), codec)
    partial = Partial(folder, blob)
    reserved = {path.name: (path.stat().st_size, path.stat().st_blocks) for path in folder.iterdir()}
    for frame in frames_of(blob, chunks):
        take(partial, frame)
    assert partial.complete
    assert {path.name: (path.stat().st_size, path.stat().st_blocks) for path in folder.iterdir()} == reserved


def test_the_disk_that_altered_a_file_is_found_out_before_the_file_is_used(folder):
    blob, chunks = blob_of(os.urandom(4 * CHUNK))
    partial = Partial(folder, blob)
    for frame in frames_of(blob, chunks):
        take(partial, frame)
    with (folder / f"{blob.wire.sha256}.part").open("r+b") as part:
        part.write(b"\0" * 10)
    with pytest.raises(Unavailable, match="altered 1 chunk"):
        partial.finish()
    assert partial.missing == {0}
    assert take(partial, frames_of(blob, chunks)[0])
    assert partial.finish()


@pytest.mark.parametrize("codec", ["none", "zstd", "container"])
def test_a_manifest_that_contradicts_itself_is_rejected(folder, codec):
    data = b"weights" * 999
    blob, chunks = blob_of(data, codec)
    lying = Blob("0" * 64, blob.size_bytes, blob.wire)
    partial = Partial(folder, lying)
    for frame in frames_of(blob, chunks):
        take(partial, frame)
    with pytest.raises(Rejected, match="SHA-256"):
        partial.finish()


def test_a_file_of_another_size_than_its_manifest_says_is_rejected_and_not_fetched_for_ever(folder):
    blob, chunks = blob_of(b"weights" * 999)
    partial = Partial(folder, Blob(blob.sha256, blob.size_bytes - 1, blob.wire))
    for frame in frames_of(blob, chunks):
        take(partial, frame)
    with pytest.raises(Rejected, match="the file has 6993 bytes, its manifest says 6992"):
        partial.finish()


def test_a_bomb_stops_at_the_declared_size(folder):
    data = b"\0" * 5_000_000
    blob, chunks = blob_of(data, "zstd")
    small = Blob(blob.sha256, 1000, blob.wire)
    partial = Partial(folder, small)
    for frame in frames_of(blob, chunks):
        take(partial, frame)
    with pytest.raises(Rejected, match="expands beyond the 1000 bytes"):
        partial.finish()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000


def test_need_names_exactly_what_is_missing(folder):
    blob, chunks = blob_of(os.urandom(20 * CHUNK))
    partial = Partial(folder, blob)
    for index in (0, 7, 8, 19):
        take(partial, frames_of(blob, chunks)[index])
    need = partial.need(5, stalled=True)
    assert from_bitmap(need.missing, 20) == set(range(20)) - {0, 7, 8, 19}
    assert (need.wire, need.size_bytes, need.window_chunks, need.stalled) == (
        blob.wire.sha256,
        blob.wire.size_bytes,
        5,
        True,
    )


def test_leftovers_of_unwanted_blobs_are_removed(folder):
    wanted, unwanted = describe(b"a" * 100)[0], describe(b"b" * 100)[0]
    for blob in (wanted, unwanted):
        Partial(folder, blob).close()
    clear_leftovers(folder, {wanted.wire.sha256})
    assert {path.name[:64] for path in folder.iterdir()} == {wanted.wire.sha256}
