from __future__ import annotations

import json
import sys

import pytest
from compress_recipes import HEAD, SMALL
from edgepress_host import sensitivity
from edgepress_host.cli import main
from edgepress_host.recipe import parse
from edgepress_host.sensitivity import Sweep, analyse, step_for
from edgepress_protocol.errors import UsageError

PRUNE = Sweep(technique="prune", option="ratio", levels=(0.25, 0.95), settings={"kind": "magnitude"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sensitivity")


@pytest.fixture(scope="module")
def found(folder):
    return analyse(parse(HEAD + SMALL), folder, PRUNE, layers=("block.*", "head"))


@pytest.fixture
def edgepress(capsys, monkeypatch):
    """Run `edgepress …` in this process; returns exit status, standard output and standard error."""
    monkeypatch.setattr(sys, "path", sys.path.copy())

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main([*map(str, arguments)])
        return left.value.code, *capsys.readouterr()

    return call


def test_one_layer_at_a_time_is_changed_and_measured(found):
    assert found.layers == ("block.conv", "block.mix", "head")
    assert [(cell.layer, cell.level) for cell in found.cells][:3] == [
        ("block.conv", 0.25),
        ("block.conv", 0.95),
        ("block.mix", 0.25),
    ]
    for cell in found.cells:
        assert cell.accuracy is not None
        assert cell.drop == pytest.approx(found.accuracy - cell.accuracy)
    mild, hard = found.row("head")
    assert hard.accuracy < mild.accuracy
    assert hard.wire_bytes < found.wire_bytes


def test_a_second_look_comes_from_the_cache(found, folder, monkeypatch):
    kind = type(step_for(PRUNE, "head", 0.25))
    monkeypatch.setattr(kind, "apply_module", lambda *_: pytest.fail("made again"))
    assert analyse(parse(HEAD + SMALL), folder, PRUNE, layers=("block.*", "head")) == found


def test_a_layer_the_technique_has_nothing_for_is_blank_with_its_reason(folder):
    asked = Sweep(technique="low_rank", option="energy", levels=(0.9,), settings={"energy": 0.9})
    cells = analyse(parse(HEAD + SMALL), folder, asked, layers=("stem", "hidden")).cells
    assert [cell.layer for cell in cells if cell.accuracy is not None]
    assert all(cell.reason for cell in cells if cell.accuracy is None)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        (Sweep(technique="prun", option="ratio", levels=(0.5,)), "did you mean 'prune'"),
        (Sweep(technique="prune", option="rate", levels=(0.5,)), "rate"),
        (Sweep(technique="prune", option="ratio", levels=(1.5,)), "ratio: expected"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(sweep, said):
    with pytest.raises(UsageError) as caught:
        step_for(sweep, "head", sweep.levels[0])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pattern_that_matches_nothing_is_refused(folder):
    with pytest.raises(UsageError, match=r"layer 'hed': matches no layer; did you mean 'head'"):
        analyse(parse(HEAD + SMALL), folder, PRUNE, layers=("hed",))


def test_the_command_prints_a_table_and_writes_a_plot(found, folder, edgepress):
    recipe = folder / "recipe.toml"
    recipe.write_text(HEAD + SMALL)
    chosen = ("--levels", "0.25,0.95", "--layers", "block.*", "--layers", "head")
    status, said, wrong = edgepress("sensitivity", "-", recipe, "--out", folder, *chosen)
    assert status == 0, wrong
    assert "block.conv" in said
    assert (folder / "sensitivity.html").read_text().count("<rect") == len(found.cells)
    _, said, _ = edgepress("sensitivity", "compress_zoo:build", recipe, "--out", folder, *chosen, "--json")
    assert json.loads(said)["layers"] == list(found.layers)
    assert json.loads((folder / sensitivity.FILE_NAME).read_text()) == json.loads(said)


def test_each_word_of_the_command_counts(tmp_path, edgepress):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(HEAD + SMALL)
    how = ("--technique", "cluster", "--option", "bits", "--levels", "1", "--set", "granularity='channel'")
    where = ("--layers", "head", "--format", "tflite")
    status, _, wrong = edgepress("sensitivity", "compress_zoo:student", recipe, "--out", tmp_path, *how, *where)
    assert status == 0, wrong
    found = json.loads((tmp_path / sensitivity.FILE_NAME).read_text())
    assert (found["model"], found["format"], found["layers"]) == ("compress_zoo:student", "tflite", ["head"])
    settings = {"granularity": "channel"}
    assert found["sweep"] == {"technique": "cluster", "option": "bits", "levels": [1.0], "settings": settings}
    assert [(cell["layer"], cell["level"]) for cell in found["cells"]] == [("head", 1.0)]
    assert found["cells"][0]["wire_bytes"] < found["wire_bytes"]
    files = [path.read_bytes() for path in (tmp_path / ".cache" / "blobs").iterdir()]
    assert sum(content[4:8] == b"TFL3" for content in files) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--levels", "0.5,x"), "--levels: expected numbers with commas between, got '0.5,x'"),
        (("--set", "kind"), "--set: expected KEY=VALUE"),
        (("--technique", "distill"), "say --option and --levels"),
        (("--option", "round_to"), "say --levels A,B,… too"),
    ],
)
def test_words_the_command_cannot_follow_end_in_one_line(folder, options, said, edgepress):
    recipe = folder / "recipe.toml"
    recipe.write_text(HEAD + SMALL)
    status, _, wrong = edgepress("sensitivity", "-", recipe, "--out", folder, *options)
    assert status == 2
    assert said in wrong
    assert len(wrong.splitlines()) == 1
