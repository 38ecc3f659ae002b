"""Files arrive whole: whatever order, repetition or damage the wire adds."""

import os

import pytest
from edgepress_protocol import codec
from edgepress_protocol.errors import Rejected
from edgepress_protocol.transfer import (
    HEADER_BYTES,
    check_chunk,
    decode_frame,
    describe,
    encode_frame,
    from_bitmap,
    split,
    to_bitmap,
)
from hypothesis import given, settings
from hypothesis import strategies as st

files = st.one_of(
    st.binary(min_size=1, max_size=6000),
    st.integers(1, 2000).map(lambda n: os.urandom(16) * n),
    st.integers(1, 3000).map(lambda n: b"".join((1.5 + i / 1000).hex().encode()[:7] for i in range(n))),
)


@settings(max_examples=50, deadline=None)
@given(files, st.randoms(), st.integers(1024, 4096))
def test_chunks_in_any_order_rebuild_the_file(data: bytes, random: object, chunk_bytes: int) -> None:
    blob, wire_form = describe(data, chunk_bytes)
    frames = [encode_frame(blob.wire.sha256, i, c) for i, c in enumerate(split(wire_form, chunk_bytes))]
    random.shuffle(frames)  # type: ignore[attr-defined]
    placed = {}
    for raw in frames + frames[:2]:
        frame = decode_frame(raw)
        check_chunk(blob.wire, frame)
        placed[frame.index] = frame.chunk
    rebuilt = b"".join(placed[i] for i in range(len(blob.wire.chunks)))
    assert b"".join(codec.decode(blob.wire.codec, [rebuilt], blob.size_bytes)) == data


@given(st.integers(0, 63), st.integers(1, 255))
def test_one_altered_byte_is_refused(position: int, change: int) -> None:
    data = os.urandom(3000)
    blob, form = describe(data, 1024)
    raw = bytearray(encode_frame(blob.wire.sha256, 1, list(split(form, 1024))[1]))
    raw[len(raw) - 1 - position] ^= change
    with pytest.raises(Rejected, match="altered"):
        check_chunk(blob.wire, decode_frame(bytes(raw)))


@given(st.binary(max_size=64))
def test_random_frames_are_refused_or_well_formed(data: bytes) -> None:
    try:
        frame = decode_frame(data)
    except Rejected:
        return
    assert len(frame.chunk) == len(data) - HEADER_BYTES


def test_chunks_of_another_blob_of_another_place_or_length_are_refused() -> None:
    blob, form = describe(os.urandom(3000), 1024)
    chunks = list(split(form, 1024))
    other, _ = describe(os.urandom(3000), 1024)
    for wrong, words in [
        (encode_frame(other.wire.sha256, 0, chunks[0]), "not of"),
        (encode_frame(blob.wire.sha256, 3, chunks[0]), "that has 3"),
        (encode_frame(blob.wire.sha256, 0, chunks[0][:-1]), "1023 bytes, not 1024"),
        (encode_frame(blob.wire.sha256, 1, chunks[0]), "altered"),
    ]:
        with pytest.raises(Rejected, match=words):
            check_chunk(blob.wire, decode_frame(wrong))
    with pytest.raises(Rejected, match="carries"):
        decode_frame(encode_frame(blob.wire.sha256, 0, chunks[0])[:-5])


@given(st.sets(st.integers(0, 99)), st.integers(100, 200))
def test_bitmaps_round_trip(indexes: set[int], count: int) -> None:
    assert from_bitmap(to_bitmap(indexes, count), count) == indexes


def test_bitmaps_of_another_length_or_past_the_last_chunk_are_refused() -> None:
    with pytest.raises(Rejected):
        from_bitmap(b"\1\0", 4)
    with pytest.raises(Rejected, match="past the last"):
        from_bitmap(b"\x10", 4)


@settings(max_examples=30, deadline=None)
@given(files, st.sampled_from(["none", "zstd", "shuffle4-zstd", "container"]), st.integers(1, 700))
def test_every_codec_is_lossless_in_pieces_of_any_size(data: bytes, name: str, piece: int) -> None:
    form = codec.encode(name, data)  # type: ignore[arg-type]
    pieces = [form[i : i + piece] for i in range(0, len(form), piece)]
    assert b"".join(codec.decode(name, pieces, len(data))) == data  # type: ignore[arg-type]


def test_shuffling_spans_blocks() -> None:
    data = os.urandom(codec.BLOCK_BYTES * 2 + 4321)
    assert b"".join(codec.decode("shuffle4-zstd", [codec.encode("shuffle4-zstd", data)], len(data))) == data


@pytest.mark.parametrize("name", ["none", "zstd", "shuffle4-zstd"])
def test_an_expansion_beyond_the_declared_size_stops_early(name: str) -> None:
    bomb = codec.encode(name, bytes(50_000_000))  # type: ignore[arg-type]
    produced = 0
    with pytest.raises(Rejected, match=r"beyond|expands"):
        for piece in codec.decode(name, [bomb], 1000):  # type: ignore[arg-type]
            produced += len(piece)
    assert produced <= 1001
    with pytest.raises(Rejected, match="declares 60000000"):
        list(codec.decode(name, [bomb], 60_000_000))  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_damaged_streams_are_refused(data: bytes) -> None:
    for name in ("zstd", "shuffle4-zstd"):
        with pytest.raises(Rejected):
            list(codec.decode(name, [data], 1 << 20))


def test_a_codec_is_chosen_only_where_it_gains() -> None:
    assert describe(os.urandom(100_000))[0].wire.codec == "none"
    assert describe(bytes(100_000))[0].wire.codec in {"zstd", "shuffle4-zstd"}


@settings(max_examples=30, deadline=None)
@given(files, st.sampled_from([1, 2]))
def test_no_form_is_larger_than_the_file_or_than_thorough_zstd(data: bytes, protocol: int) -> None:
    name, form = codec.best(data, protocol)
    assert name in codec.read_by(protocol)
    assert len(form) <= min(len(data), len(codec.encode("zstd", data)))
    assert b"".join(codec.decode(name, [form], len(data))) == data
