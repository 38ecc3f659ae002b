"""Where the nonzeros of a pruned matrix are: gaps within blocks of rows and columns of like density.

Pruned weights thin out by row (a neuron that hardly listens) and by column (an input that hardly says anything). Rows
and columns are sorted into a few classes, and the elements of each pair of classes, taken in order, are coded as gaps
(Deep Compression, arXiv:1510.00149, section 3, codes gaps of the whole) under the density of that block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isqrt, log2

from edgepress_protocol.container.pieces import Cursor, varint
from edgepress_protocol.container.rans import Reader, Writer, density_level, from_byte, normalized, to_byte
from edgepress_protocol.errors import Rejected

MAX_CLASSES = 16
_TRIED = (1, 2, 3, 4, 6, 8, 12)


def write_places(places: Sequence[int], elements: int, width: int) -> tuple[bytes, Writer, list[int]]:
    """Write ascending places of a matrix of `elements`, `width` to a row.

    Return the models' parameters, the writer with the coded places, and the order in which a reader will see them.
    """
    height = elements // width
    rows, columns = _best_classes(places, height, width)
    row_classes, column_classes = max(rows) + 1, max(columns) + 1
    out = [bytes([row_classes - 1 | column_classes - 1 << 4]), varint(width)]
    writer = Writer()
    for classes, count in ((rows, row_classes), (columns, column_classes)):
        if count > 1:
            weights = _weights(classes, count)
            out.append(weights)
            writer.symbols(normalized([from_byte(weight) for weight in weights]), classes)
    blocks: list[list[int]] = [[] for _ in range(row_classes * column_classes)]
    row_rank, column_rank = _ranks(rows), _ranks(columns)
    sizes = Counter(rows), Counter(columns)
    for place in places:
        row, column = divmod(place, width)
        klass = columns[column]
        at = row_rank[row] * sizes[1][klass] + column_rank[column]
        blocks[rows[row] * column_classes + klass].append(at)
    order: list[int] = []
    members = _members(rows, row_classes, width), _members(columns, column_classes, 1)
    for index, block in enumerate(blocks):
        block.sort()
        row_class, column_class = divmod(index, column_classes)
        here = members[0][row_class], members[1][column_class]
        out.append(varint(len(block)))
        if block:
            writer.gaps(density_level(len(here[0]) * len(here[1]), len(block)), block)
            order += _unfold(block, *here)
    return b"".join(out), writer, order


class Plan:
    """The parameters that `write_places` wrote, read back and checked."""

    def __init__(self, cursor: Cursor, elements: int) -> None:
        """Read them.

        Raises:
            Rejected: they contradict themselves.
        """
        classes = cursor.byte()
        self._classes = (classes & 15) + 1, (classes >> 4) + 1
        width = cursor.varint(elements)
        if not width or elements % width:
            raise Rejected(f"container: rows of {width} do not make up {elements} elements")
        self._width, self._height = width, elements // width
        self._models = [cursor.take(count) if count > 1 else b"" for count in self._classes]
        self._counts = [cursor.varint(elements) for _ in range(self._classes[0] * self._classes[1])]
        self.count = sum(self._counts)
        sorted_ = zip((self._height, self._width), self._classes, strict=True)
        self.decisions = self.count + sum(length for length, count in sorted_ if count > 1)
        self.models = sum(map(bool, (*self._counts, *self._models)))

    def read(self, reader: Reader) -> list[int]:
        """Read the places, in the order in which they were written.

        Raises:
            Rejected: the stream is damaged.
        """
        rows, columns = (
            _members(_read_classes(reader, model, length), count, step)
            for model, length, count, step in zip(
                self._models, (self._height, self._width), self._classes, (self._width, 1), strict=True
            )
        )
        found: list[int] = []
        for index, count in enumerate(self._counts):
            if not count:
                continue
            row_class, column_class = divmod(index, self._classes[1])
            here = rows[row_class], columns[column_class]
            elements = len(here[0]) * len(here[1])
            if count > elements:
                raise Rejected(f"container: {count} nonzeros in a block of {elements}")
            found += _unfold(reader.gaps(density_level(elements, count), count, elements), *here)
        return found


def _read_classes(reader: Reader, model: bytes, length: int) -> list[int]:
    if not model:
        return [0] * length
    return reader.symbols(normalized([from_byte(weight) for weight in model]), length)


def _members(classes: Sequence[int], count: int, step: int) -> list[Sequence[int]]:
    """Return where each class's rows begin, or columns lie."""
    if count == 1:
        return [range(0, len(classes) * step, step)]
    members: list[list[int]] = [[] for _ in range(count)]
    for found, at in zip(classes, range(0, len(classes) * step, step), strict=True):
        members[found].append(at)
    return list(members)


def _unfold(block: list[int], rows: Sequence[int], columns: Sequence[int]) -> list[int]:
    """Turn places within a block into places of the matrix."""
    if isinstance(rows, range) and isinstance(columns, range):  # all of the matrix
        return block
    wide = len(columns)
    return [rows[at // wide] + columns[at % wide] for at in block]


def _ranks(classes: Sequence[int]) -> list[int]:
    seen: Counter[int] = Counter()
    ranks = []
    for klass in classes:
        ranks.append(seen[klass])
        seen[klass] += 1
    return ranks


def _weights(classes: Sequence[int], count: int) -> bytes:
    found = Counter(classes)
    return bytes(to_byte(found[klass]) for klass in range(count))


def _best_classes(places: Sequence[int], height: int, width: int) -> tuple[list[int], list[int]]:
    """Choose how many classes of rows and columns pay, by the entropy of the blocks and of the classes themselves."""
    in_row: list[list[int]] = [[] for _ in range(height)]
    for place in places:
        in_row[place // width].append(place % width)
    by_column = Counter(place % width for place in places)
    counts = [len(columns) for columns in in_row], [by_column[column] for column in range(width)]
    choices = [[_sorted_into(found, number) for number in _TRIED if number <= len(found)] for found in counts]
    best = (float("inf"), choices[0][0], choices[1][0])
    for rows in choices[0]:
        in_class = [Counter[int]() for _ in range(max(rows) + 1)]
        for klass, found in zip(rows, in_row, strict=True):
            in_class[klass].update(found)
        for columns in choices[1]:
            blocks: Counter[tuple[int, int]] = Counter()
            for klass, by_columns in enumerate(in_class):
                for column, number in by_columns.items():
                    blocks[klass, columns[column]] += number
            sizes = Counter(rows), Counter(columns)
            bits = sum(_bits(chosen, sizes[0][pair[0]] * sizes[1][pair[1]]) for pair, chosen in blocks.items())
            bits += sum(_naming_bits(classes) for classes in (rows, columns)) + 10 * (max(rows) + 1) * (
                max(columns) + 1
            )
            best = min(best, (bits, rows, columns))
    return best[1], best[2]


def _sorted_into(counts: Sequence[int], number: int) -> list[int]:
    """Sort counts into classes, evenly by their square root, in which the noise of every count is alike."""
    roots = [isqrt(count << 16) for count in counts]
    lowest, highest = min(roots), max(roots)
    span = highest - lowest + 1
    classes = [(root - lowest) * number // span for root in roots]
    names = {klass: name for name, klass in enumerate(sorted(set(classes)))}
    return [names[klass] for klass in classes]


def _bits(chosen: int, elements: int) -> float:
    if chosen in {0, elements}:
        return 0.0
    share = chosen / elements
    return -elements * (share * log2(share) + (1 - share) * log2(1 - share))


def _naming_bits(classes: Sequence[int]) -> float:
    found = Counter(classes)
    if len(found) == 1:
        return 0.0
    return 8 * len(found) - sum(count * log2(count / len(classes)) for count in found.values())
