from __future__ import annotations

import doctest
import struct
from types import ModuleType

import numpy as np
import pytest
from edgepress_models import idx, splits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

arrays = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, max_side=6))


def packed(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@given(arrays)
def test_what_was_written_is_read(array: np.ndarray) -> None:
    found = idx.parse(packed(array), array.ndim)
    assert found.dtype == np.uint8
    assert np.array_equal(found, array)
    assert not found.flags.writeable


@given(arrays, st.data())
def test_a_cut_file_is_refused(array: np.ndarray, data: st.DataObject) -> None:
    whole = packed(array)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match="expected"):
        idx.parse(whole[:cut], array.ndim)


@given(arrays, st.binary(min_size=1, max_size=9))
def test_a_longer_file_is_refused(array: np.ndarray, extra: bytes) -> None:
    with pytest.raises(ValueError, match=f"expected {array.size} values"):
        idx.parse(packed(array) + extra, array.ndim)


@given(st.binary(max_size=64), st.integers(1, 4))
def test_any_bytes_are_read_or_refused(content: bytes, dimensions: int) -> None:
    try:
        found = idx.parse(content, dimensions)
    except ValueError:
        return
    assert packed(found) == content


def test_another_number_of_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="expected IDX magic 00000803, got 00000801"):
        idx.parse(packed(np.zeros(3, np.uint8)), dimensions=3)


@pytest.mark.parametrize("module", [idx, splits])
def test_the_examples_in_the_docstrings_are_true(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
