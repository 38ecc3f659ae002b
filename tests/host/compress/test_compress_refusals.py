"""What a compress run refuses before it works, in one line that names the key: models, data and metrics."""

from __future__ import annotations

import json

import pytest
from compress_recipes import HEAD, one
from edgepress_host import variants
from edgepress_protocol.errors import UsageError


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (":build", ":biuld", "compress_zoo has no attribute 'biuld'; did you mean 'build'?"),
        ("compress_zoo:build", "compress_zoa:build", "no module named 'compress_zoa'"),
        ("compress_zoo:build", "compress_zoo", "expected 'module:attr', for instance 'mynet:build'"),
        ("compress_zoo:load", "compress_zoo", "expected 'module:attr', for instance 'mynet:load'"),
        (":load", ":bild", "compress_zoo has no attribute 'bild'; did you mean 'load'?"),
        (":load", ":load_nann", "did you mean 'load_nan'?"),
        (":build", ":number", "expected a callable, got int"),
        (":build", ":not_a_module", "expected a torch.nn.Module or a callable that returns one, got int"),
        (":build", ":raising", "it raised RuntimeError: the weights are elsewhere"),
        (":load", ":load_nan", "sample 3 holds NaN or infinity"),
        (":build", ":leaving", "it raised SystemExit: 3"),
        (":load", ":load_nan_labels", "label 5 holds NaN or infinity"),
        (":load", ":load_named_labels", "expected numbers as labels, got <U7"),
        (":load", ":load_ragged", "expected arrays, got what makes none: ValueError"),
        (
            ":load",
            ":load_uneven",
            "split 'validate': expected samples of shape (1, 12, 12), as split",
        ),
        (":load", ":load_numbers", "expected arrays with a sample per row, got int"),
        ("[model]", "metric = 'compress_zoo:no_number'\n[model]", "metric: it raised TypeError"),
        (
            "[model]",
            "metric = 'compress_zoo:vandal'\n[model]",
            "metric: it raised ValueError: output array is read-only",
        ),
        (":build", ":half", "expected weights in float32, got bfloat16 in stem.weight; use model.float()"),
        (":build", ":double", "expected weights in float32, got float64 in stem.weight"),
        (":load", ":not_a_module", "it raised TypeError"),
        (":load", ":number", "expected a callable, got int"),
    ],
)
def test_bad_input_is_one_line_that_names_the_key(press, tmp_path, old, new, line):
    with pytest.raises(UsageError) as error:
        press(HEAD.replace(old, new) + one('{ technique = "prune", epochs = 1 }'), tmp_path / "out")
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "variants.json").exists()


def test_a_folder_without_variants_is_said_to_be_one(tmp_path):
    with pytest.raises(UsageError, match=r"make it with: edgepress compress RECIPE --out"):
        variants.read(tmp_path)
    (tmp_path / "variants.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(UsageError, match="expected schema 1, got 99"):
        variants.read(tmp_path)
    (tmp_path / "variants.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not JSON"):
        variants.read(tmp_path)
