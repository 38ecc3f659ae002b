"""What a variant is made of: its tensors, and the files (blobs) that hold it, by digest.

A blob is a file as the agent keeps it; its wire form is the same file as it travels, perhaps compressed,
cut into chunks that carry their own digests so that a bad chunk is refused alone.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec

CHUNK_BYTES = 64 * 1024
"""Measured best on links of 10 Mbit/s and above; see docs/adr on the wire."""

MAX_BLOB_BYTES = 4 * 1024**3
MAX_CHUNKS = 1 << 20

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
ChunkDigest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
BlobSize = Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOB_BYTES)]
Codec = Literal["none", "zstd", "shuffle4-zstd", "container"]
Dimension = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None
MAX_TEXT = 4096
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Quantization(msgspec.Struct, frozen=True):
    """Affine quantization of an input or output: real = scale * (stored - zero_point)."""

    scale: float
    zero_point: int


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output of a model.

    `dtype` is numpy's name; a dimension that is `None` is free (the batch, as a rule).
    """

    name: Name
    dtype: Name
    shape: Annotated[tuple[Dimension, ...], msgspec.Meta(max_length=16)]
    quantization: Quantization | None = None


class Wire(msgspec.Struct, frozen=True):
    """A blob as it travels: `codec` undone gives the blob; digests are of the travelling bytes."""

    codec: Codec
    sha256: Sha256
    size_bytes: BlobSize
    chunk_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 20)]
    chunks: Annotated[tuple[ChunkDigest, ...], msgspec.Meta(min_length=1, max_length=MAX_CHUNKS)]

    def __post_init__(self) -> None:
        """Hold count and size together."""
        if len(self.chunks) != -(-self.size_bytes // self.chunk_bytes):
            raise ValueError("wire form: the number of chunk digests does not fit the size")

    def chunk_length(self, index: int) -> int:
        """Length of chunk `index` in bytes; the last one is what is left."""
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)


class Blob(msgspec.Struct, frozen=True):
    """A file by content: digest and size of the file itself, and the form in which it travels."""

    sha256: Sha256
    size_bytes: BlobSize
    wire: Wire


class EvaluationSet(msgspec.Struct, frozen=True):
    """Labelled samples pushed to a device: a safetensors file with `x` (N, …) and `y` (N,).

    A model of several inputs finds them as `x.<i>` (i: position in the manifest's inputs). A model that keeps a state
    starts anew with each sample; one whose samples have a dimension more than its input, (N, T, …), runs their T
    steps, and the last one's output counts. `metric` is computed on the device; only the built-in ones can be, since
    no code of the host's travels.
    """

    blob: Blob
    samples: Annotated[int, msgspec.Meta(ge=1)]
    metric: Literal["top1", "neg_mse"] = "top1"


class Golden(msgspec.Struct, frozen=True):
    """Golden vectors: what the host's runtime computed from this very file.

    A safetensors file with `input.<i>` and `output.<i>` (i: position in the manifest's inputs and outputs),
    each (N, …) with N samples, which are run in this order. An output passes when max|device - host| <= atol +
    rtol * max|host|, in the stored type's own steps for integer outputs.
    """

    blob: Blob
    atol: float
    rtol: float


class Carried(msgspec.Struct, frozen=True):
    """A state that a model takes and gives: what one run puts into `output`, the next finds in `input`.

    At first it is zero. Neither golden vectors nor evaluation sets hold the input.
    """

    input: Name
    output: Name


class Manifest(msgspec.Struct, frozen=True, tag="manifest"):
    """A variant in one format, ready to run."""

    variant: Name
    format: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,31}\Z")]
    model: Blob
    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=64)]
    golden: Golden | None = None
    needs: Text = ""
    created_unix_s: int = 0
    carried: Annotated[tuple[Carried, ...], msgspec.Meta(max_length=64)] = ()


def digest(data: bytes) -> str:
    """SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()
