"""Post-training quantization of a TFLite file, by AI Edge Quantizer with ranges of our own.

Its own calibration is a moving average, which clips; ours is the same as for ONNX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgepress_host.press.quiet import quiet
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.quantize.plan import ActivationPlan, WeightPlan, listed, refuse_beyond_half
from edgepress_host.techniques.quantize.tflite_ranges import statistics
from edgepress_host.techniques.quantize.tflite_rules import HIGHEST, Chosen, leave_out, set_activations, set_weights
from edgepress_host.techniques.quantize.tflite_weights import (
    KINDS,
    Held,
    held_weights,
    layers,
    stored_types,
    with_values,
)

__all__ = ["layers", "to_bf16", "to_dynamic", "to_fp16", "to_static", "to_weight_only"]

_STORED: dict[str, dict[str, tuple[int, ...]]] = {
    "weight_only": {"CONV_2D": (2, 4, 8), "DEPTHWISE_CONV_2D": (2, 4, 8), "FULLY_CONNECTED": (2, 4, 8)},
    "dynamic": {"CONV_2D": (4, 8), "DEPTHWISE_CONV_2D": (8,), "FULLY_CONNECTED": (2, 4, 8)},
    "static": {"CONV_2D": (4, 8), "DEPTHWISE_CONV_2D": (4, 8), "FULLY_CONNECTED": (2, 4, 8)},
    "static16": {"CONV_2D": (4, 8), "DEPTHWISE_CONV_2D": (8,), "FULLY_CONNECTED": (2, 4, 8)},
}
"""Bits of weights with which LiteRT runs each operator rightly, by mode; found by running them."""


def to_fp16(content: bytes) -> bytes:
    """Weights in half precision; arithmetic, inputs and outputs stay fp32."""
    refuse_beyond_half((held.layer, held.values) for held in held_weights(content))
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

        held = held_weights(content)
        chosen = _chosen(held, mode, plan)
        content = with_values(content, _on_grid(chosen, plan))
        tool = quantizer.Quantizer(content, rules)
        even = activations is not None and (activations.bits > HIGHEST or bool(activations.symmetric))
        set_activations(tool, activations, even=even)
        set_weights(tool, chosen, mode, plan, even=even)
        taken = {one.held.output for one in chosen}
        leave_out(tool, {one.output for one in held if one.output not in taken})
        ranges = None if activations is None else statistics(tool, content, activations, even=even)
        made = _run(tool, ranges)
        _check_stored(made, held, chosen)
        return made


def _chosen(held: list[Held], mode: str, plan: WeightPlan) -> list[Chosen]:
    """Weights that are to be quantized, each stored in the fewest bits that run. Raises StepFailed for none."""
    if not held:
        raise StepFailed("no operator of this file has weights that can be quantized")
    chosen, wider = [], dict[str, list[str]]()
    for one in held:
        bits = plan.bits(one.layer, KINDS[one.operator], one.values, one.kept)
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


def _refuse_zero_points(plan: WeightPlan, mode: str) -> None:
    if not plan.symmetric:
        raise StepFailed(
            f'symmetry: LiteRT runs asymmetric weights in mode weight_only alone; in mode {mode} use "symmetric"'
        )


def _run(tool: Any, ranges: dict[str, Any] | None = None) -> bytes:
    result = tool.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _on_grid(chosen: list[Chosen], plan: WeightPlan) -> dict[int, np.ndarray]:
    """Weights on our own grid where the tool's rounding would be another; on it, its rounding changes nothing."""
    return {
        one.held.tensor: plan.integers(one.held.values, one.bits, one.held.kept).real
        for one in chosen
        if plan.block_size is None and not (one.bits == one.stored and plan.plain)
    }


def _check_stored(made: bytes, held: list[Held], chosen: list[Chosen]) -> None:
    """Refuse what the tool silently did not do. Raises StepFailed."""
    stored = dict(zip([one.output for one in held], stored_types(made), strict=True))
    for one in chosen:
        kind, wanted = stored[one.held.output], f"INT{one.stored}"
        if kind != wanted:
            raise StepFailed(
                f"{one.held.layer}: AI Edge Quantizer left its weights in {kind}, not {wanted}; "
                "skip the layer, or choose other bits"
            )
