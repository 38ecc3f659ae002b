"""TFLite: export of a torch module by LiteRT Torch, and reading of any TFLite file.

The converter loads jax and takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgepress_protocol.errors import UsageError
from edgepress_protocol.manifest import Quantization, TensorSpec
from torch import nn

from edgepress_host.exporters import Gridded, Weight, lowerable
from edgepress_host.exporters._tflite_edit import finished, with_grids, with_nearest
from edgepress_host.press.quiet import quiet

SUFFIX = ".tflite"
_PACKED_BITS = {"int4": 4, "uint4": 4, "int2": 2}


def export(module: nn.Module, example: np.ndarray) -> bytes:
    """Export with a batch of one: TFLite has no free dimensions that its delegates can use."""
    sample = torch.from_numpy(np.array(example[:1]))
    converter = _converter()
    ready = copy.deepcopy(module).eval()
    layers = lowerable(ready)
    grids = [layer.grid() for layer in layers if isinstance(layer, Gridded)]
    # Where weights alone are integers the converter would fold some of them to fp32; they are put in afterwards.
    whole = len(grids) < len(layers)
    for layer in layers if whole else []:
        layer.lower("tflite")
    with quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{SUFFIX}"
        converter.convert(ready, (sample,), quant_config=_integers() if whole else None).export(str(path))
        content = with_nearest(path.read_bytes())
    if not layers:
        return content
    return finished(content) if whole else with_grids(content, grids)


def tensors(content: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs, with scale and zero point where they are integers."""
    from ai_edge_litert.interpreter import Interpreter

    with quiet():
        interpreter = Interpreter(model_content=content)
    inputs = tuple(_spec(details) for details in interpreter.get_input_details())
    return inputs, tuple(_spec(details) for details in interpreter.get_output_details())


def weights(content: bytes) -> list[Weight]:
    """Every tensor that has a buffer of its own."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    kinds = {code: name.lower() for name, code in _schema_types().items()}
    found = []
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is None or len(data) == 0:
                continue
            raw = np.asarray(data, np.uint8).tobytes()
            dtype = kinds[tensor.type]
            shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
            found.append(
                Weight(
                    dtype=dtype,
                    shape=shape,
                    sha256=hashlib.sha256(raw).hexdigest(),
                    elements=int(np.prod(shape)),
                    nonzero=_nonzero(dtype, raw),
                )
            )
    return found


def operators(content: bytes) -> list[str]:
    """Operator names, subgraphs included."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    codes = [names.get(code.builtinCode, str(code.builtinCode)) for code in model.operatorCodes]
    return [codes[op.opcodeIndex] for graph in model.subgraphs for op in graph.operators or ()]


def _converter() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with quiet():
            import litert_torch
    except ImportError as error:
        raise UsageError(
            f"format tflite needs {error.name}, which is not installed: pip install 'edgepress[tflite]'"
        ) from error
    return litert_torch


def _integers() -> Any:
    """Tell the converter to make integer kernels of what is quantized; the recipe in it is not looked at."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))


def _schema_types() -> dict[str, int]:
    from ai_edge_litert import schema_py_generated as schema

    return {name: code for name, code in vars(schema.TensorType).items() if isinstance(code, int)}


def _nonzero(dtype: str, raw: bytes) -> int:
    """Count by the stored values; 4 and 2 bits are packed, and what fills the last byte is zero."""
    if dtype in _PACKED_BITS:
        bits = _PACKED_BITS[dtype]
        fields = np.frombuffer(raw, np.uint8)[:, np.newaxis] >> np.arange(0, 8, bits, dtype=np.uint8)
        return int(np.count_nonzero(fields & ((1 << bits) - 1)))
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(np.uint8)
    return int(np.count_nonzero(np.frombuffer(raw, kind)))


def _spec(details: dict[str, Any]) -> TensorSpec:
    scale, zero_point = details["quantization"]
    integer = np.dtype(details["dtype"]).kind in "iu" and scale != 0
    return TensorSpec(
        name=str(details["name"]),
        dtype=np.dtype(details["dtype"]).name,
        shape=tuple(int(size) for size in details["shape"]),
        quantization=Quantization(scale=float(scale), zero_point=int(zero_point)) if integer else None,
    )
