"""`--set KEY=VALUE`: a recipe's steps on another model, on other data, under another guard."""

from __future__ import annotations

import json

import pytest
from compress_recipes import HEAD, one
from edgepress_host import recipe
from edgepress_host.cli._settings import parsed
from edgepress_protocol.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st

TEXT = HEAD + one('{ technique = "quantize", mode = "fp16" }')


def test_each_table_and_each_key_at_the_top_can_be_set():
    given = parsed(["model.source=nets.mine:build", "guard.max_drop = 0.5", "seed=3", "budget.minimise='size'"])
    given["data.validate_samples"] = 10
    assert given["budget.minimise"] == "size"
    del given["budget.minimise"]
    found = recipe.parse(TEXT, given)
    assert (found.model.source, found.guard.max_drop, found.seed) == ("nets.mine:build", 0.5, 3)
    assert (found.data.source, found.data.validate_samples) == ("compress_zoo:load", 10)
    assert found.digest != recipe.parse(TEXT).digest


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (["seed"], "--set: expected KEY=VALUE, such as seed=1 or kind=channel, got 'seed'"),
        (["=1"], "got '=1'"),
        (["seed="], "got 'seed='"),
        (["seed=1\nmetric='x'"], "--set: expected KEY=VALUE"),
        (["seed=-1"], "seed: expected int >= 0"),
        ([f"seed={10**30}"], "seed: "),
        (["guard=1", "guard.max_drop=1"], "--set guard.max_drop: guard is no table"),
        (["seed=1", "seed=2"], "--set: seed is there twice; say it once"),
        (["guard.max_dorp=1"], "guard.max_dorp: unknown key; did you mean 'max_drop'?"),
        (["guard.max_drop=high"], "guard.max_drop: expected float, got str"),
        (["variant.name=x"], "--set variant.name: variant is no table"),
        (["model.source=gone.onnx"], "model.source: no file gone.onnx in "),
    ],
)
def test_what_cannot_be_set_is_one_line(texts, line):
    with pytest.raises(UsageError) as caught:
        recipe.parse(TEXT, parsed(texts))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_file_of_the_command_line_is_looked_for_where_the_user_stands(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "recipe.toml"
    path.write_text(TEXT)
    (tmp_path / "mine.onnx").write_bytes(b"a model")
    monkeypatch.chdir(tmp_path)
    assert recipe.load(path, {"model.source": "mine.onnx"}).model.source == str(tmp_path / "mine.onnx")


@given(st.text())
def test_any_text_is_a_setting_or_one_line(text):
    try:
        found = parsed([text])
    except UsageError as error:
        assert str(error).startswith("--set: ")
    else:
        assert len(found) == 1


def test_the_command_compresses_what_was_set(edgepress, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(TEXT)
    done = edgepress("compress", path, "--out", "out", "--set", "model.source=compress_zoo:student", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "compress_zoo:student"
