"""Count what a model holds and does: parameters, non-zeros, multiply-accumulates, bytes on the wire."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import torch
from edgepress_protocol import codec
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgepress_host import exporters


class Counts(msgspec.Struct, frozen=True):
    """`macs` are multiply-accumulates of one sample, in convolutions and matrix products; None where not counted."""

    params: int
    nonzero_params: int
    macs: int | None


def count_module(model: nn.Module, sample: np.ndarray) -> Counts:
    """Count a torch module; `sample` has shape (1, …)."""
    quiet_copy = copy.deepcopy(model).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        quiet_copy(torch.from_numpy(np.array(sample)))
    weights = [weight.detach() for weight in model.parameters()]
    return Counts(
        params=sum(weight.numel() for weight in weights),
        nonzero_params=sum(int(torch.count_nonzero(weight)) for weight in weights),
        macs=counter.get_total_flops() // 2,
    )


def count_file(format_: str, content: bytes) -> Counts:
    """Count a file that came without a torch module."""
    stored = [weight for weight in exporters.get(format_).weights(content) if _is_parameter(weight)]
    return Counts(
        params=sum(weight.elements for weight in stored),
        nonzero_params=sum(weight.nonzero for weight in stored),
        macs=None,
    )


def recount(before: Counts, format_: str, old: bytes, new: bytes) -> Counts:
    """Return the counts after a step on the file: weights that quantization rounded to zero are zeros now."""
    earlier, later = (
        [w for w in exporters.get(format_).weights(content) if len(w.shape) > 1] for content in (old, new)
    )
    # Scales are new floats beside the integers; floats that were there before are weights that stayed as they were.
    kept = {weight.sha256 for weight in earlier}
    held = earlier, [w for w in later if w.dtype not in {"float", "float32"} or w.sha256 in kept]
    elements = [sum(weight.elements for weight in weights) for weights in held]
    nonzero = [sum(weight.nonzero for weight in weights) for weights in held]
    if elements[0] != elements[1]:
        return before
    return msgspec.structs.replace(before, nonzero_params=before.nonzero_params - nonzero[0] + nonzero[1])


def _is_parameter(weight: exporters.Weight) -> bool:
    """Tell weights from shapes and from the scales and zero points of a file that is quantized already."""
    return "float" in weight.dtype or (weight.dtype in {"int8", "uint8", "int4", "uint4"} and len(weight.shape) > 1)


def wire_bytes(content: bytes) -> int:
    """Bytes of the file as it travels, entropy-coded."""
    return len(codec.best(content)[1])


def same_content(format_: str, before: bytes, after: bytes) -> bool:
    """Tell whether two files hold the same stored tensors and the same operators, whatever they are called."""
    exporter = exporters.get(format_)
    stored = [sorted((w.dtype, w.shape, w.sha256) for w in exporter.weights(content)) for content in (before, after)]
    kinds = [sorted(exporter.operators(content)) for content in (before, after)]
    return stored[0] == stored[1] and kinds[0] == kinds[1]
