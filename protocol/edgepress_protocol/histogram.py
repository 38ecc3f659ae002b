"""A mergeable histogram of latencies: log-linear buckets, after Gil Tene's HdrHistogram.

Every power of two of nanoseconds is cut into 128 equal buckets, so that a percentile is right to 0.4 %
and two histograms, of two windows or of two boards, merge by adding counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

_SUB_BITS = 7
_SUB = 1 << _SUB_BITS
_MAX_NS = 1 << 45  # about ten hours; a longer inference counts as this long


def bucket_of(value_ns: int) -> int:
    """Index of the bucket that holds `value_ns`."""
    value = min(max(value_ns, 0), _MAX_NS)
    shift = max(value.bit_length() - _SUB_BITS - 1, 0)
    return shift * _SUB + (value >> shift)


_MAX_INDEX = bucket_of(_MAX_NS)


def middle_of(index: int) -> float:
    """Middle of a bucket, in nanoseconds."""
    if index < 2 * _SUB:
        return float(index)
    shift = index // _SUB - 1
    low = (index - shift * _SUB) << shift
    return low + ((1 << shift) - 1) / 2


class Histogram(msgspec.Struct, frozen=True):
    """Counts by bucket, sparse: parallel tuples of bucket index (ascending) and count."""

    indexes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what `of` and `merge` could not have made."""
        if len(self.indexes) != len(self.counts):
            raise ValueError("histogram: as many counts as indexes")
        if any(later <= earlier for earlier, later in zip(self.indexes, self.indexes[1:], strict=False)):
            raise ValueError("histogram: indexes must ascend")
        if any(count < 1 for count in self.counts) or any(not 0 <= i <= _MAX_INDEX for i in self.indexes):
            raise ValueError("histogram: a count or an index is out of range")

    @staticmethod
    def of(values_ns: Iterable[int]) -> Histogram:
        """Count latencies, in nanoseconds."""
        counts: dict[int, int] = {}
        for value in values_ns:
            index = bucket_of(value)
            counts[index] = counts.get(index, 0) + 1
        return _from_counts(counts)

    def merge(self, other: Histogram) -> Histogram:
        """Add two histograms.

        >>> Histogram.of([10, 20]).merge(Histogram.of([20])).counts
        (1, 2)
        """
        counts = dict(zip(self.indexes, self.counts, strict=True))
        for index, count in zip(other.indexes, other.counts, strict=True):
            counts[index] = counts.get(index, 0) + count
        return _from_counts(counts)

    @property
    def total(self) -> int:
        """Number of latencies counted."""
        return sum(self.counts)

    def percentile_ms(self, percent: float) -> float:
        """Latency in ms below or at which `percent` of the runs lie (nearest rank).

        Raises:
            ValueError: nothing was counted.
        """
        if not self.counts:
            raise ValueError("no percentile of an empty histogram")
        rank = max(1, -(-self.total * percent // 100))
        seen = 0
        for index, count in zip(self.indexes, self.counts, strict=True):
            seen += count
            if seen >= rank:
                return middle_of(index) / 1e6
        return middle_of(self.indexes[-1]) / 1e6


def _from_counts(counts: dict[int, int]) -> Histogram:
    indexes = tuple(sorted(counts))
    return Histogram(indexes, tuple(counts[index] for index in indexes))
