from __future__ import annotations

import tomllib

import pytest
from compress_recipes import HEAD, one
from compress_recipes import SMALL as VARIANT
from edgepress_host.recipe import load, parse
from edgepress_protocol.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st


def test_a_recipe_says_what_to_do_in_frozen_records():
    recipe = parse(HEAD + VARIANT)
    assert recipe.variants[0].steps[0].tag == "prune"
    assert recipe.variants[0].formats == ("onnx", "tflite")
    assert recipe.guard.max_drop == 0.1
    with pytest.raises(AttributeError):
        recipe.seed = 3


def test_comments_and_layout_do_not_change_the_digest_and_options_do():
    plain = parse(HEAD + VARIANT)
    assert parse("# a comment\n" + HEAD + "\n\n" + VARIANT).digest == plain.digest
    assert parse(HEAD + VARIANT.replace("0.5", "0.6")).digest != plain.digest


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[model]\nsauce = 'a:b'\n", "model.sauce: unknown key; did you mean 'source'?"),
        ("sead = 1\n" + HEAD, "sead: unknown key; did you mean 'seed'?"),
        (HEAD.replace("0.1", "'much'") + VARIANT, "guard.max_drop: expected float, got str"),
        (HEAD + VARIANT.replace("ratio", "ratoi"), "variant[0].steps[0].ratoi: unknown key; did you mean 'ratio'?"),
        (HEAD + VARIANT.replace("'prune'", "'prun'"), "did you mean 'prune'?"),
        (
            HEAD + VARIANT.replace("0.5", "1.5"),
            "steps[0].ratio: expected at least 0 and less than 1, got 1.5",
        ),
        (HEAD + VARIANT.replace("'tflite'", "'tensorrt'"), "expected some of onnx, tflite, got 'tensorrt'"),
        (HEAD + VARIANT.replace("'small'", "'original'"), "variant[0].name: 'original' is the uncompressed"),
        (HEAD + VARIANT + VARIANT, "variant[1].name: 'small' is taken by another variant"),
        (HEAD + VARIANT.replace("'tflite'", "'onnx'"), "variant[0].formats: expected each format once, got onnx, onnx"),
        (HEAD.replace("0.1", "nan") + VARIANT, "guard.max_drop: expected 0 or more, got nan"),
        (HEAD.replace("0.1", "-1.0") + VARIANT, "guard.max_drop: expected 0 or more, got -1.0"),
        (HEAD, "expected at least one [[variant]]"),
        (HEAD + "[[variant]]\nname = 'x'\n", "variant[0].steps: expected at least one step"),
        (HEAD + "[[variant]]\nname = 'a/../b'\nsteps = [{}]\n", "variant[0].name: expected lower-case"),
        (
            HEAD
            + "[[variant]]\nname = 'x'\nsteps = [{technique = 'quantize', mode = 'fp16'}, {technique = 'prune'}]\n",
            "variant[0].steps[1]: prune works on the torch module and must come before quantize",
        ),
        (
            HEAD + "[[variant]]\nname = 'x'\nsteps = [{technique = 'prune', layers = {stem = {ratios = 1}}}]\n",
            "variant[0].steps[0].layers.stem.ratios: unknown key; did you mean 'ratio'?",
        ),
        (HEAD + "[[variant]]\nname = 'x'\nsteps = [{technique = 'low_rank'}]\n", "expected either energy"),
        (HEAD + "[[variant]]\nname = 'x'\nsteps = [{technique = 'quantize'}]\n", "missing required field mode"),
        (
            HEAD + one("{technique = 'quantize', mode = 'fp16', io = 'int8'}"),
            "steps[0].io: int8 inputs and outputs need",
        ),
        *(
            (HEAD + one(f"{{technique = '{tag}', lr = 0.1, epochs = 0}}"), "steps[0].lr: does nothing with epochs = 0")
            for tag in ("prune", "cluster", "compact", "structured")
        ),
        (
            HEAD + one("{technique = 'prune'}", "{technique = 'distill', student = 'compress_zoo:student'}"),
            "variant[0].steps[1]: distill starts from another model, and nothing of what prune (steps[0]) makes",
        ),
        ("seed = ", "not TOML"),
    ],
)
def test_a_mistake_is_one_line_with_the_path_of_the_key(text, line):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.toml: cannot read the recipe"):
        load(tmp_path / "absent.toml")


def test_an_onnx_source_is_looked_for_beside_the_recipe(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(HEAD.replace("compress_zoo:build", "model.onnx") + VARIANT)
    with pytest.raises(UsageError, match=r"no file model\.onnx in "):
        load(recipe)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match="prune needs a torch module"):
        load(recipe)


KNOWN = [
    "model",
    "data",
    "metric",
    "seed",
    "guard",
    "budget",
    "variant",
    "source",
    "name",
    "formats",
    "steps",
    "technique",
]
WORDS = st.sampled_from(["onnx", "prune", "a:b"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["onnx", "prune", "a:b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=6), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KNOWN), values))
def test_whatever_a_file_holds_the_answer_is_a_recipe_or_one_line(tables):
    from unittest.mock import patch

    # TOML text has no None; the tables are handed over as the parser would hand them.
    with patch.object(tomllib, "loads", lambda _text: tables):
        try:
            parse("")
        except UsageError as error:
            assert "\n" not in str(error)
