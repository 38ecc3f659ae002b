"""Helpers of the tests of the local endpoint: a client, and a server for as long as a story lasts."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
from edgepress_agent.serving.serve import Server
from edgepress_protocol.manifest import Manifest
from measure_lab import Variant

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
    given = None if variant is None else (variant.manifest, variant.model)
    async with serving_file(work_dir, given, address) as server:
        yield server


@asynccontextmanager
async def serving_file(
    work_dir: Path, given: tuple[Manifest, Path] | None, address: str, **options: float
) -> AsyncIterator[Server]:
    server = Server(address, work_dir, **options)
    await server.start()
    try:
        if given is not None:
            await server.swap(*given)
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


def in_version(manifest: Manifest, sha256: str) -> Manifest:
    return msgspec.structs.replace(manifest, model=msgspec.structs.replace(manifest.model, sha256=sha256))


def golden(name: str) -> tuple[list, list]:
    from safetensors.numpy import load_file

    vectors = load_file(Variant(name).golden)
    return vectors["input.0"], vectors["output.0"]


def post(server: Server, request: dict, behind: bytes | None = None, name: str = "active") -> tuple[int, dict, bytes]:
    """Post a request with bytes behind its JSON; returns status, the answer's JSON and what is behind that."""
    header = json.dumps(request).encode()
    headers = {} if behind is None else {"Inference-Header-Content-Length": str(len(header))}
    with contextlib.closing(connect(server)) as connection:
        connection.request("POST", f"/v2/models/{name}/infer", header + (behind or b""), headers)
        response = connection.getresponse()
        body = response.read()
        split = int(response.getheader("Inference-Header-Content-Length", len(body)))
        return response.status, json.loads(body[:split]), body[split:]
