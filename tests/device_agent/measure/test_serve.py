"""The local endpoint, spoken to as an application on the board would."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
from edgepress_agent.measure.bench import Bench
from edgepress_agent.serving.serve import QUIET_S, Server
from edgepress_protocol.errors import Unavailable, UsageError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measure_lab import QUICK, Lab, Variant, needs_format

RIGHT = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [0.5] * 16}]}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def connect(server: Server) -> http.client.HTTPConnection:
    if server.address.startswith("unix:"):
        return UnixConnection(server.address.removeprefix("unix:"))
    return http.client.HTTPConnection(*server.address.split(":"), timeout=20)


def ask(server: Server, method: str, path: str, body=None, headers=None) -> tuple[int, dict]:
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
    with contextlib.closing(connect(server)) as connection:
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


async def asked(*call) -> tuple[int, dict]:
    return await asyncio.to_thread(ask, *call)


@asynccontextmanager
async def serving(work_dir: Path, variant: Variant | None, address: str = "127.0.0.1:0") -> AsyncIterator[Server]:
    server = Server(address, work_dir)
    await server.start()
    try:
        if variant is not None:
            await server.swap(variant.manifest, variant.model)
        yield server
    finally:
        await server.stop()


def serve(work_dir: Path, story, name: str | None = "tiny", address: str = "127.0.0.1:0"):
    async def run():
        async with serving(work_dir, Variant(name) if name else None, address) as server:
            return await story(server)

    return asyncio.run(run())


async def counted(server: Server, requests: int) -> None:
    while server.stats().requests < requests:  # noqa: ASYNC110 - a test looks from outside, where no event is
        await asyncio.sleep(0.01)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def golden(name: str) -> tuple[list, list]:
    from safetensors.numpy import load_file

    vectors = load_file(Variant(name).golden)
    return vectors["input.0"], vectors["output.0"]


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


json_values = st.recursive(st.none() | st.integers() | st.text(), st.lists)


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
    assert answer["error"] == "Unsupported method ('PUT')"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """A server that runs beside the test, on a loop of its own."""
    needs_format("onnx")
    loop = asyncio.new_event_loop()
    # The child asks to die with the thread that started it.
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = Server("127.0.0.1:0", tmp_path_factory.mktemp("endpoint"))

    def do(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    do(server.start())
    do(server.swap(Variant("tiny").manifest, Variant("tiny").model))
    yield server
    do(server.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_swap_loses_no_request(tmp_path):
    """One client keeps its connection, one does not; both ask all the while; three swaps; every answer is right."""
    answers: list[tuple[int, str]] = []
    over = threading.Event()

    def client(server: Server, keep: bool) -> None:
        connection = connect(server)
        while not over.is_set():
            connection.request("POST", "/v2/models/active/infer", json.dumps(RIGHT))
            response = connection.getresponse()
            answers.append((response.status, json.loads(response.read())["model_version"]))
            if not keep:
                connection.close()
        connection.close()

    async def story(server: Server):
        variant = Variant("tiny")
        clients = [asyncio.create_task(asyncio.to_thread(client, server, keep)) for keep in (True, False)]
        versions = [variant.manifest.model.sha256]
        for digit in "123":
            await asyncio.sleep(0.2)
            versions.append(digit * 64)
            model = msgspec.structs.replace(variant.manifest.model, sha256=versions[-1])
            await server.swap(msgspec.structs.replace(variant.manifest, model=model), variant.model)
        await asyncio.sleep(0.2)
        over.set()
        await asyncio.gather(*clients)
        assert {status for status, _ in answers} == {200}
        assert {version for _, version in answers} == set(versions)
        assert answers[-1][1] == versions[-1]
        await server.wait_idle()
        assert server.stats().requests == len(answers)
        assert server.stats().errors == 0
        assert server.stats().latency.total == len(answers)

    before = children()
    serve(tmp_path, story)
    assert children() == before


def test_a_model_that_does_not_load_leaves_the_old_one_serving(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")

    async def story(server: Server):
        with pytest.raises(Unavailable, match="tiny does not load: "):
            await server.swap(Variant("tiny").manifest, broken)
        assert (await asked(server, "POST", "/v2/models/active/infer", RIGHT))[0] == 200

    serve(tmp_path / "w", story)


def test_a_serving_process_that_dies_is_started_again(tmp_path):
    before = children()

    async def story(server: Server):
        (child,) = children() - before
        heard: list[str] = []
        server.on_trouble = heard.append
        os.kill(child.pid, signal.SIGSEGV)
        # The socket stays: the request waits for the next process, and is answered.
        await asyncio.to_thread(child.wait)
        assert (await asked(server, "POST", "/v2/models/active/infer", RIGHT))[0] == 200
        assert heard[0].startswith("the process that serves tiny is started again: the runtime crashed: ")
        assert heard[1:] == [""]

    serve(tmp_path, story)


def test_idle_and_busy(tmp_path):
    async def story(server: Server):
        assert not server.busy()
        await asyncio.wait_for(server.wait_idle(), 0.5)
        await asked(server, "POST", "/v2/models/active/infer", RIGHT)
        await counted(server, 1)
        seen = time.monotonic()
        assert server.busy()
        await server.wait_idle()
        assert QUIET_S - 0.2 < time.monotonic() - seen < QUIET_S + 5.0
        assert not server.busy()

    serve(tmp_path, story)


def test_requests_that_came_while_a_trial_ran_are_noted_with_it(tmp_path):
    lab, variant = Lab(tmp_path), Variant("tiny")
    job = lab.job(variant.manifest, variant.model, msgspec.structs.replace(QUICK, when_busy=True))

    async def measured(server: Server, *, ask_on: bool) -> tuple[str, ...]:
        end = asyncio.get_running_loop().create_future()
        bench = Bench(
            Path("/"), lab.lock, server, lambda _: True, lambda *_: None, lambda _, end_: end.set_result(end_)
        )
        bench.offer(job)
        running = asyncio.create_task(bench.run())
        while ask_on and not end.done():
            await asked(server, "POST", "/v2/models/active/infer", RIGHT)
        outcome = await end
        running.cancel()
        return outcome.measurement.notes

    async def story(server: Server):
        line = "the serving model had requests while this was measured"
        assert line not in await measured(server, ask_on=False)
        assert line in await measured(server, ask_on=True)

    serve(tmp_path, story)


def test_errors_are_counted(tmp_path):
    async def story(server: Server):
        await asked(server, "POST", "/v2/models/active/infer", {})
        await asked(server, "POST", "/v2/models/active/infer", RIGHT)
        await counted(server, 2)
        assert server.stats().errors == 1
        assert server.stats().in_flight == 0

    serve(tmp_path, story)


def test_a_crash_under_a_request_is_not_the_end(lab: Lab, misbehaving_runtime):
    """The misbehaving runtime crashes at its 21st run; the client sees its connection break, and then an answer."""
    manifest, model = lab.misbehaving("flood")
    request = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}

    async def run():
        server = Server(f"unix:{lab.folder}/s.sock", lab.folder / "w")
        await server.start()
        await server.swap(manifest, model)
        outcomes = []
        for _ in range(25):
            try:
                outcomes.append((await asked(server, "POST", "/v2/models/active/infer", request))[0])
            except (OSError, http.client.HTTPException):
                outcomes.append(None)
        await server.stop()
        return outcomes

    outcomes = asyncio.run(run())
    assert outcomes.count(None) == 1
    assert outcomes.count(200) == 24


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:80", "example.org:80", "127.0.0.1:x", "nonsense"])
def test_it_serves_this_machine_alone(tmp_path, address):
    with pytest.raises(UsageError, match="--serve"):
        asyncio.run(Server(address, tmp_path).start())


def test_an_address_in_use_is_one_line(tmp_path):
    async def run():
        async with serving(tmp_path, None) as server:
            with pytest.raises(UsageError, match="cannot listen there"):
                await Server(server.address, tmp_path).start()

    asyncio.run(run())


def test_a_socket_that_another_agent_listens_on_is_left_to_it(tmp_path):
    needs_format("onnx")

    async def story(server: Server):
        other = Server(server.address, tmp_path / "other")
        with pytest.raises(UsageError, match="cannot listen there: Address already in use"):
            await other.start()
        assert (await asked(server, "GET", "/v2/health/ready"))[0] == 200

    serve(tmp_path, story, address=f"unix:{tmp_path}/s.sock")


def test_a_socket_left_by_an_agent_that_was_killed_is_replaced_and_a_file_is_not(tmp_path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "s.sock"))
    left.close()

    async def nothing(server: Server):
        pass

    serve(tmp_path, nothing, None, f"unix:{tmp_path}/s.sock")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot listen there"):
        serve(tmp_path, nothing, None, f"unix:{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "mine"
