"""The recipe of every family, as it ships, in both formats; with the net, data and samples cut down for a test."""

from __future__ import annotations

import re
from importlib import resources

import msgspec
from edgepress_host import recipe
from edgepress_host.compress import compress

TEXT = (resources.files("edgepress_models") / "recipes" / "everything.toml").read_text()
FAMILIES = {"prune", "quantize", "qat", "distill", "low_rank", "cluster", "compact", "structured"}


def cut_down(source):
    """Return the shipped recipe on a net and data of the tests."""
    text = re.sub(r'source = "edgepress_models.*?:pretrained"', f'source = "{source}"', TEXT)
    text = text.replace("edgepress_models.fashion_mnist:load", "compress_zoo:load")
    text = re.sub(r'augment = ".*"\n', "", text)
    text = re.sub(r"samples = \d{4}", "samples = 128", text)
    return text.replace("max_drop = 0.2", "max_drop = 1.0")


def test_the_recipe_holds_every_family_and_their_combinations():
    steps = [step.tag for variant in recipe.parse(TEXT).variants for step in variant.steps]
    assert set(steps) >= FAMILIES
    assert any(len(variant.steps) > 2 for variant in recipe.parse(TEXT).variants)
    assert all(variant.formats == ("onnx", "tflite") for variant in recipe.parse(TEXT).variants)


def test_every_step_of_its_longest_combinations_is_in_the_file_in_both_formats(tmp_path):
    whole = recipe.parse(cut_down("compress_zoo:build"))
    # Each family alone is what test_techniques and its own tests run.
    chosen = tuple(one for one in whole.variants if one.name in {"deep-compression", "low-rank-distilled-int8"})
    assert [len(one.steps) for one in chosen] == [3, 3]
    made = compress(msgspec.structs.replace(whole, variants=chosen), tmp_path)
    for one in made.variants:
        assert one.verdict in {"ok", "grew"}, f"{one.name}.{one.format}: {one.reason}"
        assert one.kept_steps == len(one.steps)
