"""The local endpoint over time: swaps, crashes, idle and busy, and the addresses that it may have."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import time
from pathlib import Path

import msgspec
import pytest
from edgepress_agent.measure.bench import Bench
from edgepress_agent.serving.serve import QUIET_S, Server
from edgepress_protocol.errors import Unavailable, UsageError
from measure_lab import QUICK, Lab, Variant, needs_format
from serve_lab import RIGHT, asked, children, counted, serve, serving, serving_file


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
        while len(heard) < 2:  # noqa: ASYNC110 - a test looks from outside, where no event is
            await asyncio.sleep(0.01)
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


@pytest.mark.parametrize("when_busy", [True, False])
def test_requests_that_came_while_a_trial_ran_are_noted_with_it(tmp_path, when_busy):
    """It is measured again after them, unless it was to be measured all the same."""
    lab, variant = Lab(tmp_path), Variant("tiny")
    job = lab.job(variant.manifest, variant.model, msgspec.structs.replace(QUICK, when_busy=when_busy))
    loads = 0

    def hear(_trial: str, _phase: str, detail: str) -> None:
        nonlocal loads
        loads += detail == "loading"

    async def measured(server: Server, *, asks: int) -> tuple[str, ...]:
        end = asyncio.get_running_loop().create_future()
        bench = Bench(Path("/"), lab.lock, server, lambda _: True, hear, lambda _, end_: end.set_result(end_))
        bench.offer(job)
        running = asyncio.create_task(bench.run())
        while loads < asks and not end.done():
            await asked(server, "POST", "/v2/models/active/infer", RIGHT)
            await asyncio.sleep(0.01)
        outcome = await end
        running.cancel()
        return outcome.measurement.notes

    async def story(server: Server):
        line = "the serving model had requests while this was measured"
        nonlocal loads
        assert line not in await measured(server, asks=0)
        loads = 0
        # Requests come until the model is loaded a first time.
        noted = line in await measured(server, asks=1)
        assert (noted, loads) == ((True, 1) if when_busy else (False, 2))

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
    request = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}

    async def run():
        outcomes = []
        async with serving_file(lab.folder / "w", lab.misbehaving("flood"), f"unix:{lab.folder}/s.sock") as server:
            for _ in range(25):
                try:
                    outcomes.append((await asked(server, "POST", "/v2/models/active/infer", request))[0])
                except (OSError, http.client.HTTPException):
                    outcomes.append(None)
        return outcomes

    outcomes = asyncio.run(run())
    assert outcomes.count(None) == 1
    assert outcomes.count(200) == 24


@pytest.mark.parametrize("behaviour", ["hang_late", "hold_late"])
def test_a_model_that_never_answers_is_started_again(lab: Lab, misbehaving_runtime, behaviour):
    """It runs once as it is loaded, then hangs at its second run; an upload that comes slowly is no such thing."""
    request = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}
    address = f"unix:{lab.folder}/s.sock"

    async def run():
        heard: list[str] = []
        async with serving_file(lab.folder / "w", lab.misbehaving(behaviour), address, answer_s=3.0) as server:
            server.on_trouble = heard.append
            reader, slow = await asyncio.open_unix_connection(f"{lab.folder}/s.sock")
            slow.write(b"POST /v2/models/active/infer HTTP/1.1\r\nContent-Length: 4\r\n\r\n{")
            await slow.drain()
            answer = asyncio.ensure_future(reader.read(1))
            done, _ = await asyncio.wait({answer}, timeout=4.0)
            assert not done
            assert not heard

            async def ask_for_another() -> None:
                """Answered without the model, so that it tells nothing of the model."""
                while not heard:
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        await asked(server, "POST", "/v2/models/another/infer", request)

            asking = asyncio.create_task(ask_for_another())
            with pytest.raises((OSError, http.client.HTTPException)):
                await asked(server, "POST", "/v2/models/active/infer", request)
            await asking
            while len(heard) < 2:  # noqa: ASYNC110 - a test looks from outside, where no event is
                await asyncio.sleep(0.01)
            ready = (await asked(server, "GET", "/v2/health/ready"))[0]
            slow.close()
            await asyncio.gather(answer, return_exceptions=True)
        return heard, ready

    heard, ready = asyncio.run(run())
    assert heard == [f"the process that serves {behaviour} is started again: no answer within 3 s", ""]
    assert ready == 200


def test_an_answer_that_is_read_slowly_is_no_hanging_model(lab: Lab, misbehaving_runtime):
    request = {"inputs": [{"name": "x", "shape": [200_000, 1], "datatype": "FP32", "data": [1] * 200_000}]}
    address = f"unix:{lab.folder}/s.sock"

    async def run():
        heard: list[str] = []
        async with serving_file(lab.folder / "w", lab.misbehaving("fine"), address, answer_s=3.0) as server:
            server.on_trouble = heard.append
            reader, writer = await asyncio.open_unix_connection(f"{lab.folder}/s.sock", limit=1024)
            body = json.dumps(request).encode()
            writer.write(b"POST /v2/models/active/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            status = await reader.readline()
            # No event tells that nothing has happened: as long as it would have taken to be given up.
            await asyncio.sleep(4.5)
            rest = await reader.readexactly(100_000)
            writer.close()
        return status, len(rest), heard

    status, size, heard = asyncio.run(run())
    assert status == b"HTTP/1.1 200 OK\r\n"
    assert size == 100_000
    assert heard == []


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
