"""What quantization refuses in a recipe: options that contradict each other, and senseless orders."""

from __future__ import annotations

import pytest
from edgepress_host import recipe
from edgepress_protocol.errors import UsageError
from quantize_lab import made_from


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fp16", "bits": 4}, "bits: needs another mode than fp16 and bf16"),
        ({"mode": "bf16", "equalize": "smooth"}, "equalize: needs another mode"),
        ({"mode": "dynamic", "activations": 16}, "activations: needs mode static"),
        ({"mode": "static", "activations": 16, "calibration": "entropy"}, "calibration: needs activations of 8 bits"),
        ({"mode": "dynamic", "calibration": "mse"}, "calibration: needs mode static"),
        ({"mode": "static", "granularity": "block"}, "granularity: needs mode weight_only or dynamic for blocks"),
        ({"mode": "weight_only", "granularity": "block", "bits": 1}, "granularity: needs more than 1 bit for blocks"),
        ({"mode": "weight_only", "bits": 1, "symmetry": "asymmetric"}, "symmetry: needs more than 1 bit"),
        ({"mode": "weight_only", "bits": 1, "weight_range": "mse"}, "weight_range: needs more than 1 bit"),
        ({"mode": "weight_only", "bits": 1, "rounding": "adaround"}, "rounding: needs more than 1 bit"),
        ({"mode": "weight_only", "symmetry": "asymmetric", "rounding": "adaround"}, "rounding: needs symmetric"),
        ({"mode": "weight_only", "granularity": "block", "bias_correction": True}, "bias_correction: needs a scale"),
        ({"mode": "static", "bits": 4, "mixed": {"size": 0.5}}, "bits: needs no mixed"),
        ({"mode": "static", "mixed": {}}, "mixed: expected one of size and max_drop"),
        ({"mode": "static", "mixed": {"size": 0.5, "max_drop": 0.1}}, "mixed: expected one of size and max_drop"),
        ({"mode": "static", "mixed": {"size": 1.5}}, "mixed.size"),
        ({"mode": "static", "bits": 3}, "bits"),
        ({"mode": "static", "percentile": 20.0}, "percentile"),
        ({"mode": "static", "percentile": 99.0}, "percentile: needs calibration percentile"),
        ({"mode": "weight_only", "block_size": 16}, "block_size: needs granularity block"),
        ({"mode": "static", "alpha": 0.1}, "alpha: needs equalize smooth"),
        ({"mode": "static", "rounding_steps": 10}, "rounding_steps: needs rounding adaround"),
        ({"mode": "weight_only", "samples": 10}, "samples: needs mode static"),
        ({"mode": "static", "skip": True}, "skip: leaves every layer as it is"),
        ({"mode": "static", "samples": 0}, "samples"),
        ({"mode": "static", "alpha": 2.0, "equalize": "smooth"}, "alpha"),
    ],
)
def test_options_that_contradict_each_other_are_refused_by_name(options, message):
    with pytest.raises(UsageError, match=message):
        made_from(options)


@pytest.mark.parametrize(
    ("first", "second", "undone"),
    [
        ({"technique": "quantize", "mode": "fp16"}, {"technique": "quantize", "mode": "static"}, "the low-bit values"),
        (
            {"technique": "prune", "kind": "magnitude"},
            {"technique": "quantize", "mode": "weight_only", "bits": 1},
            "the zeros",
        ),
    ],
)
def test_an_order_in_which_quantizing_undoes_a_step_is_refused(first, second, undone):
    steps = ", ".join(
        "{"
        + ", ".join(f"{key} = {value if isinstance(value, int) else repr(value)}" for key, value in step.items())
        + "}"
        for step in (first, second)
    )
    text = "[model]\nsource = 'm:a'\n[data]\nsource = 'm:l'\n[[variant]]\nname = 'v'\n" + f"steps = [{steps}]\n"
    with pytest.raises(UsageError, match=rf"variant\[0\].steps\[1\]: quantize would undo {undone} that"):
        recipe.parse(text)
