"""A static entropy coder: range asymmetric numeral systems (Duda, arXiv:1311.2540), in integers alone.

The state x stays in [2^16, 2^32) and moves 16-bit words. Frequencies of a model add up to 2^12. What is encoded last is
decoded first, so an encoder gathers its steps and `flush` walks them backwards. Every model is computed from whole
numbers: each board and each Python gives the very same tables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, count

from edgepress_protocol.errors import Rejected

SCALE_BITS = 12
SCALE = 1 << SCALE_BITS
LOWEST = 1 << 16
MAX_RAW_BITS = 12

Slots = list[tuple[int, int, int]]
"""For each of the 4096 slots: a symbol, its frequency, and where its slots begin."""


class Writer:
    """Gathers symbols in the order in which they will be read."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, int]] = []

    def symbols(self, frequencies: Sequence[int], symbols: Iterable[int]) -> None:
        """Write symbols of one model."""
        at = [(start, frequency, SCALE_BITS) for start, frequency in zip(starts(frequencies), frequencies, strict=True)]
        self._steps.extend(map(at.__getitem__, symbols))

    def gaps(self, level: int, places: Iterable[int]) -> None:
        """Write ascending places as gaps at a density level."""
        shift, frequencies = gap_model(level)
        first, before, low = starts(frequencies), -1, (1 << shift) - 1
        for place in places:
            high, rest = (place - before - 1) >> shift, (place - before - 1) & low
            self._steps.extend([(first[GAPS], frequencies[GAPS], SCALE_BITS)] * (high // GAPS))
            high %= GAPS
            self._steps.append((first[high], frequencies[high], SCALE_BITS))
            self._steps.append((rest, 1, shift))
            before = place

    def flush(self) -> bytes:
        """Return the stream: the state (u32), then the words (u16), little-endian."""
        state, words = LOWEST, []
        for start, frequency, bits in reversed(self._steps):
            if state >= (frequency << 32) >> bits:
                words.append(state & 0xFFFF)
                state >>= 16
            quotient, rest = divmod(state, frequency)
            state = (quotient << bits) + rest + start
        return struct.pack(f"<I{len(words)}H", state, *reversed(words))


def slots(frequencies: Sequence[int], first: int = 0, step: int = 1) -> Slots:
    """Lay out a model for reading; symbols are numbered from `first`, in steps of `step`."""
    table: Slots = []
    for found in zip(count(first, step), frequencies, starts(frequencies)):
        table += [found] * found[1]
    return table


def starts(frequencies: Sequence[int]) -> list[int]:
    """Lay out a model for writing: the first slot of each symbol."""
    return [0, *accumulate(frequencies)][:-1]


def to_byte(count: int) -> int:
    """Round a count to a floating-point number of one byte: 5 bits of exponent, 3 of mantissa.

    >>> [from_byte(to_byte(count)) for count in (0, 1, 7, 9, 100, 1000)]
    [0, 1, 7, 9, 104, 1024]
    """
    if count < 16:
        return count
    exponent = count.bit_length() - 4
    rounded = (count + (1 << (exponent - 1))) >> exponent
    return min(255, (exponent << 3) + rounded)


def from_byte(code: int) -> int:
    """Undo `to_byte`."""
    exponent = max(0, (code >> 3) - 1)
    return (code - (exponent << 3)) << exponent


def normalized(weights: Sequence[int]) -> list[int]:
    """Scale weights to frequencies that add up to 4096; what has a weight keeps a frequency of at least 1.

    Raises:
        Rejected: no symbol has a weight, or there are too many.
    """
    total, used = sum(weights), sum(1 for weight in weights if weight)
    if not total or used > SCALE // 2:
        raise Rejected("container: a model without symbols")
    frequencies = [weight and max(1, weight * (SCALE - used) // total) for weight in weights]
    largest = max(range(len(frequencies)), key=frequencies.__getitem__)
    frequencies[largest] += SCALE - sum(frequencies)
    return frequencies


class Reader:
    """Reads a stream of `Writer`, whole runs of symbols at a time."""

    def __init__(self, data: bytes) -> None:
        """Open a stream.

        Raises:
            Rejected: it is no stream of this coder.
        """
        if len(data) < 4 or len(data) % 2:
            raise Rejected(f"container: entropy-coded stream of {len(data)} bytes")
        self._state, *words = struct.unpack(f"<I{len(data) // 2 - 2}H", data)
        if self._state < LOWEST:
            raise Rejected("container: damaged entropy-coded stream")
        words.reverse()
        self._words = words

    def symbols(self, frequencies: Sequence[int], reads: int) -> list[int]:
        """Read `reads` symbols of one model.

        Raises:
            Rejected: the stream is cut short.
        """
        found: list[int] = []
        model = slots(frequencies)
        state, take = self._state, self._words.pop
        add, last, bits, lowest = found.append, SCALE - 1, SCALE_BITS, LOWEST
        try:
            for _ in range(reads):
                slot = state & last
                symbol, frequency, start = model[slot]
                state = frequency * (state >> bits) + slot - start
                if state < lowest:
                    state = state << 16 | take()
                add(symbol)
        except IndexError:
            raise Rejected("container: an entropy-coded stream is cut short") from None
        self._state = state
        return found

    def gaps(self, level: int, reads: int, elements: int) -> list[int]:
        """Read `reads` ascending places below `elements`, coded as gaps at a density level.

        Raises:
            Rejected: the stream is cut short, or leads past the last element.
        """
        found: list[int] = []
        state, take = self._state, self._words.pop
        add, last, bits, lowest = found.append, SCALE - 1, SCALE_BITS, LOWEST
        shift, model = gap_slots(level)
        place, low, far = -1, (1 << shift) - 1, GAPS << shift
        try:
            for _ in range(reads):
                slot = state & last
                step, frequency, start = model[slot]
                state = frequency * (state >> bits) + slot - start
                if state < lowest:
                    state = state << 16 | take()
                while step > far:
                    place += far
                    if place > elements:
                        raise Rejected("container: a gap leads past the tensor")
                    slot = state & last
                    step, frequency, start = model[slot]
                    state = frequency * (state >> bits) + slot - start
                    if state < lowest:
                        state = state << 16 | take()
                place += step + (state & low)
                state >>= shift
                if state < lowest:
                    state = state << 16 | take()
                add(place)
        except IndexError:
            raise Rejected("container: an entropy-coded stream is cut short") from None
        if place >= elements:
            raise Rejected("container: a gap leads past the tensor")
        self._state = state
        return found

    def close(self) -> None:
        """Check that the stream was read to its very end.

        Raises:
            Rejected: it was not: something in it is damaged.
        """
        if self._state != LOWEST or self._words:
            raise Rejected("container: damaged entropy-coded stream")


# ---- gaps between rare events: geometric, with the low bits of long gaps as they are

GAPS = 48
"""Symbols of a gap model; the one after the last says that nothing comes for that long."""

_QUARTERS = (3938502376, 3311872529, 2784941738, 2341847524)
"""2^32 · 2^-(j + 1/2)/4: one over a density, in the middle of each quarter of an octave."""

_EDGES = (304, 362, 431)
"""256 · 2^(j/4): where the second, third and last quarter of an octave begin."""


def density_level(elements: int, chosen: int) -> int:
    """Sort a density into quarter octaves: 0 is every element, 4 is half of them, 8 a quarter.

    >>> [density_level(1000, chosen) for chosen in (1000, 500, 250, 20)]
    [0, 4, 8, 22]
    """
    inverse = (elements << 16) // chosen
    octave = inverse.bit_length() - 17
    mantissa = inverse >> (octave + 8)
    return 4 * octave + sum(mantissa >= edge for edge in _EDGES)


@lru_cache(maxsize=256)
def gap_model(level: int) -> tuple[int, list[int]]:
    """Return how many low bits a gap has at a density level, and the frequencies of what is above them."""
    density = _QUARTERS[level % 4] >> (level // 4)
    shift = min(max(0, level // 4 - 2), MAX_RAW_BITS)
    stays = (1 << 32) - density
    for _ in range(shift):
        stays = stays * stays >> 32
    weights, left = [], 1 << 32
    for _ in range(GAPS):
        after = left * stays >> 32
        weights.append(max(1, left - after))
        left = after
    return shift, normalized([*weights, max(1, left)])


@lru_cache(maxsize=64)
def gap_slots(level: int) -> tuple[int, Slots]:
    """Return the low bits of a gap, and slots whose symbols are the shortest step that each stands for."""
    shift, frequencies = gap_model(level)
    return shift, slots(frequencies, 1, 1 << shift)
