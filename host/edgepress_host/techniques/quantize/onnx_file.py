"""Post-training quantization of an ONNX file, by ONNX Runtime's quantizer with ranges of our own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgepress_host.evaluate import BATCH
from edgepress_host.exporters.onnx import fold_constants, forget_sources
from edgepress_host.press.quiet import quiet
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.quantize import onnx_blocks as blocks
from edgepress_host.techniques.quantize.grid import Integers
from edgepress_host.techniques.quantize.onnx_sharing import share_grids
from edgepress_host.techniques.quantize.onnx_weights import (
    BYTE,
    Held,
    biased_layers,
    drop,
    expanded,
    held_weights,
    in_transposed_groups,
    layer_of,
    stored_as,
)
from edgepress_host.techniques.quantize.plan import ActivationPlan, WeightPlan, listed, refuse_beyond_half
from edgepress_host.techniques.quantize.ranges import ranges

DYNAMIC_OPERATORS = ["MatMul", "Gemm", "LSTM", "Attention"]
"""Without Conv: dynamically quantized convolutions run 8 to 30 times slower than fp32 ones."""


def to_fp16(content: bytes) -> bytes:
    """Weights and arithmetic in half precision; inputs and outputs stay fp32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        model = onnx.load_from_string(content)
        refuse_beyond_half((held.layer, held.values) for held in held_weights(model))
        return _finish(convert_float_to_float16(model, keep_io_types=True))


def to_bf16(content: bytes) -> bytes:
    """Weights stored in bfloat16 and cast to fp32 when the file is loaded; arithmetic stays fp32."""
    with quiet():
        model = _prepared(content)
        for held in held_weights(model):
            drop(model, {held.tensor})
            stored = numpy_helper.from_array(held.values.astype(ml_dtypes.bfloat16), f"{held.tensor}.bf16")
            model.graph.initializer.append(stored)
            cast = helper.make_node("Cast", [stored.name], [held.tensor], to=TensorProto.FLOAT)
            cast.name = f"{held.tensor}.Cast"
            model.graph.node.insert(0, cast)
        return _finish(model)


def to_weight_only(content: bytes, plan: WeightPlan) -> bytes:
    """Weights in few bits, arithmetic in fp32; made fp32 again at load, except for blocks in dense layers."""
    with quiet():
        model = _prepared(content)
        chosen = _chosen(model, plan)
        if plan.block_size is not None:
            blocks.say_what_took_none([held for held, _ in chosen], plan)
            chosen = [(held, bits) for held, bits in chosen if not blocks.put(model, held, bits, plan, integer=False)]
        for held, bits in chosen:
            expanded(model, held, plan.integers(held.values, bits, held.kept))
        return _finish(model)


def to_dynamic(content: bytes, plan: WeightPlan) -> bytes:
    """Integer weights; activations are quantized as they come, in dense and recurrent layers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(), tempfile.TemporaryDirectory() as folder:
        model = _prepared(content)
        chosen = [(held, bits) for held, bits in _chosen(model, plan) if held.node.op_type in DYNAMIC_OPERATORS]
        if plan.block_size is not None:
            blocks.say_what_took_none([held for held, _ in chosen], plan)
            chosen = [(held, bits) for held, bits in chosen if not blocks.put(model, held, bits, plan, integer=True)]
        _say_what_stays_at_8_bits(chosen, plan)
        found = {
            held.tensor: plan.integers(held.values, bits, held.kept)
            for held, bits in chosen
            if held.node.op_type != "LSTM" and not (bits == BYTE and plan.plain)
        }
        turned = {held.tensor for held, _ in chosen if held.node.op_type == "Gemm" and held.kept == (0,)}
        target = Path(folder) / "out.onnx"
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=DYNAMIC_OPERATORS,
            per_channel=plan.per_channel,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_excluded(model, chosen, plan),
        )
        return _finish(_with_integers(onnx.load(target), found, turned))


def to_static(content: bytes, plan: WeightPlan, activations: ActivationPlan) -> bytes:
    """Integer weights and activations in QDQ form: with int8 and uint8 the pair that fuses on x86."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

    with quiet(), tempfile.TemporaryDirectory() as folder:
        model = _prepared(content)
        chosen = _with_one_scale_for_groups(_chosen(model, plan), plan)
        found = {
            held.tensor: plan.integers(held.values, bits, held.kept)
            for held, bits in chosen
            if not (bits == BYTE and plan.plain and held.kept)
        }
        _refuse_zero_points(chosen, plan)
        _put_on_grid(model, found)
        bits = activations.bits
        cache = Path(folder) / "ranges.json"
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, _ranges_of(model, activations)), cache)
        target = Path(folder) / "out.onnx"
        quantize_static(
            model,
            target,
            calibration_cache_path=cache,
            per_channel=plan.per_channel,
            activation_type=QuantType.QUInt8 if bits == BYTE else QuantType.QUInt16,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_excluded(model, chosen, plan),
            extra_options={
                "ActivationSymmetric": bool(activations.symmetric),
                "TensorQuantOverrides": {name: _override(integers) for name, integers in found.items()},
            },
        )
        made = onnx.load(target)
        _say_what_has_no_kernel(made, chosen, plan)
        return _finish(share_grids(_packed(made, found)))


def layers(content: bytes) -> dict[str, tuple[str, str]]:
    """Node name → (layer name, layer type) of the nodes that hold weights, as they are called while quantizing."""
    with quiet():
        return _layers(_prepared(content))


def _layers(model: ModelProto) -> dict[str, tuple[str, str]]:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    biased = biased_layers(model)
    found = {}
    for node in model.graph.node:
        held = [stored[name] for name in node.input if name in stored and len(stored[name].dims) > 1]
        if held:
            found[node.name] = layer_of(node, held[0].name, len(held[0].dims), biased)
    return found


def _chosen(model: ModelProto, plan: WeightPlan) -> list[tuple[Held, int]]:
    """Weights that are to be quantized, with their bits. Raises StepFailed where there is none."""
    every = held_weights(model)
    chosen = [
        (held, bits) for held in every if (bits := plan.bits(held.layer, held.kind, held.values, held.kept)) is not None
    ]
    if not every and not any(node.op_type == "If" for node in model.graph.node):
        kinds = sorted({node.op_type for node in model.graph.node})
        raise StepFailed(f"no operator of this file has weights that can be quantized; it has {listed(kinds)}")
    return chosen


def _excluded(model: ModelProto, chosen: list[tuple[Held, int]], plan: WeightPlan) -> list[str]:
    """Nodes that are to stay as they are: of those with stored tensors, the ones that the options name."""
    taken = {held.node.name for held, _ in chosen}
    empty = np.zeros((0, 0), np.float32)
    others = {name: layer for name, layer in _layers(model).items() if name not in taken}
    weights = {held.node.name for held in held_weights(model)}
    return sorted(name for name, layer in others.items() if name in weights or plan.bits(*layer, empty, ()) is None)


def _put_on_grid(model: ModelProto, found: dict[str, Integers]) -> None:
    """Let the tools see the very weights that the integers stand for, so that calibration does, too."""
    for tensor in model.graph.initializer:
        if tensor.name in found:
            tensor.CopyFrom(numpy_helper.from_array(found[tensor.name].real, tensor.name))


def _override(found: Integers) -> list[dict[str, Any]]:
    """Scale and zero point as ONNX Runtime's quantizer takes them: for the tensor, or for each channel."""
    from onnxruntime.quantization import QuantType

    pairs = zip(found.scale.reshape(-1), found.zero.reshape(-1), strict=True)
    given: list[dict[str, Any]] = [
        {"quant_type": QuantType.QInt8, "scale": scale, "zero_point": zero} for scale, zero in pairs
    ]
    if len(given) > 1:
        axis = found.scale.shape.index(len(given))
        given = [one | {"axis": axis} for one in given]
    return given


def _ranges_of(model: ModelProto, activations: ActivationPlan) -> dict[str, Any]:
    whole = {value.name for value in (*model.graph.input, *model.graph.output)}
    found = ranges(
        lambda: _activations(model, activations.samples),
        activations.method,
        percentile=activations.percentile,
        whole=whole,
        symmetric=bool(activations.symmetric),
        levels=activations.levels,
    )
    return {name: (np.array(low, np.float32), np.array(high, np.float32)) for name, (low, high) in found.items()}


def _packed(model: ModelProto, found: dict[str, Integers]) -> ModelProto:
    """Store the integers of a quantized file in as few bits as they have; changes `model`."""
    low = {f"{name}_quantized": integers.bits for name, integers in found.items() if integers.bits < BYTE}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in low}
    drop(model, set(stored))
    for name, values in stored.items():
        stored_as(model, values, low[name], name)
    return model


def _with_integers(model: ModelProto, found: dict[str, Integers], turned: set[str]) -> ModelProto:
    """Put our integers, scales and zero points in the place of those that quantize_dynamic made.

    It makes Gemm into MatMul; the weights `turned`, which Gemm took transposed, are the other way round then.
    """
    integer = {name for node in model.graph.node if node.op_type == "MatMulInteger" for name in node.input}
    parts: dict[str, np.ndarray] = {}
    for name, integers in found.items():
        values = integers.values.T if name in turned and f"{name}_quantized" in integer else integers.values
        parts |= {f"{name}_quantized": values, f"{name}_scale": integers.scale, f"{name}_zero_point": integers.zero}
    for tensor in model.graph.initializer:
        if tensor.name in parts:
            before = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(parts[tensor.name].reshape(before.shape), tensor.name))
    return _packed(model, found)


def _with_one_scale_for_groups(chosen: list[tuple[Held, int]], plan: WeightPlan) -> list[tuple[Held, int]]:
    """Give the tensor one scale where groups share the axis of the outputs: a scale an index is fewer than biases."""
    groups = [held.layer for held, _ in chosen if in_transposed_groups(held)]
    if groups and plan.per_channel:
        plan.note(f"one scale a tensor, which static transposed convolutions with groups need: {listed(groups)}")
    return [(held._replace(kept=()) if in_transposed_groups(held) else held, bits) for held, bits in chosen]


def _refuse_zero_points(chosen: list[tuple[Held, int]], plan: WeightPlan) -> None:
    if not plan.symmetric and plan.per_channel and chosen:
        raise StepFailed(
            f"{chosen[0][0].layer}: ONNX Runtime's integer kernels take one zero point for a weight; "
            'set granularity = "tensor" or symmetry = "symmetric"'
        )


def _say_what_has_no_kernel(made: ModelProto, chosen: list[tuple[Held, int]], plan: WeightPlan) -> None:
    """Name the layers that the quantizer passed over. Raises StepFailed where it passed over all."""
    stored = {tensor.name for tensor in made.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    left = [held for held, _ in chosen if held.tensor in stored]
    if not left:
        return
    names = listed([f"{held.layer} ({held.node.op_type})" for held in left])
    if len(left) == len(chosen):
        raise StepFailed(f"ONNX Runtime has no static integer kernel for {names}; use mode weight_only or dynamic")
    plan.note(f"left in fp32, for which ONNX Runtime has no static integer kernel: {names}")


def _say_what_stays_at_8_bits(chosen: list[tuple[Held, int]], plan: WeightPlan) -> None:
    names = [held.layer for held, bits in chosen if held.node.op_type == "LSTM" and bits < BYTE]
    if names:
        plan.note(f"left at 8 bits, the fewest that ONNX Runtime's dynamic LSTM takes: {listed(names)}")


def _prepared(content: bytes) -> ModelProto:
    """Fold constants and infer shapes, without which the quantizer skips weights or raises."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "prepared.onnx"
        onnx.save(fold_constants(onnx.load_from_string(content)), source)
        quant_pre_process(source, target, skip_symbolic_shape=True)
        model = onnx.load(target)
    _name_nodes(model)
    _forget_shapes_of_weights(model)
    return model


def _name_nodes(model: ModelProto) -> None:
    """Give every node a name: exclusion is by name, and foreign files may have none."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"


def _forget_shapes_of_weights(model: ModelProto) -> None:
    """Drop recorded shapes of stored tensors: the quantizer transposes some, and then refuses the old shape."""
    stored = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in stored]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _activations(model: ModelProto, samples: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Run the samples and yield every fp32 tensor that flows between nodes."""
    import onnxruntime

    watched = ModelProto()
    watched.CopyFrom(model)
    shown = {value.name for value in watched.graph.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in watched.graph.value_info}
    for node in watched.graph.node:
        for name in node.output:
            if name and name not in shown and kinds.get(name, TensorProto.FLOAT) == TensorProto.FLOAT:
                watched.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    step = first.shape[0] if isinstance(first.shape[0], int) else BATCH
    names = [output.name for output in session.get_outputs()]
    for start in range(0, len(samples) - len(samples) % step or len(samples), step):
        part = samples[start : start + step]
        yield {first.name: part} | {
            name: value
            for name, value in zip(names, session.run(names, {first.name: part}), strict=True)
            if value.dtype == np.float32 and value.size
        }


def _finish(model: ModelProto) -> bytes:
    return bytes(forget_sources(model).SerializeToString(deterministic=True))
