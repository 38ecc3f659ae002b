"""Post-training quantization of a TFLite file, by AI Edge Quantizer with ranges of our own.

Its own calibration is a moving average, which clips; ours is the same as for ONNX.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from edgepress_host.press.quiet import quiet
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.quantize.plan import ActivationPlan, WeightPlan, listed, refuse_beyond_half
from edgepress_host.techniques.quantize.ranges import ranges

HIGHEST = 8
BLOCKED = 4
BLOCK_SIZES = (32, 64, 128, 256)
FLOAT32 = 0

_KINDS = {"CONV_2D": "Conv2d", "DEPTHWISE_CONV_2D": "Conv2d", "FULLY_CONNECTED": "Linear"}
_CHANNELS = {"CONV_2D": (0,), "DEPTHWISE_CONV_2D": (3,), "FULLY_CONNECTED": (0,)}
_STORED: dict[str, dict[str, tuple[int, ...]]] = {
    "weight_only": {"CONV_2D": (2, 4, 8), "DEPTHWISE_CONV_2D": (2, 4, 8), "FULLY_CONNECTED": (2, 4, 8)},
    "dynamic": {"CONV_2D": (4, 8), "DEPTHWISE_CONV_2D": (8,), "FULLY_CONNECTED": (2, 4, 8)},
    "static": {"CONV_2D": (4, 8), "DEPTHWISE_CONV_2D": (4, 8), "FULLY_CONNECTED": (2, 4, 8)},
    "static16": {"CONV_2D": (4, 8), "DEPTHWISE_CONV_2D": (8,), "FULLY_CONNECTED": (2, 4, 8)},
}
"""Bits of weights with which LiteRT runs each operator rightly, by mode; found by running them."""


class Held(NamedTuple):
    """A weight: its operator's kind and first output, its layer, its tensor's number and its values."""

    operator: str
    output: str
    layer: str
    tensor: int
    values: np.ndarray

    @property
    def kept(self) -> tuple[int, ...]:
        """Axes of the weight along which each index is a channel."""
        return _CHANNELS[self.operator]


class Chosen(NamedTuple):
    """A weight, the bits that it gets, and the bits that it is stored in."""

    held: Held
    bits: int
    stored: int


def to_fp16(content: bytes) -> bytes:
    """Weights in half precision; arithmetic, inputs and outputs stay fp32."""
    refuse_beyond_half((held.layer, held.values) for held in _held(content))
    with quiet():
        from ai_edge_quantizer import qtyping, quantizer

        tool = quantizer.Quantizer(content)
        tool.add_weight_only_config(
            ".*",
            qtyping.TFLOperationName.ALL_SUPPORTED,
            num_bits=16,
            granularity=qtyping.QuantGranularity.TENSORWISE,
            algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING,
        )
        return _run(tool)


def to_bf16(_content: bytes) -> bytes:
    """Refuse: no kernel reads such weights. Raises StepFailed."""
    raise StepFailed("LiteRT has no kernel that reads bfloat16 weights; for TFLite files use mode fp16")


def to_weight_only(content: bytes, plan: WeightPlan) -> bytes:
    """Weights in few bits, arithmetic in fp32."""
    from ai_edge_quantizer import recipe

    if plan.block_size is not None:
        raise StepFailed("granularity: LiteRT runs blocks at bits = 4 in mode dynamic alone; use channel here")
    return _quantized(content, "weight_only", recipe.weight_only_wi8_afp32(), plan)


def to_dynamic(content: bytes, plan: WeightPlan) -> bytes:
    """Integer weights; activations are quantized as they come."""
    from ai_edge_quantizer import recipe

    _refuse_zero_points(plan, "dynamic")
    return _quantized(content, "dynamic", recipe.dynamic_wi8_afp32(), plan)


def to_static(content: bytes, plan: WeightPlan, activations: ActivationPlan) -> bytes:
    """Integer weights and activations; inputs and outputs stay fp32 unless `integer_io`."""
    from ai_edge_quantizer import recipe

    _refuse_zero_points(plan, "static")
    wide = activations.bits > HIGHEST
    if wide and activations.symmetric is False:
        raise StepFailed('activation_symmetry: LiteRT runs activations of 16 bits as "symmetric" alone')
    if wide and activations.integer_io:
        raise StepFailed("io: int8 inputs and outputs need activations = 8")
    rules = recipe.static_wi8_ai16() if wide else recipe.static_wi8_ai8()
    return _quantized(content, "static16" if wide else "static", rules, plan, activations)


def _quantized(
    content: bytes, mode: str, rules: Any, plan: WeightPlan, activations: ActivationPlan | None = None
) -> bytes:
    with quiet():
        from ai_edge_quantizer import quantizer

        held = _held(content)
        chosen = _chosen(held, mode, plan)
        content = _on_grid(content, chosen, plan)
        tool = quantizer.Quantizer(content, rules)
        even = activations is not None and (activations.bits > HIGHEST or bool(activations.symmetric))
        _set_activations(tool, activations, even=even)
        _set_weights(tool, chosen, mode, plan, even=even)
        taken = {one.held.output for one in chosen}
        _leave_out(tool, {one.output for one in held if one.output not in taken})
        statistics = None if activations is None else _statistics(tool, content, activations, even=even)
        made = _run(tool, statistics)
        _check_stored(made, held, chosen)
        return made


def _chosen(held: list[Held], mode: str, plan: WeightPlan) -> list[Chosen]:
    """Weights that are to be quantized, each stored in the fewest bits that run. Raises StepFailed for none."""
    if not held:
        raise StepFailed("no operator of this file has weights that can be quantized")
    chosen, wider = [], dict[str, list[str]]()
    for one in held:
        bits = plan.bits(one.layer, _KINDS[one.operator], one.values, one.kept)
        if bits is not None:
            stored = min(some for some in _STORED[mode][one.operator] if some >= bits)
            # A grid of 4 bits has no place on that of 8; one of 2 bits or 1 has its few values there.
            chosen.append(Chosen(one, HIGHEST if (bits, stored) == (4, HIGHEST) else bits, stored))
            if stored > bits:
                wider.setdefault(_wider(one.operator, bits, stored), []).append(one.layer)
    for what, names in wider.items():
        plan.note(f"{what}: {listed(names)}")
    return chosen


def _wider(operator: str, bits: int, stored: int) -> str:
    missing = f"LiteRT has no kernel here for {operator} with weights of {bits} bit{'s' if bits > 1 else ''}"
    if (bits, stored) == (4, HIGHEST):
        return f"{missing}; with 8 instead"
    return f"{missing}; {2 if bits == 1 else 3} values stored in {stored} bits"


def _on_grid(content: bytes, chosen: list[Chosen], plan: WeightPlan) -> bytes:
    """Put weights on our own grid where the tool's rounding would be another; on it, its rounding changes nothing."""
    from ai_edge_litert.tools import flatbuffer_utils

    wanted = [one for one in chosen if plan.block_size is None and not (one.bits == one.stored and plan.plain)]
    if not wanted:
        return content
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    for one in wanted:
        real = plan.integers(one.held.values, one.bits, one.held.kept).real
        data = np.frombuffer(np.ascontiguousarray(real, np.float32).tobytes(), np.uint8)
        model.buffers[graph.tensors[one.held.tensor].buffer].data = data
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _set_activations(tool: Any, activations: ActivationPlan | None, *, even: bool) -> None:
    from ai_edge_quantizer import qtyping, quantizer

    if activations is None:
        return
    if even and activations.bits == HIGHEST:
        weights = qtyping.TensorQuantizationConfig(HIGHEST, True, qtyping.QuantGranularity.CHANNELWISE)
        config = qtyping.OpQuantizationConfig(
            activation_tensor_config=qtyping.TensorQuantizationConfig(HIGHEST, True),
            weight_tensor_config=weights,
            compute_precision=qtyping.ComputePrecision.INTEGER,
        )
        tool.update_quantization_recipe(".*", qtyping.TFLOperationName.ALL_SUPPORTED, config)
    if not activations.integer_io:
        for border in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            tool.update_quantization_recipe(".*", border, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)


def _set_weights(tool: Any, chosen: list[Chosen], mode: str, plan: WeightPlan, *, even: bool) -> None:
    """Tell the tool of each layer whose weights are not as it would make them anyway."""
    from ai_edge_quantizer import qtyping

    static = {"static": HIGHEST, "static16": 2 * HIGHEST}.get(mode)
    granularities = _granularities(chosen, mode, plan)
    for one in chosen:
        granularity = granularities[one.held.output]
        if one.stored == HIGHEST and plan.symmetric and granularity == "CHANNELWISE":
            continue
        config = qtyping.OpQuantizationConfig(
            activation_tensor_config=None if static is None else qtyping.TensorQuantizationConfig(static, even),
            weight_tensor_config=qtyping.TensorQuantizationConfig(
                one.stored, plan.symmetric, qtyping.QuantGranularity[granularity]
            ),
            compute_precision=qtyping.ComputePrecision["FLOAT" if mode == "weight_only" else "INTEGER"],
            explicit_dequantize=mode == "weight_only",
            # The tool's list of what runs is shorter than what LiteRT runs.
            skip_checks=True,
        )
        operator = qtyping.TFLOperationName[one.held.operator]
        tool.update_quantization_recipe(_scope(one.held.output), operator, config)


def _granularities(chosen: list[Chosen], mode: str, plan: WeightPlan) -> dict[str, str]:
    """Return what has a scale of its own in each layer, by the operator's output. Raises StepFailed."""
    if plan.block_size is None:
        wanted = "CHANNELWISE" if plan.per_channel else "TENSORWISE"
        dynamic_depthwise = [
            one.held for one in chosen if (mode, one.held.operator) == ("dynamic", "DEPTHWISE_CONV_2D")
        ]
        found = {one.held.output: wanted for one in chosen} | {one.output: "CHANNELWISE" for one in dynamic_depthwise}
        if dynamic_depthwise and not plan.per_channel:
            names = listed([one.layer for one in dynamic_depthwise])
            plan.note(f"one scale a channel, which LiteRT's dynamic DEPTHWISE_CONV_2D needs: {names}")
        return found
    fits = {
        one.held.output
        for one in chosen
        if one.held.operator == "FULLY_CONNECTED" and one.held.values.shape[1] % plan.block_size == 0
    }
    for one in chosen:
        if one.held.output in fits and (one.stored != BLOCKED or plan.block_size not in BLOCK_SIZES):
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise StepFailed(
                f"{one.held.layer}: LiteRT runs blocks of {sizes} at bits = {BLOCKED} alone, "
                f"not of {plan.block_size} at {one.stored}; use granularity channel"
            )
    if left := [one.held.layer for one in chosen if one.held.output not in fits]:
        plan.note(
            f"one scale a channel, being no dense layer of a multiple of {plan.block_size} inputs: {listed(left)}"
        )
    blocks = f"BLOCKWISE_{plan.block_size}"
    return {one.held.output: blocks if one.held.output in fits else "CHANNELWISE" for one in chosen}


def _statistics(tool: Any, content: bytes, activations: ActivationPlan, *, even: bool) -> dict[str, Any]:
    """Ranges of our own, in the form of those that the tool finds."""
    samples = activations.samples
    interpreter = _interpreter(content)
    key, signature = next(iter(interpreter.get_signature_list().items()))
    # One sample through the tool's own calibration tells which tensors it wants ranges of, and in what shape.
    wanted: dict[str, Any] = tool.calibrate({key: [{signature["inputs"][0]: samples[:1]}]}, num_threads=1)
    borders = (*interpreter.get_input_details(), *interpreter.get_output_details())
    found = ranges(
        lambda: _activations(interpreter, samples, set(wanted)),
        activations.method,
        percentile=activations.percentile,
        whole={details["name"] for details in borders},
        symmetric=even,
        levels=activations.levels,
    )
    for name, statistics in wanted.items():
        if name in found:
            low, high = found[name]
            statistics["min"] = np.full_like(statistics["min"], low)
            statistics["max"] = np.full_like(statistics["max"], high)
    return wanted


def _check_stored(made: bytes, held: list[Held], chosen: list[Chosen]) -> None:
    """Refuse what the tool silently did not do. Raises StepFailed."""
    stored = dict(zip([one.output for one in held], [kind for _, _, kind in _weights_of(made)], strict=True))
    for one in chosen:
        kind, wanted = stored[one.held.output], f"INT{one.stored}"
        if kind != wanted:
            raise StepFailed(
                f"{one.held.layer}: AI Edge Quantizer left its weights in {kind}, not {wanted}; "
                "skip the layer, or choose other bits"
            )


def _weights_of(content: bytes) -> list[tuple[Any, Any, str]]:
    """(operator, weight's tensor, its type) of the operators of our kinds that have stored weights, in their order."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    from edgepress_host.exporters.tflite import operators

    types = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    made_by = {index: op for op in graph.operators for index in op.outputs}
    found = []
    for op, kind in zip(graph.operators, operators(content), strict=False):
        if kind not in _KINDS:
            continue
        place = op.inputs[1]
        while place in made_by and len(made_by[place].inputs) == 1:
            place = made_by[place].inputs[0]  # a DEQUANTIZE between
        tensor = graph.tensors[place]
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            found.append((op, tensor, types[tensor.type]))
    return found


def _held(content: bytes) -> list[Held]:
    from ai_edge_litert.tools import flatbuffer_utils

    from edgepress_host.exporters.tflite import operators

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    found = []
    for op, kind in zip(graph.operators, operators(content), strict=False):
        tensor = graph.tensors[op.inputs[1]] if kind in _KINDS else None
        data = None if tensor is None else model.buffers[tensor.buffer].data
        if tensor is None or data is None or len(data) == 0 or tensor.type != FLOAT32:
            continue
        values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float32).reshape(tuple(tensor.shape))
        output = graph.tensors[op.outputs[0]].name.decode()
        found.append(Held(kind, output, layer_name(tensor.name.decode()), int(op.inputs[1]), values))
    return found


def _refuse_zero_points(plan: WeightPlan, mode: str) -> None:
    if not plan.symmetric:
        raise StepFailed(
            f'symmetry: LiteRT runs asymmetric weights in mode weight_only alone; in mode {mode} use "symmetric"'
        )


def _scope(output: str) -> str:
    """Pattern of the operator with this very output: the tool searches in names that each end in a semicolon."""
    return rf"^{re.escape(output)}(;|$)"


def layers(content: bytes) -> dict[str, tuple[str, str]]:
    """Output tensor of an operator → (layer name, layer type) for operators that hold weights."""
    return {one.output: (one.layer, _KINDS[one.operator]) for one in _held(content)}


def layer_name(tensor: str) -> str:
    """Torch name of the layer that a tensor came from.

    >>> layer_name("net.Net/torch.nn.modules.container.Sequential_s/net.B_0/torch.nn.modules.conv.Conv2d_c1;1")
    's.0.c1'
    """
    path = re.sub(r";\d*$", "", tensor).rpartition(";;")[2].split("/")[1:]
    return ".".join(part.rpartition(".")[2].partition("_")[2] for part in path) or tensor


def _leave_out(tool: Any, skip: set[str]) -> None:
    from ai_edge_quantizer import qtyping, quantizer

    for name in sorted(skip):
        tool.update_quantization_recipe(
            _scope(name),
            qtyping.TFLOperationName.ALL_SUPPORTED,
            algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE,
        )


def _run(tool: Any, statistics: dict[str, Any] | None = None) -> bytes:
    result = tool.quantize(statistics, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _interpreter(content: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    return interpreter


def _activations(interpreter: Any, samples: np.ndarray, wanted: set[str]) -> Iterator[dict[str, np.ndarray]]:
    """Run the samples one by one and yield the tensors that are wanted."""
    indices = {
        details["name"]: details["index"] for details in interpreter.get_tensor_details() if details["name"] in wanted
    }
    position = interpreter.get_input_details()[0]["index"]
    for sample in samples:
        interpreter.set_tensor(position, sample[np.newaxis])
        interpreter.invoke()
        yield {name: interpreter.get_tensor(index) for name, index in indices.items()}
