"""Strategies of the wire's messages: hypothesis builds them from their types."""

from __future__ import annotations

from typing import Any

import msgspec
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import Blob
from edgepress_protocol.transfer import describe
from hypothesis import strategies as st

histograms = st.lists(st.integers(0, 1 << 50), max_size=30).map(Histogram.of)
blobs = st.binary(min_size=1, max_size=5000).map(lambda data: describe(data, 1024)[0])


def of(kind: Any) -> st.SearchStrategy[Any]:
    """A strategy of any of the wire's types, within the bounds that its annotations state."""
    return _of(msgspec.inspect.type_info(kind))


def _of(info: Any) -> st.SearchStrategy[Any]:
    match info:
        case msgspec.inspect.StructType(cls=cls) if cls is Histogram:
            return histograms
        case msgspec.inspect.StructType(cls=cls) if cls is Blob:
            return blobs
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: _of(field.type) for field in fields})
        case msgspec.inspect.UnionType(types=types):
            return st.one_of([_of(one) for one in types])
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.IntType(ge=low, le=high):
            return st.integers(-(1 << 63) if low is None else low, (1 << 63) - 1 if high is None else high)
        case msgspec.inspect.FloatType(gt=above, ge=low, le=high):
            floor = low if low is not None else above
            return st.floats(floor, high, allow_nan=False, allow_infinity=False, exclude_min=above is not None)
        case msgspec.inspect.StrType(pattern=pattern) if pattern:
            return st.from_regex(pattern, fullmatch=True)
        case msgspec.inspect.StrType(min_length=low, max_length=high):
            return st.text(min_size=low or 0, max_size=min(high or 20, 20))
        case msgspec.inspect.BytesType(min_length=low, max_length=high):
            return st.binary(min_size=low or 0, max_size=max(low or 0, min(high or 40, 40)))
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case msgspec.inspect.VarTupleType(item_type=item, min_length=low):
            return st.lists(_of(item), min_size=low or 0, max_size=3).map(tuple)
        case msgspec.inspect.TupleType(item_types=items):
            return st.tuples(*[_of(item) for item in items])
    raise AssertionError(f"no strategy for {info}: teach this file the new type")
