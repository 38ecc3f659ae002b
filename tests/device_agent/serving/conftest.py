"""Makes the labs of the measuring tests importable here, and gives these tests endpoints and a lab."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from edgepress_agent.serving.serve import Server

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "measure"))

from measure_lab import Variant, lab, misbehaving_runtime, needs_format  # noqa: F401 - some are fixtures of these tests


def running(name: str, folder: Path) -> Iterator[Server]:
    """A server that runs beside the tests, on a loop of its own."""
    needs_format("onnx")
    loop = asyncio.new_event_loop()
    # The child asks to die with the thread that started it.
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = Server("127.0.0.1:0", folder)

    def do(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    do(server.start())
    do(server.swap(Variant(name).manifest, Variant(name).model))
    yield server
    do(server.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[Server]:
    """One input x (batch, 16), one output y (batch, 4)."""
    yield from running("tiny", tmp_path_factory.mktemp("endpoint"))


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> Iterator[Server]:
    """For each type NAME an input in-NAME and an output out-NAME that is the same, (batch, 3)."""
    yield from running("types", tmp_path_factory.mktemp("typed"))
