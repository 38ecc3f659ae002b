"""What a request to the active model costs above the bare runtime, and how many a second are answered.

`python benchmarks/serve.py [--rounds 24] [--runs 100] [--write]` serves two small models as an agent does (a confined
process behind a socket), and asks them one request after another in several ways. Each round times every way and a bare
`session.run` loop of the same file in this process, so that what others do to the machine falls on all alike; a way's
overhead is its median minus the bare loop's in the same round. `--write` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns

import numpy as np
import onnx
import onnxruntime
from edgepress_agent.serving.client import Model
from edgepress_agent.serving.serve import Server
from edgepress_protocol.manifest import Manifest, TensorSpec
from edgepress_protocol.transfer import describe
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent / "compression"))

import page

WARM_UP = 50
ECHO = """
import socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
body = memoryview(bytearray(int(sys.argv[2])))
while True:
    have = 0
    while have < len(body):
        count = connection.recv_into(body[have:])
        if not count:
            sys.exit()
        have += count
    connection.sendall(b"x" * 200)
"""
TURN_NS = 500_000_000
Way = Callable[[], object]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=24)
    options.add_argument("--runs", type=int, default=100, help="requests of each way in a round")
    options.add_argument("--write", action="store_true")
    asked = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, build in (("16 numbers in, 4 out", dense), ("an image of 3 × 224 × 224 in, 3 out", image)):
            rows += measured(name, Path(folder), build(), asked.rounds, asked.runs)
    head = ("asked", "p50, µs", "p95, µs", "requests a second", "overhead at p50, µs", "10th to 90th percentile")
    text = page.table(head, rows) + f"\n\n{page.machine()}; {asked.rounds} rounds of {asked.runs} requests."
    text += f" Load average over the last five minutes: {os.getloadavg()[1]:.1f}."
    print(text)
    if asked.write:
        page.write("serve", text)


def measured(name: str, folder: Path, model: onnx.ModelProto, rounds: int, runs: int) -> Iterator[tuple[str, ...]]:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    spec = model.graph.input[0].type.tensor_type.shape.dim
    x = np.random.default_rng(0).standard_normal([each.dim_value for each in spec]).astype(np.float32)
    manifest = Manifest("bench", "onnx", describe(path.read_bytes())[0], *tensors(model))
    with (
        serving(f"unix:{folder}/serve.sock", folder, manifest, path) as on_socket,
        serving("127.0.0.1:0", folder, manifest, path) as on_loopback,
        contextlib.ExitStack() as clients,
    ):
        ways = {
            "bare session.run": bare(path, x),
            "echo of as many bytes, Unix socket": echo(clients, x),
            "ready-made bytes, Unix socket": raw(clients, on_socket, x),
            "ready-made bytes, loopback": raw(clients, on_loopback, x),
            "Model, array, Unix socket": ours(clients, on_socket, x),
            "Model, array, loopback": ours(clients, on_loopback, x),
            "http.client, JSON, loopback": in_json(clients, on_loopback, x),
            "tritonclient, bytes, loopback": tritons(clients, on_loopback, x),
        }
        times = {way: timed(ask, WARM_UP)[:0] for way, ask in ways.items()}
        for _ in range(rounds):
            for way, ask in ways.items():
                times[way].append(timed(ask, runs))
    yield (f"**{name}**", "", "", "", "", "")
    medians = {way: [statistics.median(each) for each in found] for way, found in times.items()}
    for way, found in times.items():
        every = np.concatenate([np.array(each) for each in found])
        above = [a - b for a, b in zip(medians[way], medians["bare session.run"], strict=True)]
        low, high = np.percentile(above, [10, 90])
        is_bare = way == "bare session.run"
        yield (
            way,
            f"{np.median(every) / 1e3:,.0f}",
            f"{np.percentile(every, 95) / 1e3:,.0f}",
            f"{1e9 / every.mean():,.0f}",
            "" if is_bare else f"{statistics.median(above) / 1e3:,.0f}",
            "" if is_bare else f"{low / 1e3:,.0f} to {high / 1e3:,.0f}",
        )


def timed(ask: Way, runs: int) -> list[int]:
    """Time so many requests, or as many as half a second holds."""
    times: list[int] = []
    while len(times) < runs and sum(times) < TURN_NS:
        started = perf_counter_ns()
        ask()
        times.append(perf_counter_ns() - started)
    return times


@contextlib.contextmanager
def serving(address: str, folder: Path, manifest: Manifest, model: Path) -> Iterator[str]:
    """Serve on a loop of its own, in a thread that does nothing while nothing changes."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = Server(address, folder / "work")

    def do(coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(120)

    do(server.start())
    do(server.swap(manifest, model))
    try:
        yield server.address
    finally:
        do(server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def bare(path: Path, x: np.ndarray) -> Way:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["y"], {"x": x})


def raw(clients: contextlib.ExitStack, address: str, x: np.ndarray) -> Way:
    """What the endpoint and the sockets cost: the request is made once, the answer is not looked at."""
    size = {"binary_data_size": x.nbytes}
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": size}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = header + x.tobytes()
    lengths = b"Content-Length: %d\r\nInference-Header-Content-Length: %d" % (len(body), len(header))
    request = b"POST /v2/models/active/infer HTTP/1.1\r\nHost: board\r\n" + lengths + b"\r\n\r\n" + body
    connection = clients.enter_context(contextlib.closing(connected(address)))
    connection.sendall(request)
    answer_bytes = len(connection.recv(65536))

    def ask() -> None:
        connection.sendall(request)
        left = answer_bytes
        while left:
            left -= len(connection.recv(left))

    return ask


def echo(clients: contextlib.ExitStack, x: np.ndarray) -> Way:
    """What it takes here to send so many bytes to another process and to get a short answer: no endpoint at all."""
    here, there = socket.socketpair()
    words = [sys.executable, "-c", ECHO, str(there.fileno()), str(x.nbytes)]
    process = clients.enter_context(subprocess.Popen(words, pass_fds=[there.fileno()]))
    clients.callback(process.kill)
    there.close()
    connection = clients.enter_context(contextlib.closing(here))
    body = x.tobytes()

    def ask() -> bytes:
        connection.sendall(body)
        return connection.recv(65536)

    return ask


def connected(address: str) -> socket.socket:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address[5:])
        return connection
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ours(clients: contextlib.ExitStack, address: str, x: np.ndarray) -> Way:
    model = clients.enter_context(Model(address))
    numbers = array.array("f", x.tobytes())

    def ask() -> list[float]:
        found: list[float] = model(numbers)[0].tolist()
        return found

    return ask


def in_json(clients: contextlib.ExitStack, address: str, x: np.ndarray) -> Way:
    client = clients.enter_context(contextlib.closing(http.client.HTTPConnection(address)))
    numbers = x.reshape(-1).tolist()

    def ask() -> list[float]:
        tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": numbers}
        client.request("POST", "/v2/models/active/infer", json.dumps({"inputs": [tensor]}))
        found: list[float] = json.loads(client.getresponse().read())["outputs"][0]["data"]
        return found

    return ask


def tritons(clients: contextlib.ExitStack, address: str, x: np.ndarray) -> Way:
    from tritonclient import http as triton

    client = clients.enter_context(triton.InferenceServerClient(address))

    def ask() -> np.ndarray:
        tensor = triton.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        return client.infer("active", [tensor]).as_numpy("y")

    return ask


def dense() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    return built(nodes, [1, 16], [1, 4], [numpy_helper.from_array(weight, "w")])


def image() -> onnx.ModelProto:
    return built([helper.make_node("GlobalAveragePool", ["x"], ["y"])], [1, 3, 224, 224], [1, 3, 1, 1], [])


def built(nodes: list, into: list[int], out: list[int], weights: list) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in (("x", into), ("y", out))]
    graph = helper.make_graph(nodes, "bench", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensors(model: onnx.ModelProto) -> Iterator[tuple[TensorSpec, ...]]:
    for ends in (model.graph.input, model.graph.output):
        end = ends[0]
        yield (TensorSpec(end.name, "float32", tuple(each.dim_value for each in end.type.tensor_type.shape.dim)),)


if __name__ == "__main__":
    main()
