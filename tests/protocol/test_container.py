"""The container: any bytes come back, weights come small, and nothing that a stranger sends does harm."""

import hashlib
import json
import struct
import sys
from itertools import pairwise
from math import log2
from pathlib import Path

import pressed
import pytest
from edgepress_protocol import codec, container
from edgepress_protocol.container import spans
from edgepress_protocol.container.dictionary import DICTIONARY
from edgepress_protocol.container.layouts import LAYOUTS, read, write_sparse
from edgepress_protocol.container.pieces import varint
from edgepress_protocol.container.places import Plan, write_places
from edgepress_protocol.container.rans import Reader, Writer, from_byte, normalized, to_byte
from edgepress_protocol.errors import Rejected
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).with_name("golden_container.json")
MODELS = sorted((Path(__file__).parents[1] / "fixtures" / "models").glob("*.*t*"))
EVERY = pressed.every_layout()
PACKED = container.encode(EVERY)


def expand(packed: bytes, size_bytes: int) -> bytes:
    return b"".join(container.decode([packed], size_bytes))


def entropy_bytes(density: float, elements: int) -> float:
    return -elements * (density * log2(density) + (1 - density) * log2(1 - density)) / 8


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_real_files_come_back_and_are_never_larger_than_thorough_zstd(path: Path) -> None:
    data = path.read_bytes()
    assert expand(container.encode(data), len(data)) == data
    assert len(codec.best(data)[1]) <= len(codec.encode("zstd", data))


def test_every_layout_is_chosen_where_it_pays_and_comes_back() -> None:
    used = {segment.layout for segment in container.read_header(PACKED).segments}
    assert used == set(LAYOUTS)
    assert expand(PACKED, len(EVERY)) == EVERY
    assert len(PACKED) < 0.93 * len(codec.encode("zstd", EVERY))
    assert codec.best(EVERY)[0] == "container"


def test_values_that_each_row_scales_in_its_own_way_take_an_index_and_a_table_a_row() -> None:
    tensor = pressed.floats(40, 400, pressed.per_channel(1.0))
    packed = container.encode(pressed.safetensors({"w": tensor}))
    assert container.read_header(packed).segments[0].layout == "rows"
    indices, tables = 40 * 400 * 4 / 8, 40 * 16 * 4
    assert len(packed) < 1.05 * (indices + tables)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_weights_of_any_kind_and_shape_come_back(data: st.DataObject) -> None:
    tensors = {}
    for name in range(data.draw(st.integers(1, 4))):
        size, dtype = data.draw(st.sampled_from([(1, "I8"), (2, "F16"), (4, "F32"), (8, "F64")]))
        shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
        count = 1
        for dimension in shape:
            count *= dimension
        values = st.sampled_from(data.draw(st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=5)))
        tensors[str(name)] = (dtype, shape, b"".join(data.draw(st.lists(values, min_size=count, max_size=count))))
    file = pressed.safetensors(tensors)
    assert expand(container.encode(file), len(file)) == file


def test_a_deep_compressed_layer_comes_within_five_percent_of_its_entropy() -> None:
    density, rows, columns = 0.02, 300, 400
    tensor = pressed.floats(rows, columns, pressed.pruned_and_clustered(density))
    packed = container.encode(pressed.safetensors({"w": tensor}))
    values = [value for value in struct.unpack(f"<{rows * columns}f", tensor[2]) if value]
    bound = entropy_bytes(len(values) / rows / columns, rows * columns) + len(values) * 4 / 8
    assert container.read_header(packed).segments[0].layout == "blocks"
    assert len(packed) < 1.05 * bound + 200


def test_rows_and_columns_that_were_spared_more_than_others_cost_less_than_chance_would() -> None:
    tensor = pressed.floats(200, 200, pressed.uneven)
    elements = struct.unpack("<40000f", tensor[2])
    places = [place for place, value in enumerate(elements) if value]
    parameters, writer, order = write_places(places, len(elements), 200)
    assert sorted(order) == places
    assert len(parameters) + len(writer.flush()) < 0.92 * entropy_bytes(len(places) / 40000, 40000)


def test_tensors_longer_than_a_segment_are_cut_at_rows() -> None:
    data = pressed.safetensors({"w": ("F32", (1500, 1000), struct.pack("<f", 0.5) * 1_500_000)})
    packed = container.encode(data, 3)
    lengths = [segment.size_bytes for segment in container.read_header(packed).segments]
    assert len(lengths) == 2
    assert lengths[0] % 4000 == 0
    assert expand(packed, len(data)) == data


def test_the_wire_may_come_in_pieces_of_any_size() -> None:
    for size in (1, 7, 1000):
        pieces = [PACKED[at : at + size] for at in range(0, len(PACKED), size)]
        assert b"".join(container.decode(pieces, len(EVERY))) == EVERY


# ---- what strangers send


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(PACKED) - 1), st.integers(1, 255))
def test_one_altered_byte_never_makes_another_file_nor_a_longer_one(position: int, change: int) -> None:
    altered, produced = bytearray(PACKED), bytearray()
    altered[position] ^= change
    try:
        for piece in container.decode([bytes(altered)], len(EVERY)):
            produced += piece
            assert len(produced) <= len(EVERY)
    except Rejected:
        return
    assert produced == EVERY  # zstd can say the same in two ways


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(PACKED) - 1))
def test_a_container_that_is_cut_short_or_goes_on_is_refused(length: int) -> None:
    with pytest.raises(Rejected):
        expand(PACKED[:length], len(EVERY))
    with pytest.raises(Rejected, match="after its end"):
        expand(PACKED + b"\0", len(EVERY))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_after_a_right_beginning_are_refused(data: bytes) -> None:
    with pytest.raises(Rejected):
        expand(PACKED[:8] + data, 1 << 20)
    with pytest.raises(Rejected):
        expand(data, 1 << 20)


def test_another_size_than_the_manifest_declares_is_refused_before_anything_is_expanded() -> None:
    with pytest.raises(Rejected, match=f"expands to {len(EVERY)} bytes, its manifest declares {len(EVERY) - 1}"):
        next(container.decode([PACKED], len(EVERY) - 1))
    with pytest.raises(Rejected, match="a version that this edition does not read"):
        next(container.decode([b"EPC\x02" + PACKED[4:]], len(EVERY)))


def test_sizes_beyond_all_bounds_are_refused_before_memory_is_taken() -> None:
    huge = 1 << 31
    numbers = b"".join(map(varint, (huge, 4, huge - 4, 0, 100, 0)))
    with pytest.raises(Rejected, match="a head of more than"):
        expand(PACKED[:8] + numbers, huge)


def test_what_would_take_long_for_what_comes_of_it_is_refused_before_it_is_done() -> None:
    data = bytes(range(1, 251)) * 800 + bytes(200_000)
    payload = write_sparse(data, 1, 3, 400, blocks=True)
    with pytest.raises(Rejected, match="200000 nonzeros in 400000 bytes would take too long"):
        read("blocks", payload, len(data), 1)


def test_streams_that_end_early_or_late_are_refused() -> None:
    writer = Writer()
    model = normalized([3, 1, 4])
    writer.symbols(model, [0, 1, 2] * 50)
    stream = writer.flush()
    early = Reader(stream)
    assert early.symbols(model, 149) == ([0, 1, 2] * 50)[:-1]
    with pytest.raises(Rejected, match="damaged"):
        early.close()
    with pytest.raises(Rejected, match="cut short"):
        Reader(stream).symbols(model, 2000)


# ---- the parts


@given(st.integers(0, 1 << 24))
def test_counts_in_a_byte_are_near_and_keep_their_order(count: int) -> None:
    assert abs(from_byte(to_byte(count)) - count) <= count / 15
    assert all(from_byte(low) < from_byte(high) for low, high in pairwise(range(256)))


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 2999), min_size=1), st.sampled_from([1, 30, 50, 3000]))
def test_places_come_back(places: set[int], width: int) -> None:
    from edgepress_protocol.container.pieces import Cursor

    parameters, writer, order = write_places(sorted(places), 3000, width)
    reader = Reader(writer.flush())
    assert Plan(Cursor(parameters), 3000).read(reader) == order
    reader.close()
    assert set(order) == places


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(MODELS), st.integers(0, 20_000), st.binary(min_size=1, max_size=8))
def test_readers_of_damaged_models_only_suggest(path: Path, position: int, junk: bytes) -> None:
    data = bytearray(path.read_bytes())
    position %= len(data)
    data[position : position + len(junk)] = junk
    found = spans.find(bytes(data))
    assert all(one.start + one.length <= two.start for one, two in pairwise(found))
    assert all(span.start >= 0 and span.start + span.length <= len(data) for span in found)
    assert all(span.length % span.size == 0 and span.length // span.size % span.width == 0 for span in found)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x1c\0\0\0TFL3", b"\xff\0\0\0\0\0\0\0{", b"\x3a"]))
def test_readers_of_any_bytes_only_suggest(junk: bytes, beginning: bytes) -> None:
    assert all(span.start + span.length <= len(beginning + junk) for span in spans.find(beginning + junk))


def test_the_tensors_of_real_files_are_found() -> None:
    lengths = {path.name: sum(span.length for span in spans.find(path.read_bytes())) for path in MODELS}
    assert lengths["float.tflite"] > 5000
    assert lengths["int8.tflite"] > 1000
    assert lengths["dense.golden.safetensors"] > 300


# ---- for ever


def test_what_was_once_packed_expands_for_ever() -> None:
    for example in json.loads(GOLDEN.read_text()):
        found = expand(bytes.fromhex(example["container"]), example["size_bytes"])
        assert hashlib.sha256(found).hexdigest() == example["sha256"], example["name"]


def test_the_dictionary_is_the_one_that_files_were_packed_with() -> None:
    assert hashlib.sha256(DICTIONARY).hexdigest() == "ba3412aa19a1cdd57d34f7a3a8521d71e0febd7fd751bf147c783787bd343536"


def test_models_of_gaps_are_the_same_everywhere() -> None:
    from edgepress_protocol.container.rans import gap_model

    text = repr([gap_model(level) for level in range(128)]).encode()
    assert hashlib.sha256(text).hexdigest() == "38588040e68b65e5f872f40112e2b529a8dc6b4b1dd9ea2c41abc2f3ccf86aa0"


if __name__ == "__main__":  # adds the bytes of a new example; never change bytes that stand there
    name = sys.argv[1]
    standing = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else []
    assert name not in {example["name"] for example in standing}
    made = {
        "name": name,
        "size_bytes": len(EVERY),
        "sha256": hashlib.sha256(EVERY).hexdigest(),
        "container": PACKED.hex(),
    }
    GOLDEN.write_text(json.dumps([*standing, made], indent=1) + "\n")
