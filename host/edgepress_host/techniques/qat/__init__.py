"""Quantization-aware training: the model learns with the rounding that the runtime will do, and so do the scales."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from edgepress_protocol.errors import UsageError
from torch import nn

from edgepress_host.press.strict import changed
from edgepress_host.press.trained import Taught
from edgepress_host.press.training import LearningRate
from edgepress_host.technique import Stage, StepFailed, Trait, Workbench, check_patterns, for_layer
from edgepress_host.techniques.qat.capture import NotCaptured, capture
from edgepress_host.techniques.qat.program import BASE
from edgepress_host.techniques.qat.rounding import (
    Weighted,
    freeze,
    hold_scales,
    others,
    round_activations,
    round_weights,
    weighted,
)

Bits = Literal[8, 4, 2, 1]


class QatLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own."""

    bits: Bits | None = None
    skip: bool | None = None


class Qat(Taught, frozen=True):
    """Train with weights of `bits` and activations of 8 bits (or none), whose scales learn, too, unless they are fixed.

    It concerns Conv1d, Conv2d and Linear; the first and the last of them have `edges` bits, unless `layers` or `types`
    says otherwise. Weights have a symmetric grid per output channel, activations an asymmetric one per tensor, which
    starts from the range of the first `observe` samples of the calibrate split. `teacher` trains with soft targets of
    the original beside the labels, with `temperature` and `alpha`. Batch normalisation is folded into the layers before
    training, and dropout is left out.
    """

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("train", "calibrate")
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"samples": 64, "observe": 16},
        {"samples": 64, "bits": 2, "activations": "none", "teacher": True},
    )

    bits: Bits = 8
    activations: Literal[8, "none"] = 8
    edges: Bits = 8
    scales: Literal["learned", "fixed"] = "learned"
    observe: Annotated[int, msgspec.Meta(ge=1)] = 256
    skip: bool = False
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    lr: LearningRate = 3e-4
    layers: dict[str, QatLayer] = msgspec.field(default_factory=dict)
    types: dict[str, QatLayer] = msgspec.field(default_factory=dict)

    def base(self) -> str | None:
        """Return the program that the result is written down as."""
        return BASE

    def makes(self) -> frozenset[Trait]:
        """Return what the step leaves in the weights."""
        return frozenset({"grid"})

    def breaks(self) -> frozenset[Trait]:
        """Shared values and other grids move in training; a grid of one bit has no zero."""
        overrides = (*self.layers.values(), *self.types.values())
        one_bit = 1 in {self.bits, self.edges, *(override.bits for override in overrides)}
        return frozenset({"shared", "grid", "zeros"} if one_bit else {"shared", "grid"})

    def check(self) -> None:
        """Raise UsageError for options of something that was not asked for."""
        super().check()
        if "observe" in changed(self) and self.activations == "none":
            raise UsageError("observe: it is for ranges of activations; give activations = 8, or leave it away")

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a program whose weights and activations are on grids. Raises StepFailed."""
        samples = bench.calibration(self.observe)
        try:
            captured = capture(model, bench.calibration(2))
        except NotCaptured as error:
            raise StepFailed(str(error)) from error
        program = captured.program
        layers = weighted(captured)
        bits = self._bits(layers)
        round_weights(program, bits)
        if self.activations == 8:
            round_activations(program, [layer for layer in layers if layer.weight in bits], samples)
        if self.scales == "fixed":
            hold_scales(program)
        self.train(program, bench, self.lesson(bench))
        self._tell(bits, others(captured, layers), bench)
        return freeze(program)

    def _bits(self, layers: list[Weighted]) -> dict[str, int]:
        """Return the bits of each weight that is quantized. Raises StepFailed where none is."""
        check_patterns(self.layers, self.types, {layer.name: layer.type_ for layer in layers})
        edges = {layers[0].weight, layers[-1].weight} if layers else set()
        found: dict[str, int] = {}
        for layer in layers:
            own = msgspec.structs.replace(self, bits=self.edges) if layer.weight in edges else self
            options = for_layer(own, self.layers, self.types, layer.name, layer.type_)
            if not options.skip:
                found[layer.weight] = options.bits
        if not found:
            raise StepFailed("no Conv1d, Conv2d or Linear layer is left to quantize; see skip, layers and types")
        return found

    def _tell(self, bits: dict[str, int], left: list[str], bench: Workbench) -> None:
        low = sorted({width for width in bits.values() if width < 8}, reverse=True)
        if low:
            bench.note(
                f"weights of {' and '.join(map(str, low))} bits are packed in ONNX files, and expanded to int8 as one "
                "is loaded; TFLite files store them as int4, whose convolutions LiteRT runs slower than int8"
            )
        if self.activations == "none":
            bench.note("activations stay fp32: the file is smaller, and its layers run in fp32")
        if left:
            bench.note(f"left in fp32, since QAT concerns convolutions and dense layers: {', '.join(left)}")
