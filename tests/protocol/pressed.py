"""Files of weights that were pruned, clustered and quantized, as safetensors, without any library for them."""

from __future__ import annotations

import json
import random
import struct
from array import array
from collections.abc import Callable, Mapping

Tensor = tuple[str, tuple[int, ...], bytes]


def safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Write a file of named tensors: dtype, shape, bytes."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, at + len(data))}
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def floats(rows: int, columns: int, value: Callable[[random.Random, int, int], float], seed: int = 1) -> Tensor:
    """Make a matrix of float32 from a function of its place."""
    chance = random.Random(seed)
    values = array("f", [value(chance, row, column) for row in range(rows) for column in range(columns)])
    return "F32", (rows, columns), values.tobytes()


def dense(chance: random.Random, _row: int, _column: int) -> float:
    return chance.gauss(0, 0.05)


def clustered(chance: random.Random, _row: int, _column: int) -> float:
    return round(chance.gauss(0, 2.5)) * 0.0371


def pruned_and_clustered(density: float) -> Callable[[random.Random, int, int], float]:
    """Weights of which a share is left, of sixteen values, as Deep Compression leaves them."""
    return lambda chance, _row, _column: (
        0.0 if chance.random() >= density else (chance.randrange(1, 9) * (1 if chance.random() < 0.5 else -1)) * 0.0625
    )


def uneven(chance: random.Random, row: int, column: int) -> float:
    """Pruned and clustered, with rows and columns that were spared more than others."""
    return pruned_and_clustered(0.12 if row % 4 == 0 and 50 <= column < 110 else 0.005)(chance, row, column)


def per_channel(density: float) -> Callable[[random.Random, int, int], float]:
    """Weights of sixteen values that each row scales in its own way, as a batch-norm folded into it does."""
    shared = pruned_and_clustered(density)
    return lambda chance, row, column: shared(chance, row, column) * (1 + row / 7.3 + row * row / 91)


def int8(rows: int, columns: int, seed: int = 2) -> Tensor:
    """Quantized weights."""
    chance = random.Random(seed)
    values = [max(-127, min(127, round(chance.gauss(0, 25)))) for _ in range(rows * columns)]
    return "I8", (rows, columns), struct.pack(f"{len(values)}b", *values)


def halves(count: int) -> bytes:
    """Weights of float16."""
    chance = random.Random(4)
    return struct.pack(f"<{count}e", *(chance.gauss(0, 0.05) for _ in range(count)))


def every_layout() -> bytes:
    """A file that has a use for each layout."""
    return safetensors(
        {
            "dense": ("F16", (40, 50), halves(2000)),
            "bias": floats(1, 120, dense, seed=3),
            "clustered": floats(40, 60, clustered),
            "sparse": floats(140, 120, pruned_and_clustered(0.26)),
            "sparser": floats(200, 150, pruned_and_clustered(0.02)),
            "int8": int8(40, 60),
            "per-channel": floats(12, 200, per_channel(1.0), seed=5),
            "sparse-per-channel": floats(12, 400, per_channel(0.2), seed=6),
            "shape": ("I64", (12,), struct.pack("<12q", *range(12))),
        }
    )
