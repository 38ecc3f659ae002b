"""The plain defaults of the two quantizers that edgepress builds on: what a user gets who calls them as documented."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from edgepress_host.press.quiet import quiet


def onnxruntime_default(content: bytes, samples: np.ndarray) -> bytes:
    """`quant_pre_process`, then `quantize_static` with nothing but a calibration reader."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc] # the library has no types
        def __init__(self, name: str) -> None:
            self._left = iter([{name: sample[np.newaxis]} for sample in samples])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    with quiet(), tempfile.TemporaryDirectory() as folder:
        source, ready, target = (Path(folder) / name for name in ("source.onnx", "ready.onnx", "target.onnx"))
        source.write_bytes(content)
        quant_pre_process(source, ready)
        quantize_static(ready, target, Reader(onnx.load(ready).graph.input[0].name))
        return target.read_bytes()


def ai_edge_quantizer_default(content: bytes, samples: np.ndarray) -> bytes:
    """The recipe `static_wi8_ai8` with the tool's own calibration."""
    with quiet():
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import quantizer, recipe

        key, signature = next(iter(Interpreter(model_content=content).get_signature_list().items()))
        name = signature["inputs"][0]
        tool = quantizer.Quantizer(content, recipe.static_wi8_ai8())
        ranges = tool.calibrate({key: [{name: sample[np.newaxis]} for sample in samples]})
        return bytes(tool.quantize(ranges).quantized_model)


DEFAULTS = {
    "onnx": ("onnxruntime.quantization, default", onnxruntime_default),
    "tflite": ("ai-edge-quantizer, default", ai_edge_quantizer_default),
}
