"""Quantized weights in a torch module: the numbers of the file's integers, in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgepress_host.techniques.quantize.grid import Integers, WeightRange, integers

Dense = nn.Linear | nn.Conv1d | nn.Conv2d


class Simulation(NamedTuple):
    """How the weights of some layers, by name, will be rounded."""

    bits: Mapping[str, int]
    per_channel: bool
    symmetric: bool
    method: WeightRange

    def with_bits(self, bits: Mapping[str, int]) -> Simulation:
        """Return the same with other bits for some layers."""
        return self._replace(bits={**self.bits, **bits})

    def integers(self, weight: Tensor, bits: int) -> Integers:
        """Round a weight (outputs, …)."""
        kept = (0,) if self.per_channel else ()
        return integers(weight.detach().numpy(), bits, kept, symmetric=self.symmetric, method=self.method)

    def put_on_grid(self, model: nn.Module) -> None:
        """Round the weights of a model, in place."""
        for name, bits in self.bits.items():
            round_layer(self, model, name, bits)


def round_layer(simulation: Simulation, model: nn.Module, name: str, bits: int) -> None:
    """Round one layer's weight, in place."""
    weight = model.get_parameter(f"{name}.weight")
    with torch.no_grad():
        weight.copy_(torch.from_numpy(simulation.integers(weight, bits).real))
