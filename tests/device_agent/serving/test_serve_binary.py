"""Tensors as bytes, every type, several inputs and outputs, outputs by name, versions: as the protocol has them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from measure_lab import Variant
from serve_lab import RIGHT, ask, post
from serve_types import DTYPES, TYPES


def as_json(name: str, values: list) -> dict:
    return {"name": f"in-{DTYPES[name]}", "shape": [1, 3], "datatype": name, "data": values}


def as_bytes(name: str, values) -> tuple[dict, bytes]:
    data = np.array(values, DTYPES[name]).tobytes()
    about = {"name": f"in-{DTYPES[name]}", "shape": [len(data) // np.dtype(DTYPES[name]).itemsize // 3, 3]}
    return {**about, "datatype": name, "parameters": {"binary_data_size": len(data)}}, data


def test_every_type_in_json(typed):
    status, answer = ask(
        typed, "POST", "/v2/models/types/infer", {"inputs": [as_json(*each) for each in TYPES.items()]}
    )
    assert status == 200, answer
    assert {each["datatype"]: each["data"] for each in answer["outputs"]} == TYPES


def test_every_type_in_bytes_in_any_order_and_back_in_bytes(typed):
    """Sizes of 3, 6, 12 and 24 bytes one after another: most lie at odd addresses."""
    rendered, parts = zip(*(as_bytes(name, TYPES[name]) for name in reversed(TYPES)), strict=True)
    status, answer, behind = post(
        typed, {"inputs": rendered, "parameters": {"binary_data_output": True}}, b"".join(parts), name="types"
    )
    assert status == 200, answer
    assert [each["datatype"] for each in answer["outputs"]] == list(TYPES)
    for output in answer["outputs"]:
        size = output["parameters"]["binary_data_size"]
        assert np.frombuffer(behind[:size], DTYPES[output["datatype"]]).tolist() == TYPES[output["datatype"]]
        behind = behind[size:]
    assert behind == b""


def test_json_and_bytes_in_one_request_and_outputs_as_they_are_asked_for(typed):
    inputs, parts = [], b""
    for number, (name, values) in enumerate(TYPES.items()):
        if number % 2:
            inputs.append(as_json(name, values))
        else:
            about, data = as_bytes(name, values)
            inputs.append(about)
            parts += data
    outputs = [
        {"name": "out-float64"},
        {"name": "out-int8", "parameters": {"binary_data": True}},
        {"name": "out-bool", "parameters": {"binary_data": False}},
    ]
    status, answer, behind = post(typed, {"inputs": inputs, "outputs": outputs}, parts)
    assert status == 200, answer
    names = [each["name"] for each in answer["outputs"]]
    assert names == ["out-float64", "out-int8", "out-bool"]
    assert answer["outputs"][0]["data"] == TYPES["FP64"]
    assert answer["outputs"][1]["parameters"] == {"binary_data_size": 3}
    assert answer["outputs"][2]["data"] == TYPES["BOOL"]
    assert np.frombuffer(behind, "int8").tolist() == TYPES["INT8"]


def test_bytes_of_a_batch_larger_than_a_packet(endpoint):
    """Two megabytes in, half a one out."""
    x = np.random.default_rng(0).standard_normal((32768, 16)).astype(np.float32)
    about = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    request = {"inputs": [about], "parameters": {"binary_data_output": True}}
    status, answer, behind = post(endpoint, request, x.tobytes())
    assert status == 200, answer
    y = np.frombuffer(behind, np.float32).reshape(answer["outputs"][0]["shape"])
    alone = post(endpoint, {"inputs": [{**RIGHT["inputs"][0], "data": x[-1].tolist()}]})[1]
    assert y.shape == (32768, 4)
    assert y[-1].tolist() == pytest.approx(alone["outputs"][0]["data"], abs=1e-6)


def test_nan_travels_as_bytes_and_is_null_in_json(endpoint):
    x = np.full((1, 16), np.nan, np.float32)
    about = {"name": "x", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
    status, answer, behind = post(
        endpoint, {"inputs": [about], "parameters": {"binary_data_output": True}}, x.tobytes()
    )
    assert status == 200, answer
    assert np.isnan(np.frombuffer(behind, np.float32)).all()
    assert post(endpoint, {"inputs": [about]}, x.tobytes())[1]["outputs"][0]["data"] == [None] * 4


def binary(**changes) -> dict:
    tensor = {"name": "x", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
    return {"inputs": [{**tensor, **changes}]}


@pytest.mark.parametrize(
    ("request_body", "behind", "said"),
    [
        (binary(), b"\0" * 63, "says 64 bytes, which are not behind the JSON"),
        (binary(), b"", "says 64 bytes, which are not behind the JSON"),
        (binary(), b"\0" * 65, "1 bytes behind the JSON belong to no input"),
        (RIGHT, b"\0", "1 bytes behind the JSON belong to no input"),
        (binary(parameters={"binary_data_size": 60}), b"\0" * 60, "60 bytes: expected 64 bytes for FP32 [1, 16]"),
        (binary(parameters={"binary_data_size": -1}), b"\0" * 64, "not an inference request"),
        (binary(parameters={"binary_data_size": 1 << 62}), b"\0" * 64, "which are not behind the JSON"),
        (binary(shape=[1 << 39, 16]), b"\0" * 64, "expected 35184372088832 bytes"),
        (binary(parameters={"shared_memory_region": "r"}), b"", "shared memory is not read here"),
        (binary(parameters={}), b"", "neither data nor binary_data_size"),
        ({**RIGHT, "outputs": [{"name": "y"}, {"name": "y"}]}, b"", "an output is asked for twice"),
        ({**RIGHT, "outputs": [{"name": "a"}, {"name": "y"}]}, b"", "no output 'a': expected y"),
        ({**RIGHT, "outputs": [{"name": "y", "parameters": {"classification": 2}}]}, b"", "neither classification nor"),
        ({**RIGHT, "parameters": {"sequence_id": 7}}, b"", "sequences are not kept here"),
        ({"inputs": RIGHT["inputs"] * 2}, b"", "input 'x' came twice"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(endpoint, request_body, behind, said):
    status, answer, _ = post(endpoint, request_body, behind)
    assert status == 400
    assert said in answer["error"]
    assert "\n" not in answer["error"]


def test_a_bool_is_a_byte_of_0_or_1(typed):
    tensors = [as_bytes(name, values) for name, values in TYPES.items()]
    parts = b"".join(data for _, data in tensors)
    status, answer, _ = post(typed, {"inputs": [about for about, _ in tensors]}, b"\2" + parts[1:])
    assert status == 400
    assert answer["error"] == "input 'in-bool': a byte of BOOL is neither 0 nor 1"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("UINT8", [0, 1, 256]),
        ("INT8", [0, 1, -129]),
        ("UINT64", [0, 1, 2**64]),
        ("INT64", [0, 1, 2**63]),
        ("INT64", [0, 1, 10**4000]),
        ("FP16", [0, 1, 65520]),
        ("FP32", [0, 1, 1e39]),
        ("INT32", [0, 1, 0.5]),
        ("INT32", [0, 1, True]),
        ("BOOL", [0, 1, 1]),
        ("FP64", [0, 1, "1"]),
        ("FP64", [0, 1, None]),
        ("FP64", [[0, 1], 1]),
    ],
)
def test_a_number_that_its_type_cannot_hold_is_refused(typed, name, values):
    inputs = [as_json(each, values if each == name else right) for each, right in TYPES.items()]
    status, answer = ask(typed, "POST", "/v2/models/types/infer", {"inputs": inputs})
    assert status == 400
    assert f"in-{DTYPES[name]}" in answer["error"]


def test_versions(endpoint):
    version = Variant("tiny").manifest.model.sha256
    for path in ("", "/ready"):
        assert ask(endpoint, "GET", f"/v2/models/tiny/versions/{version}{path}")[0] == 200
        assert ask(endpoint, "GET", f"/v2/models/tiny/versions/{'0' * 64}{path}")[0] == 404
    assert ask(endpoint, "POST", f"/v2/models/active/versions/{version}/infer", RIGHT)[0] == 200
    status, answer = ask(endpoint, "POST", "/v2/models/active/versions/1/infer", RIGHT)
    assert status == 404
    assert answer["error"].endswith(f"in version {version[:12]}…")


def test_the_server_says_what_it_is(endpoint):
    status, answer = ask(endpoint, "GET", "/v2")
    assert status == 200
    assert answer["name"] == "edgepress"
    assert answer["extensions"] == ["binary_tensor_data"]
    assert json.dumps(answer["version"])
