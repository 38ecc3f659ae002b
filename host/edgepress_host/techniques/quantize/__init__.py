"""Post-training quantization of the exported file: half precision, dynamic int8, static int8 with calibration."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec
from edgepress_protocol.errors import UsageError

from edgepress_host.technique import Stage, StepFailed, Technique, Workbench, check_patterns, for_layer
from edgepress_host.techniques.quantize.ranges import Method


class QuantizeLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own."""

    skip: bool | None = None


class Quantize(Technique, frozen=True):
    """`mode` fp16, dynamic or static; static reads `samples` of the calibrate split.

    `calibration` chooses the range of an activation: everything seen (minmax), all but the outermost values
    (percentile), or what loses the least information (entropy).
    """

    stage: ClassVar[Stage] = "graph"
    reads: ClassVar[tuple[str, ...]] = ("calibrate",)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"mode": "fp16"},
        {"mode": "dynamic"},
        {"mode": "static", "samples": 32},
        {"mode": "static", "calibration": "entropy", "samples": 32},
        {"mode": "static", "calibration": "percentile", "samples": 32},
    )

    mode: Literal["fp16", "dynamic", "static"]
    calibration: Method = "minmax"
    percentile: float = 99.99
    samples: int = 200
    io: Literal["float32", "int8"] = "float32"
    """Type of a static TFLite file's input and output; ONNX files keep float32."""
    skip: bool = False
    layers: dict[str, QuantizeLayer] = msgspec.field(default_factory=dict)
    types: dict[str, QuantizeLayer] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""
        if not 50 < self.percentile <= 100:
            raise UsageError(f"percentile: expected more than 50 and at most 100, got {self.percentile}")
        if self.samples < 1:
            raise UsageError(f"samples: expected a positive number, got {self.samples}")
        if self.io == "int8" and self.mode != "static":
            raise UsageError("io: int8 inputs and outputs need mode static")
        if self.mode == "fp16" and (self.layers or self.types):
            raise UsageError("mode: fp16 changes the whole file and takes no overrides by layer or type")

    def apply_graph(self, format_: str, content: bytes, bench: Workbench) -> bytes:
        """Return the quantized file."""
        tool: Any
        if format_ == "onnx":
            if self.io == "int8":
                raise StepFailed("io = int8 is for TFLite files; ONNX files keep float32 inputs and outputs")
            from edgepress_host.techniques.quantize import onnx_file as tool
        else:
            from edgepress_host.techniques.quantize import tflite_file as tool

        if self.mode == "fp16":
            bench.say("casting weights to fp16")
            return bytes(tool.to_fp16(content))
        skip = self._skipped(tool.layers(content))
        if self.mode == "dynamic":
            bench.say("quantizing weights to int8")
            return bytes(tool.to_dynamic(content, skip=skip))
        bench.say(f"calibrating by {self.calibration} on {self.samples} samples")
        chosen: dict[str, Any] = {"method": self.calibration, "percentile": self.percentile, "skip": skip}
        if format_ == "tflite":
            chosen["integer_io"] = self.io == "int8"
        return bytes(tool.to_static(content, bench.calibration(self.samples), **chosen))

    def _skipped(self, held: dict[str, tuple[str, str]]) -> set[str]:
        """Names of the file's operators that stay as they are."""
        check_patterns(self.layers, self.types, dict(held.values()))
        return {
            operator
            for operator, (name, kind) in held.items()
            if for_layer(self, self.layers, self.types, name, kind).skip
        }
