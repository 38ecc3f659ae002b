"""The endpoint as a standard client of the Open Inference Protocol sees it: NVIDIA's `tritonclient[http]`."""

from __future__ import annotations

import numpy as np
import pytest
from measure_lab import Variant
from serve_lab import golden
from serve_types import DTYPES, TYPES

http = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed here (extra dev)")


@pytest.fixture
def client(endpoint):
    with http.InferenceServerClient(endpoint.address) as client:
        yield client


def tensor(name: str, values: np.ndarray, datatype: str, *, binary: bool = True):
    made = http.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def test_it_finds_server_and_model(client):
    version = Variant("tiny").manifest.model.sha256
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("active", version)
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("active", "1")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("active") == {
        "name": "tiny",
        "versions": [version],
        "platform": "onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_it_infers(client, binary_in, binary_out):
    """None asks for no output by name: all come, as bytes."""
    x, y = golden("tiny")
    outputs = None if binary_out is None else [http.InferRequestedOutput("y", binary_data=binary_out)]
    for _ in range(3):
        answer = client.infer("active", [tensor("x", x, "FP32", binary=binary_in)], outputs=outputs, request_id="7")
        assert answer.as_numpy("y") == pytest.approx(y, abs=1e-5)
        assert answer.get_response()["id"] == "7"
        assert answer.get_response()["model_name"] == "tiny"


def test_it_sends_and_gets_every_type_at_once(typed):
    arrays = {name: np.array([values], DTYPES[name]) for name, values in TYPES.items()}
    with http.InferenceServerClient(typed.address) as client:
        answer = client.infer("types", [tensor(f"in-{DTYPES[name]}", array, name) for name, array in arrays.items()])
        for name, array in arrays.items():
            got = answer.as_numpy(f"out-{DTYPES[name]}")
            assert got.dtype == array.dtype
            assert np.array_equal(got, array)
        wanted = [http.InferRequestedOutput("out-int16"), http.InferRequestedOutput("out-float16")]
        some = client.infer("types", [tensor(f"in-{DTYPES[n]}", a, n) for n, a in arrays.items()], outputs=wanted)
        assert [each["name"] for each in some.get_response()["outputs"]] == ["out-int16", "out-float16"]


def test_its_asynchronous_requests_are_answered(endpoint):
    x, y = golden("tiny")
    with http.InferenceServerClient(endpoint.address, concurrency=4) as client:
        asked = [client.async_infer("active", [tensor("x", x, "FP32")]) for _ in range(20)]
        for each in asked:
            assert each.get_result().as_numpy("y") == pytest.approx(y, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "datatype", "said"),
    [
        ("other", (1, 16), "FP32", "the model is 'tiny', or 'active'"),
        ("active", (1, 15), "FP32", "input 'x' has shape [1, 15]: expected [-1, 16]"),
        ("active", (1, 16), "INT32", "input 'x' has datatype 'INT32': expected FP32"),
    ],
)
def test_it_understands_errors(client, model, shape, datatype, said):
    values = np.zeros(shape, "float32" if datatype == "FP32" else "int32")
    with pytest.raises(http.InferenceServerException) as caught:
        client.infer(model, [tensor("x", values, datatype)])
    assert said in caught.value.message()
    assert caught.value.status() in {"400", "404"}


def test_compression_is_refused_in_words(client):
    with pytest.raises(http.InferenceServerException, match="compressed request is not read"):
        client.infer("active", [tensor("x", golden("tiny")[0], "FP32")], request_compression_algorithm="gzip")
