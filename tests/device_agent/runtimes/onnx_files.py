"""ONNX files that tests make for themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from edgepress_protocol.manifest import Manifest, Quantization, TensorSpec
from edgepress_protocol.transfer import describe
from protobuf import field


def int8_ends(folder: Path) -> tuple[Manifest, Path, Path]:
    """Write a model that gives back its int8 input; the manifest says that a step is 0.1 and zero is 3.

    Returns its manifest, its file, and samples in reals whose answers are themselves.
    """
    shape = b"".join(field(1, field(1, size)) for size in (1, 4))
    of_int8 = field(1, field(1, 3) + field(2, shape))  # ValueInfoProto.type: tensor_type of INT8
    ends = {name: field(1, name.encode()) + field(2, of_int8) for name in ("x", "y")}
    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"ends") + field(11, ends["x"]) + field(12, ends["y"])
    data = field(1, 8) + field(7, graph) + field(8, field(2, 17))
    model = folder / "ends.onnx"
    model.write_bytes(data)
    from safetensors.numpy import save_file

    reals = (np.arange(32, dtype=np.float32).reshape(8, 4) - 16) / 10
    save_file({"x": reals, "y": reals}, folder / "ends.safetensors")
    step = Quantization(0.1, 3)
    ends_specs = [(TensorSpec(name, "int8", (1, 4), step),) for name in ("x", "y")]
    return Manifest("ends", "onnx", describe(data)[0], *ends_specs), model, folder / "ends.safetensors"
