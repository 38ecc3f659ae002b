"""What the tests of low_rank have in common: kernels of a known rank, and what factors cost and amount to."""

from __future__ import annotations

import numpy as np
import torch
from edgepress_host.press.measure import count_module
from technique_lab import noise


def macs(model, x):
    return count_module(model, np.asarray(x[:1], np.float32)).macs


def planted(kind, shape, rank):
    """A kernel (out, in, rows, columns) of a known rank in the sense of one method."""
    outputs, inputs, rows, columns = shape
    if kind == "tucker":
        core = noise(rank, rank, rows, columns)
        return torch.einsum("rskl,or,is->oikl", core, noise(outputs, rank, seed=1), noise(inputs, rank, seed=2))
    if kind == "spatial":
        return torch.einsum("irk,orl->oikl", noise(inputs, rank, rows), noise(outputs, rank, columns, seed=1))
    vectors = [noise(length, rank, seed=number) for number, length in enumerate(shape)]
    return torch.einsum("or,ir,kr,lr->oikl", *vectors)


def kernel_of(factors, size):
    """The kernel (out, in, size, size) that a sequence of convolutions without bias amounts to."""
    inputs = factors[0].in_channels
    impulses = torch.zeros(inputs, inputs, 2 * size - 1, 2 * size - 1)
    impulses[range(inputs), range(inputs), size - 1, size - 1] = 1
    with torch.no_grad():
        return factors(impulses).flip(2, 3).transpose(0, 1)
