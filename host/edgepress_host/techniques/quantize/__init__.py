"""Post-training quantization: weights of 16 to 1 bits, activations of 8 or 16, in the way each runtime runs them.

The exported file is what gets quantized. Options that change the torch module beforehand (equalization, learned
rounding, bias correction, bits by sensitivity) make up a step of their own, `Prepare`, done before the export.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from edgepress_protocol.errors import UsageError

from edgepress_host.press.strict import changed
from edgepress_host.technique import Stage, StepFailed, Technique, Trait, Workbench, check_patterns, for_layer
from edgepress_host.techniques.quantize.grid import Bits, WeightRange, found_bits, shares_values
from edgepress_host.techniques.quantize.plan import ActivationPlan, WeightPlan, listed
from edgepress_host.techniques.quantize.prepare import Mixed, Prepare, QuantizeLayer
from edgepress_host.techniques.quantize.ranges import Method

_CASTS = ("fp16", "bf16")
_OF_WEIGHTS = ("bits", "granularity", "symmetry", "weight_range", "layers", "types")
_OF_PREPARATION = ("equalize", "bias_correction", "rounding", "mixed")
_OF_ACTIVATIONS = ("activations", "activation_symmetry", "calibration", "io")


class Quantize(Technique, frozen=True):
    """`mode`: fp16 or bf16 weights; weight_only; dynamic (activations as they come); static (calibrated activations).

    Weights have `bits`, and a scale for each channel, for the tensor, or for each block of a dense layer's inputs
    (`block_size`); `weight_range` mse clips them to lose the least. Where a runtime has no kernel, weights are stored
    in the fewest bits that run, and a note says so; in ONNX files, 1 bit is expanded when the file is loaded.

    `calibration` chooses the range of an activation from `samples` of the calibrate split: everything seen (minmax),
    all but the outermost values (percentile), what loses the least information (entropy), or the least squared error
    (mse). `mixed` gives each layer 8, 4 or 2 bits by its measured sensitivity.
    """

    stage: ClassVar[Stage] = "graph"
    reads: ClassVar[tuple[str, ...]] = ("calibrate",)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"mode": "fp16"},
        {"mode": "dynamic"},
        {"mode": "weight_only", "bits": 4},
        {"mode": "static", "samples": 32},
        {"mode": "static", "calibration": "entropy", "samples": 32},
        {"mode": "static", "calibration": "percentile", "samples": 32},
    )

    mode: Literal["fp16", "bf16", "weight_only", "dynamic", "static"]
    bits: Bits = 8
    granularity: Literal["channel", "tensor", "block"] = "channel"
    block_size: Literal[16, 32, 64, 128, 256] = 32
    symmetry: Literal["symmetric", "asymmetric"] = "symmetric"
    weight_range: WeightRange = "minmax"
    mixed: Mixed | None = None

    activations: Literal[8, 16] = 8
    activation_symmetry: Literal["symmetric", "asymmetric"] | None = None
    """None: as the runtime likes it best, which is asymmetric, but for 16 bits in TFLite."""
    calibration: Method = "minmax"
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    samples: Annotated[int, msgspec.Meta(ge=1)] = 200
    io: Literal["float32", "int8"] = "float32"
    """Type of a static TFLite file's input and output; ONNX files keep float32."""

    equalize: Literal["none", "cross_layer", "smooth"] = "none"
    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """Of smooth: how much of the activations' range goes over to the weights."""
    rounding: Literal["nearest", "adaround"] = "nearest"
    rounding_steps: Annotated[int, msgspec.Meta(ge=1)] = 500
    bias_correction: bool = False

    skip: bool = False
    layers: dict[str, QuantizeLayer] = msgspec.field(default_factory=dict)
    types: dict[str, QuantizeLayer] = msgspec.field(default_factory=dict)

    def makes(self) -> frozenset[Trait]:
        """Values of few bits, fp16 among them."""
        return frozenset({"grid"})

    def breaks(self) -> frozenset[Trait]:
        """Values of few bits would be rounded twice; one bit has no zero; what moves single weights unshares them."""
        broken: set[Trait] = {"grid"}
        if 1 in self._given_bits():
            broken.add("zeros")
        if self.equalize != "none" or self.rounding == "adaround":
            broken.add("shared")
        return frozenset(broken)

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""
        given = changed(self)
        if self.mode in _CASTS and given & {"layers", "types"}:
            raise UsageError(f"mode: {self.mode} changes the whole file and takes no overrides by layer or type")
        self._refuse(given, (*_OF_WEIGHTS, *_OF_PREPARATION), self.mode in _CASTS, "another mode than fp16 and bf16")
        if self.io == "int8" and self.mode != "static":
            raise UsageError("io: int8 inputs and outputs need mode static")
        self._refuse(given, _OF_ACTIVATIONS, self.mode != "static", "mode static")
        block = self.granularity == "block"
        self._refuse(given, ("granularity",), block and self.mode == "static", "mode weight_only or dynamic for blocks")
        if 1 in self._given_bits():
            self._refuse(given, ("symmetry", "weight_range", "mixed"), True, "more than 1 bit")
            self._refuse(given, ("granularity",), block, "more than 1 bit for blocks")
        even = self.symmetry == "symmetric" and not block
        self._refuse(given, ("rounding", "mixed"), not even, "symmetric weights with a scale a channel or tensor")
        self._refuse(given, ("bias_correction",), block, "a scale a channel or tensor")
        self._refuse(given, ("rounding",), 1 in self._given_bits(), "more than 1 bit")
        self._refuse(given, ("bits",), self.mixed is not None, "no mixed, which chooses the bits itself")
        self._refuse(given, ("block_size",), not block, "granularity block")
        self._refuse(given, ("percentile",), self.calibration != "percentile", "calibration percentile")
        wide = self.activations == 16 and self.calibration == "entropy"
        self._refuse(given, ("calibration",), wide, "activations of 8 bits for entropy")
        self._refuse(given, ("alpha",), self.equalize != "smooth", "equalize smooth")
        self._refuse(given, ("rounding_steps",), self.rounding != "adaround", "rounding adaround")
        seen = self.mode == "static" or bool(given & {"equalize", "bias_correction", "rounding"})
        self._refuse(given, ("samples",), not seen, "mode static, equalize, bias_correction or rounding")
        if self.skip and not any(one.skip is False for one in (*self.layers.values(), *self.types.values())):
            raise UsageError("skip: leaves every layer as it is; say under layers or types which have skip = false")
        if self.mixed is not None:
            self.mixed.check()

    def prepared(self) -> Technique | None:
        """Return what is to be done to the torch module before the export, if anything is."""
        if not changed(self) & set(_OF_PREPARATION):
            return None
        return Prepare(
            equalize=self.equalize,
            alpha=self.alpha,
            rounding=self.rounding,
            rounding_steps=self.rounding_steps,
            bias_correction=self.bias_correction,
            mixed=self.mixed,
            bits=self.bits,
            per_channel=self.granularity == "channel",
            symmetric=self.symmetry == "symmetric",
            weight_range=self.weight_range,
            samples=self.samples,
            skip=self.skip,
            layers=self.layers,
            types=self.types,
        )

    def apply_graph(self, format_: str, content: bytes, bench: Workbench) -> bytes:
        """Return the quantized file. Raises StepFailed for what this format's runtime does not run."""
        tool: Any
        if format_ == "onnx":
            if self.io == "int8":
                raise StepFailed("io = int8 is for TFLite files; ONNX files keep float32 inputs and outputs")
            from edgepress_host.techniques.quantize import onnx_file as tool
        else:
            from edgepress_host.techniques.quantize import tflite_file as tool

        if self.mode in _CASTS:
            bench.say(f"casting weights to {self.mode}")
            return bytes((tool.to_fp16 if self.mode == "fp16" else tool.to_bf16)(content))
        check_patterns(self.layers, self.types, dict(tool.layers(content).values()))
        parted: set[str] = set()
        plan = self._weights(bench, parted)
        bench.say(f"quantizing weights, {self.mode}")
        if self.mode == "weight_only":
            made = tool.to_weight_only(content, plan)
        elif self.mode == "dynamic":
            made = tool.to_dynamic(content, plan)
        else:
            bench.say(f"calibrating by {self.calibration} on {self.samples} samples")
            made = tool.to_static(content, plan, self._activations(bench))
        if parted:
            bench.note(
                f"weights that shared values share fewer with a scale a channel: {listed(sorted(parted))}; with "
                'granularity = "tensor" they share as many'
            )
        return bytes(made)

    def _weights(self, bench: Workbench, parted: set[str]) -> WeightPlan:
        """Return the plan; while it is carried out, layers whose weights would share fewer values go to `parted`."""

        def bits_of(layer: str, type_: str, weight: np.ndarray, kept: tuple[int, ...]) -> int | None:
            own = for_layer(self, self.layers, self.types, layer, type_)
            if own.skip:
                return None
            if self._per_channel and shares_values(weight):
                parted.add(layer)
            return own.bits if self.mixed is None else found_bits(weight, kept if self._per_channel else ())

        return WeightPlan(
            bits=bits_of,
            per_channel=self._per_channel,
            block_size=self.block_size if self.granularity == "block" else None,
            symmetric=self.symmetry == "symmetric",
            method=self.weight_range,
            note=bench.note,
        )

    def _activations(self, bench: Workbench) -> ActivationPlan:
        return ActivationPlan(
            samples=bench.calibration(self.samples),
            method=self.calibration,
            percentile=self.percentile,
            bits=self.activations,
            symmetric=None if self.activation_symmetry is None else self.activation_symmetry == "symmetric",
            integer_io=self.io == "int8",
        )

    @property
    def _per_channel(self) -> bool:
        return self.granularity != "tensor"

    def _given_bits(self) -> set[int]:
        own = (one.bits for one in (*self.layers.values(), *self.types.values()))
        return {self.bits, *(bits for bits in own if bits is not None)}

    def _refuse(self, given: set[str], fields: tuple[str, ...], when: bool, needed: str) -> None:
        wrong = next((field for field in fields if when and field in given), None)
        if wrong is not None:
            raise UsageError(f"{wrong}: needs {needed}")
