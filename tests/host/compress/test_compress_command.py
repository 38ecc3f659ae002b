"""`edgepress compress` as a process: what a user sees, Ctrl-C, a disk that is full."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from compress_recipes import HEAD, one

PRUNE = '{ technique = "prune", ratio = 0.5, epochs = 1, samples = 128 }'
INT8 = '{ technique = "quantize", mode = "static", samples = 16 }'


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(HEAD + one(PRUNE, INT8))
    return path


def test_a_mistake_in_the_recipe_is_one_line_and_exit_2(edgepress, recipe):
    recipe.write_text(recipe.read_text().replace("ratio", "ratoi"))
    done = edgepress("compress", recipe, "--out", "out")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {recipe}: variant[0].steps[0].ratoi: unknown key; did you mean 'ratio'?"
    ]


def test_where_no_variant_worked_the_exit_status_says_so(edgepress, recipe):
    recipe.write_text(HEAD.replace(":build", ":unexportable") + one(INT8))
    done = edgepress("compress", recipe, "--out", "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no variant worked; the first: v.onnx, the original does not")
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_with_one_line_and_the_next_run_goes_on(recipe, tmp_path, command, environment, edgepress):
    long = '{ technique = "prune", ratio = 0.5, epochs = 900, samples = 384 }'
    recipe.write_text(HEAD + one(PRUNE, INT8, name="first") + one(long, name="second"))
    arguments = command("compress", recipe, "--out", "out")
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "second.onnx, prune" in line:
                break
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, seen
    assert rest.splitlines()[-1] == "stopped; finished steps are kept, the same command goes on from here"
    assert "Traceback" not in rest
    keys = tmp_path / "out" / ".cache" / "keys"
    before = {path: path.stat().st_mtime_ns for path in keys.iterdir()}
    assert len(before) > 5

    recipe.write_text(recipe.read_text().replace("900", "1"))
    again = edgepress("compress", recipe, "--out", "out", "--json")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads(again.stdout) == json.loads((tmp_path / "out" / "variants.json").read_text())


def test_a_full_disk_is_one_line_and_nothing_is_lost(recipe, tmp_path, command, environment):
    """A limit on the size of files fails a write as a full disk does: no file of more than 40 kB fits."""
    arguments = command("compress", recipe, "--out", "out")
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 40; exec \"$@\"", "bash", *arguments]
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    full = subprocess.run(limited, check=False, **options)
    assert full.returncode == 1
    assert "the disk is full" in full.stderr.splitlines()[-1]
    assert "Traceback" not in full.stderr
    assert not list((tmp_path / "out").glob("*.onnx"))
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.stat().st_size >= 40_000]
    assert left == []

    free = subprocess.run(arguments, check=False, **options)
    assert free.returncode == 0, free.stderr
    assert "[1/" in free.stderr
    assert "v.onnx" in free.stdout
    assert "2 files and variants.json in out" in free.stdout


def test_help_names_the_recipe_and_the_folder(edgepress):
    done = edgepress("compress", "--help")
    assert "RECIPE" in done.stdout
    assert "--out DIR" in done.stdout


def test_module_attr_is_found_from_the_folder_the_user_stands_in(tmp_path, recipe, edgepress):
    (tmp_path / "mynet.py").write_text("import compress_zoo\nload = compress_zoo.load_nan\n")
    recipe.write_text((HEAD + one(PRUNE)).replace("compress_zoo:load", "mynet:load"))
    done = edgepress("compress", recipe, "--out", "out")
    assert done.returncode == 2
    assert "mynet:load" in done.stderr
    assert "holds NaN" in done.stderr
