"""The local endpoint, spoken to as an application on the board would."""

from __future__ import annotations

import json

import pytest
from edgepress_agent.serving.serve import Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measure_lab import Variant
from serve_lab import RIGHT, ask, asked, golden, serve


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix"])
def test_an_application_asks_and_is_answered(tmp_path, address):
    address = f"unix:{tmp_path}/s.sock" if address == "unix" else address
    x, y = golden("tiny")

    async def story(server: Server):
        assert (await asked(server, "GET", "/v2/health/ready")) == (200, {"ready": True})
        status, metadata = await asked(server, "GET", "/v2/models/tiny")
        assert status == 200
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
        request = {
            "id": "7",
            "inputs": [{"name": "x", "shape": [2, 16], "datatype": "FP32", "data": x[:2].tolist()}],
        }
        for name in ("tiny", "active"):
            status, answer = await asked(server, "POST", f"/v2/models/{name}/infer", request)
            assert status == 200, answer
            assert answer["id"] == "7"
            assert answer["model_version"] == Variant("tiny").manifest.model.sha256
            (output,) = answer["outputs"]
            assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [2, 4])
            assert output["data"] == pytest.approx(y[:2].reshape(-1).tolist(), abs=1e-5)

    serve(tmp_path / "w", story, address=address)
    assert not (tmp_path / "s.sock").exists()


def test_reals_go_in_and_come_out_of_a_quantized_model(tmp_path):
    stored, expected = golden("int8")
    variant = Variant("int8")
    into, out = variant.manifest.inputs[0], variant.manifest.outputs[0]
    reals = (stored[0].astype(float) - into.quantization.zero_point) * into.quantization.scale

    async def story(server: Server):
        for datatype, data in (("FP32", reals), ("INT8", stored[0])):
            tensor = {"name": into.name, "shape": [1, 1, 8, 8], "datatype": datatype, "data": data.tolist()}
            status, answer = await asked(server, "POST", "/v2/models/active/infer", {"inputs": [tensor]})
            assert status == 200, answer
            (output,) = answer["outputs"]
            assert output["datatype"] == datatype
            steps = [value / out.quantization.scale + out.quantization.zero_point for value in output["data"]]
            got = steps if datatype == "FP32" else output["data"]
            assert got == pytest.approx(expected[0].tolist(), abs=1.01)

    serve(tmp_path, story, "int8")


@pytest.mark.parametrize("name", ["float", "int8"])
def test_a_batch_that_a_file_cannot_take_leaves_it_able_to_answer(tmp_path, name):
    """The input goes by another name: a lone one needs none."""
    x, _ = golden(name)

    async def story(server: Server):
        for batch, expected in ((1, 200), (2, 400), (1, 200), (3, 400), (1, 200)):
            pixels = [0.5] * (64 * batch)
            tensor = {"name": "anything", "shape": [batch, 1, 8, 8], "datatype": "FP32", "data": pixels}
            status, answer = await asked(server, "POST", "/v2/models/active/infer", {"inputs": [tensor]})
            assert status == expected, answer

    assert x.shape[1:] == (1, 8, 8)
    serve(tmp_path, story, name)


def changed(**changes) -> dict:
    return {"inputs": [{**RIGHT["inputs"][0], **changes}]}


@pytest.mark.parametrize(
    ("request_body", "said"),
    [
        (b"{", "not an inference request"),
        (b"[]", "not an inference request"),
        ({}, "not an inference request"),
        ({"inputs": []}, "input 'x' is missing"),
        ({"inputs": [*RIGHT["inputs"], {**RIGHT["inputs"][0], "name": "z"}]}, "no input 'z': expected x"),
        (changed(datatype="FP64"), "input 'x' has datatype 'FP64': expected FP32"),
        (changed(datatype="BYTES"), "input 'x' has datatype 'BYTES': expected FP32"),
        (changed(shape=[1, 15]), "input 'x' has shape [1, 15]: expected [-1, 16]"),
        (changed(shape=[16]), "input 'x' has shape [16]"),
        (changed(shape=[0, 16], data=[]), "input 'x' has shape [0, 16]"),
        (changed(data=[0.5] * 15), "15 numbers for shape [1, 16]"),
        (changed(data=["a"] * 16), "data is not all FP32"),
        (changed(data=[[0.5], 0.5]), "data is ragged"),
    ],
)
def test_bad_input_is_400_in_one_line_and_the_next_request_is_served(endpoint, request_body, said):
    status, answer = ask(endpoint, "POST", "/v2/models/active/infer", request_body)
    assert status == 400
    assert said in answer["error"]
    assert "\n" not in answer["error"]
    assert ask(endpoint, "POST", "/v2/models/active/infer", RIGHT)[0] == 200


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_body_breaks_the_endpoint(endpoint, body):
    assert ask(endpoint, "POST", "/v2/models/active/infer", body)[0] == 400


def test_numbers_beyond_an_integer_input_are_refused(tmp_path):
    name = Variant("int8").manifest.inputs[0].name

    async def story(server: Server):
        for value in (128, 0.5):
            tensor = {"name": name, "shape": [1, 1, 8, 8], "datatype": "INT8", "data": [value] * 64}
            status, answer = await asked(server, "POST", "/v2/models/active/infer", {"inputs": [tensor]})
            assert status == 400
            assert "INT8" in answer["error"]

    serve(tmp_path, story, "int8")


def test_other_paths_lengths_and_sizes_are_refused(endpoint):
    assert ask(endpoint, "GET", "/v2/models/other")[0] == 404
    assert ask(endpoint, "GET", "/")[0] == 404
    status, answer = ask(endpoint, "POST", "/v2/models/other/infer", RIGHT)
    assert status == 404
    assert "the model is 'tiny', or 'active'" in answer["error"]
    status, answer = ask(endpoint, "POST", "/v2/models/active/infer", None, {"Content-Length": str(1 << 40)})
    assert status == 413
    status, answer = ask(endpoint, "POST", "/v2/models/active/infer", None, {"Transfer-Encoding": "chunked"})
    assert status == 411
    status, answer = ask(endpoint, "POST", "/v2/models/active/infer", None, {"Content-Length": "9" * 5000})
    assert status == 413
    status, answer = ask(endpoint, "PUT", "/v2/models/active/infer", RIGHT)
    assert status == 501
    assert answer["error"] == "method 'PUT' is none of GET, HEAD, POST"
