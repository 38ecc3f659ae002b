"""The client of three lines, as its page has it."""

from __future__ import annotations

import array
import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edgepress_agent.serving import client as client_file
from edgepress_agent.serving.client import Model, Refused
from measure_lab import Variant, wait_for
from serve_lab import children, golden, in_version, serve, serving
from serve_types import DTYPES, TYPES

PAGE = Path(__file__).parents[3] / "docs/how-to/ask-the-active-model.md"


def test_numbers_go_in_as_they_come(endpoint):
    x, y = golden("tiny")
    with Model(endpoint.address) as model:
        takes(model, x, y)
    assert model(x)[0].shape == (len(x), 4)
    model.close()


def takes(model, x, y):
    for given in (x, x.astype("float64"), x.tolist(), x.ravel().tolist(), array.array("f", x.ravel().tolist())):
        (output,) = model(given)
        assert output.shape == (len(x), 4)
        assert output.format == "f"
        assert np.asarray(output) == pytest.approx(y, abs=1e-5)
    assert model(x[0].tolist())[0].tolist() == [pytest.approx(y[0].tolist(), abs=1e-5)]
    assert model([0] * 16)[0].shape == (1, 4)


def test_every_type(typed):
    with Model(typed.address, "types") as model:
        for given in (list(TYPES.values()), [np.array(values, DTYPES[name]) for name, values in TYPES.items()]):
            for output, (name, values) in zip(model(*given), TYPES.items(), strict=True):
                assert output.tolist() == [values], name


def test_a_quantized_model_takes_reals_and_gives_reals(tmp_path):
    stored, expected = golden("int8")
    into, out = (specs[0].quantization for specs in (Variant("int8").manifest.inputs, Variant("int8").manifest.outputs))
    reals = (stored[0].astype(float) - into.zero_point) * into.scale

    def talk(server):
        with Model(server.address) as model:
            (output,) = model(reals.tolist())
            steps = np.asarray(output) / out.scale + out.zero_point
            assert steps[0] == pytest.approx(expected[0], abs=1.01)
            assert np.asarray(model(stored[0])[0])[0] == pytest.approx(expected[0], abs=1)

    serve(tmp_path / "w", lambda server: asyncio.to_thread(talk, server), "int8", f"unix:{tmp_path}/s.sock")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (([0.5] * 15,), "15 numbers for shape"),
        ((["a"] * 16,), "not all are FP32"),
        (([[0.5], [0.5, 0.5]],), "rows of an input differ"),
        (([0.5] * 16, [0.5]), "2 inputs were given, the model takes 1: x"),
    ],
)
def test_what_is_no_input_is_said_before_it_is_sent(endpoint, given, said):
    with Model(endpoint.address) as model, pytest.raises(ValueError, match=said):
        model(*given)


def test_the_endpoints_errors_have_status_and_line(endpoint):
    with pytest.raises(Refused, match="the model is 'tiny', or 'active'") as caught:
        Model(endpoint.address, "other")
    assert caught.value.status == 404
    with Model(endpoint.address) as model:
        with pytest.raises(Refused, match="input 'x' has shape"):
            model(np.zeros((2, 3), "float32"))
        assert model([0.5] * 16)[0].shape == (1, 4)


def test_it_goes_on_through_deployments_and_crashes(tmp_path):
    """A model with other inputs comes, and the process dies: the program that asks knows of neither."""
    tiny, types = Variant("tiny"), Variant("types")
    numbers = list(TYPES.values())
    before = children()

    async def story():
        async with serving(tmp_path / "w", tiny, f"unix:{tmp_path}/s.sock") as server:
            model = await asyncio.to_thread(Model, server.address, timeout_s=120)
            assert (await asyncio.to_thread(model, [0.5] * 16))[0].shape == (1, 4)
            await server.swap(in_version(tiny.manifest, "1" * 64), tiny.model)
            assert (await asyncio.to_thread(model, [0.5] * 16))[0].shape == (1, 4)
            await server.swap(types.manifest, types.model)
            with pytest.raises(ValueError, match="1 inputs were given, the model takes 12: in-bool, "):
                while True:  # for a moment the model before may still answer
                    await asyncio.to_thread(model, [0.5] * 16)
            assert len(await asyncio.to_thread(model, *numbers)) == 12
            await asyncio.to_thread(wait_for, lambda: len(children() - before) == 1, 120)
            (child,) = children() - before
            os.kill(child.pid, signal.SIGKILL)
            await asyncio.to_thread(child.wait)
            assert len(await asyncio.to_thread(model, *numbers)) == 12
            model.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("address", "kind", "words"),
    [("/run/s.sock", ValueError, "expected unix:PATH or HOST:PORT"), ("unix:/no/s.sock", OSError, "/no/s.sock")],
)
def test_an_address_that_leads_nowhere_is_named(address, kind, words):
    with pytest.raises(kind, match=words):
        client_file.Model(address)


def test_it_needs_the_standard_library_alone(endpoint, tmp_path):
    (tmp_path / "copied.py").write_text(Path(client_file.__file__).read_text())
    code = f"import copied; print(copied.Model({endpoint.address!r})([0.5] * 16)[0].tolist())"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[")


def test_the_page_says_so(tmp_path):
    """Each block of Python on the page runs, against a model of four numbers less than it says."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    sock = f"{tmp_path}/s.sock"

    def run(server):
        for block in blocks:
            code = block.replace("/run/edgepress/serve.sock", sock).replace("[0.1, 0.2, 0.3, 0.4]", "[0.5] * 16")
            code = code.replace("[1, 4]", "[1, 16]")
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("[")

    serve(tmp_path / "w", lambda server: asyncio.to_thread(run, server), address=f"unix:{sock}")
