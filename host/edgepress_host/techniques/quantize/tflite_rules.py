"""What AI Edge Quantizer is told of a TFLite file: the bits and scales of each layer, and what stays as it is."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from edgepress_host.technique import StepFailed
from edgepress_host.techniques.quantize.plan import ActivationPlan, WeightPlan, listed
from edgepress_host.techniques.quantize.tflite_weights import Held

HIGHEST = 8
BLOCKED = 4
BLOCK_SIZES = (32, 64, 128, 256)


class Chosen(NamedTuple):
    """A weight, the bits that it gets, and the bits that it is stored in."""

    held: Held
    bits: int
    stored: int


def set_activations(tool: Any, activations: ActivationPlan | None, *, even: bool) -> None:
    """Tell the tool how activations are stored (None: not at all), and the file's inputs and outputs."""
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


def set_weights(tool: Any, chosen: list[Chosen], mode: str, plan: WeightPlan, *, even: bool) -> None:
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


def leave_out(tool: Any, skip: set[str]) -> None:
    """Let the operators with these outputs stay as they are."""
    from ai_edge_quantizer import qtyping, quantizer

    for name in sorted(skip):
        tool.update_quantization_recipe(
            _scope(name),
            qtyping.TFLOperationName.ALL_SUPPORTED,
            algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE,
        )


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


def _scope(output: str) -> str:
    """Pattern of the operator with this very output: the tool searches in names that each end in a semicolon."""
    return rf"^{re.escape(output)}(;|$)"
