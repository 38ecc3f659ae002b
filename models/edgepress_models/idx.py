"""The IDX format of the MNIST family: a big-endian header, then unsigned bytes.

Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", section "File formats": two zero bytes,
a type code (0x08 is an unsigned byte), the number of dimensions, each dimension as a 32-bit big-endian number, then
the values in row-major order.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from edgepress_models import splits

_UNSIGNED_BYTE = 0x08


def parse(content: bytes, dimensions: int) -> npt.NDArray[np.uint8]:
    """Return the array that `content` holds, as a read-only view of it.

    Raises:
        ValueError: the magic number, the number of dimensions, or the length is not what it should be.

    >>> parse(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), dimensions=1).tolist()
    [7, 8, 9]
    """
    expected_magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if content[:4] != expected_magic:
        raise ValueError(f"expected IDX magic {expected_magic.hex()}, got {content[:4].hex() or 'nothing'}")
    header_bytes = 4 + 4 * dimensions
    if len(content) < header_bytes:
        raise ValueError(f"expected an IDX header of {header_bytes} bytes, got {len(content)}")
    shape = struct.unpack(f">{dimensions}I", content[4:header_bytes])
    if len(content) - header_bytes != math.prod(shape):
        raise ValueError(f"expected {math.prod(shape)} values for shape {shape}, got {len(content) - header_bytes}")
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def normalised(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], mean: float, std: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return images (N, H, W) as float32 (N, 1, H, W) and labels as int64 (N,), both read-only.

    `mean` and `std` are of pixels scaled to [0, 1]; the result has mean 0 and deviation 1 over the pixels that they
    were measured on.
    """
    # In place, because 60,000 images take 190 MB as float32.
    scaled = images.astype(np.float32)[:, np.newaxis]
    scaled /= np.float32(255 * std)
    scaled -= np.float32(mean / std)
    wide = labels.astype(np.int64)
    splits.shared(scaled, wide)
    return scaled, wide
