from __future__ import annotations

import msgspec
import pytest
from compress_recipes import HEAD, one
from edgepress_host.press import sensitivity
from edgepress_host.press.workshop import Workshop
from edgepress_host.recipe import parse

STEPS = [
    ('{ technique = "low_rank", max_drop = 0.02 }', {"max_drop": 0.0201}),
    ('{ technique = "prune", kind = "block", count = 1 }', {"max_drop": 0.9}),
    ('{ technique = "quantize", mode = "weight_only", mixed = { size = 0.6 } }', {"samples": 5}),
]


@pytest.fixture
def measured(monkeypatch):
    """Whatever has its outputs measured."""
    seen = []
    real = sensitivity.outputs_of
    for place in ("edgepress_host.press.sensitivity", "edgepress_host.techniques.quantize.mixed"):
        monkeypatch.setattr(f"{place}.outputs_of", lambda *given, **options: seen.append(1) or real(*given, **options))
    return seen


@pytest.mark.parametrize(("text", "other"), STEPS, ids=["ranks", "blocks", "bits"])
def test_what_a_step_measured_of_layers_is_not_measured_again(text, other, tmp_path, measured):
    recipe = parse(HEAD + one(text))
    (step,) = recipe.variants[0].steps
    step = step.prepared() or step

    def made(step):
        # A shop of its own: nothing but the folder is left of an earlier one.
        shop = Workshop(recipe, tmp_path, lambda _: None)
        return shop.step(step, shop.start("onnx"), "onnx")

    first = made(step)
    count = len(measured)
    assert count > 0
    again = made(msgspec.structs.replace(step, **other))
    assert again.pressed.module_digest == first.pressed.module_digest
    assert len(measured) == count


def test_without_a_store_every_number_is_measured(bench, measured):
    import compress_zoo

    score = sensitivity.scorer(bench.split("validate"), bench.metric, bench.memo)
    assert score(compress_zoo.build()) == score(compress_zoo.build())
    assert len(measured) == 2
