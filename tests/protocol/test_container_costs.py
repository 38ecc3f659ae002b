"""What a form takes to expand is kept within the promise of 100 MB/s, by the form alone: no clock decides here."""

import random

import pressed
import pytest
from edgepress_protocol import codec, container
from edgepress_protocol.container.costs import Option, budget_us, form_us, within
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(16, 300)), min_size=1, max_size=12),
    st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5]),
    st.booleans(),
)
def test_no_form_is_made_that_would_be_slow(shapes: list[tuple[int, int]], density: float, channels: bool) -> None:
    kind = pressed.per_channel(density) if channels else pressed.pruned_and_clustered(density)
    file = pressed.safetensors({str(at): pressed.floats(*shape, kind) for at, shape in enumerate(shapes)})
    packed = container.encode(file)
    assert b"".join(container.decode([packed], len(file))) == file
    assert form_us(packed) <= 1.01 * budget_us(len(file))


def test_many_small_sparse_layers_take_quicker_layouts_and_few_bytes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {str(at): pressed.floats(16, 144, pressed.pruned_and_clustered(0.1), seed=at) for at in range(24)}
    file = pressed.safetensors(layers)
    packed = container.encode(file)
    assert form_us(packed) <= budget_us(len(file))
    monkeypatch.setattr("edgepress_protocol.container.writer.budget_us", lambda _: 1e9)
    smallest = container.encode(file)
    assert form_us(smallest) > 1.5 * budget_us(len(file))
    assert len(smallest) <= len(packed) < 1.2 * len(smallest)
    assert "blocks" in {segment.layout for segment in container.read_header(smallest).segments}


options = st.builds(Option, st.just("bytes"), st.just(b""), st.integers(1, 1000), st.floats(1, 1000, allow_nan=False))


@given(st.lists(st.lists(options, min_size=1, max_size=6), max_size=8), st.floats(0, 5000))
def test_the_choice_keeps_to_its_budget_wherever_it_can(stretches: list[list[Option]], budget: float) -> None:
    chosen = within(budget, stretches)
    assert all(option in options for option, options in zip(chosen, stretches, strict=True))
    fastest = sum(min(option.decode_us for option in options) for options in stretches)
    assert sum(option.decode_us for option in chosen) <= max(budget, fastest) + 1e-6
    unbound = within(float("inf"), stretches)
    assert [option.wire_bytes for option in unbound] == [min(o.wire_bytes for o in options) for options in stretches]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 40), st.integers(0, 3000), st.sampled_from([1, 2]))
def test_large_files_too_are_never_larger_than_thorough_zstd(seed: int, again: int, noise: int, protocol: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(50) * again + chance.randbytes(noise) + bytes(chance.choices(range(4), k=2000)) * again
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "THOROUGH_BYTES", 1000)  # as if this were 8 MiB
        name, form = codec.best(data, protocol)
    assert len(form) <= min(len(data), len(codec.encode("zstd", data)))
    assert b"".join(codec.decode(name, [form], len(data))) == data
