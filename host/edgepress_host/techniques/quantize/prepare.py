"""What quantization does to the torch module before the export; a step of its own that recipes do not name.

The file's quantizer takes over the weights as they leave here: those that learned rounding or mixed precision put on
a grid lie on it exactly, so that rounding them again changes nothing.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
from edgepress_protocol.errors import UsageError
from torch import nn

from edgepress_host.press.folding import fold_batch_norms
from edgepress_host.press.sensitivity import named
from edgepress_host.press.tracing import Traced
from edgepress_host.press.training import one_thread
from edgepress_host.technique import Stage, StepFailed, Technique, Workbench, for_layer
from edgepress_host.techniques.quantize import adaround, correction, equalization, mixed
from edgepress_host.techniques.quantize.grid import Bits, WeightRange
from edgepress_host.techniques.quantize.simulation import Dense, Simulation

KINDS: tuple[type[Dense], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Mixed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the bits of all layers together may cost; one of the two.

    `size`: bytes of the weights, as a share of what they take with 8 bits each. `max_drop`: accuracy lost on
    validate by quantizing the weights, in the metric's unit.
    """

    size: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    max_drop: Annotated[float, msgspec.Meta(ge=0)] | None = None

    def check(self) -> None:
        """Raise UsageError unless exactly one is given."""
        if (self.size is None) == (self.max_drop is None):
            raise UsageError("mixed: expected one of size and max_drop")


class QuantizeLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own."""

    skip: bool | None = None
    bits: Bits | None = None


class Prepare(Technique, frozen=True):
    """Equalize, choose bits, learn the rounding and correct biases, in this order; options as in Quantize."""

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("calibrate", "validate")
    examples: ClassVar[tuple[dict[str, Any], ...]] = ()

    equalize: Literal["none", "cross_layer", "smooth"]
    alpha: float
    rounding: Literal["nearest", "adaround"]
    rounding_steps: int
    bias_correction: bool
    mixed: Mixed | None
    bits: Bits
    per_channel: bool
    symmetric: bool
    weight_range: WeightRange
    samples: int
    skip: bool
    layers: dict[str, QuantizeLayer]
    types: dict[str, QuantizeLayer]

    @property
    def tag(self) -> str:
        """What is done, for messages."""
        parts = {
            "equalize": self.equalize != "none",
            "mixed": self.mixed is not None,
            "rounding": self.rounding != "nearest",
            "bias_correction": self.bias_correction,
        }
        return " and ".join(name for name, wanted in parts.items() if wanted)

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a module that is easier to quantize. Raises StepFailed."""
        x = torch.from_numpy(bench.calibration(self.samples).copy())
        changed = copy.deepcopy(model).eval()
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(bench.seed)
            fold_batch_norms(changed, x[:2])
            if self.equalize == "cross_layer":
                equalization.cross_layer(changed, Traced.of(changed, x[:2]), bench.note)
            elif self.equalize == "smooth":
                equalization.smooth(changed, Traced.of(changed, x[:2]), x, self.alpha, bench.note)
            self._same(model, changed, x[:8])
            simulation = self._simulation(changed)
            exact = copy.deepcopy(changed)
            if self.mixed is not None:
                other = self._bits(changed, 4 if self.bits == 8 else 8)
                # Bits that `layers` or `types` tell stay, whatever they are for the rest.
                pinned = {name for name, bits in simulation.bits.items() if bits == other[name]}
                chosen = mixed.choose(
                    changed, simulation, bench, size=self.mixed.size, max_drop=self.mixed.max_drop, pinned=pinned
                )
                simulation = simulation.with_bits(chosen)
                simulation.put_on_grid(changed)
            if self.rounding == "adaround":
                adaround.learn(changed, exact, simulation, x, steps=self.rounding_steps, bench=bench)
            if self.bias_correction:
                correction.correct(changed, exact, simulation, x, bench.note)
        return changed

    def _simulation(self, model: nn.Module) -> Simulation:
        bits = self._bits(model, self.bits)
        if not bits:
            raise StepFailed(f"{self.tag}: the model has no dense layer or convolution to quantize")
        return Simulation(bits=bits, per_channel=self.per_channel, symmetric=self.symmetric, method=self.weight_range)

    def _bits(self, model: nn.Module, default: Bits) -> dict[str, int]:
        """Bits of the layers that are to be quantized; `default` is for those that have none of their own."""
        whole = msgspec.structs.replace(self, bits=default)
        own = {
            name: for_layer(whole, self.layers, self.types, name, type(layer).__name__)
            for name, layer in named(model, KINDS).items()
        }
        return {name: options.bits for name, options in own.items() if not options.skip}

    def _same(self, before: nn.Module, after: nn.Module, x: torch.Tensor) -> None:
        """Refuse an equalization that changed what the model computes. Raises StepFailed."""
        # The order of sums alone changes far less.
        apart = equalization.distance(before, after, x)
        if apart > 1e-3:
            raise StepFailed(f'{self.tag}: the model\'s outputs moved by {apart:.1%}; use equalize = "none"')
