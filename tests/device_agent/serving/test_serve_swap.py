"""Deployments under load: no request fails, no connection breaks, every answer is right."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading

import pytest
from edgepress_agent.serving.serve import Server
from measure_lab import Lab, Variant, wait_for
from serve_lab import RIGHT, asked, children, connect, counted, in_version, serve, serving_file

VERSIONS = [digit * 64 for digit in "123"]


class Client(threading.Thread):
    """Asks without a pause until it is told to end, and never connects anew unless it is to."""

    def __init__(self, server: Server, batch: int, *, keep: bool) -> None:
        super().__init__(daemon=True)
        self.server, self.keep = server, keep
        self.over = threading.Event()
        self.answers: list[tuple[int, str, list[int]]] = []
        self.error: Exception | None = None
        self.body = json.dumps({"inputs": [{**RIGHT["inputs"][0], "shape": [batch, 16], "data": [0.5] * 16 * batch}]})

    def run(self) -> None:
        try:
            connection = connect(self.server)
            connection.connect()
            # http.client connects anew by itself where it may: here it may not.
            connection.auto_open = 0
            while not self.over.is_set():
                connection.request("POST", "/v2/models/active/infer", self.body)
                answer = connection.getresponse()
                read = json.loads(answer.read())
                self.answers.append((answer.status, read["model_version"], read["outputs"][0]["shape"]))
                if not self.keep:
                    connection.close()
                    connection.connect()
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            self.error = error


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix"])
def test_clients_that_ask_all_the_while_lose_no_request_and_no_connection(tmp_path, address):
    """Three swaps; one client connects for each request, three keep their connection; an idle one asks at the end."""
    address = f"unix:{tmp_path}/s.sock" if address == "unix" else address

    async def story(server: Server):
        variant = Variant("tiny")
        first = variant.manifest.model.sha256
        clients = [Client(server, batch, keep=batch > 1) for batch in (1, 2, 3, 4)]
        idle = connect(server)
        idle.connect()
        idle.auto_open = 0
        for client in clients:
            client.start()
        for version in VERSIONS:
            await heard(clients, 5)
            await server.swap(in_version(variant.manifest, version), variant.model)
        await heard(clients, 5)
        for client in clients:
            client.over.set()
        for client in clients:
            await asyncio.to_thread(client.join)
        assert [client.error for client in clients] == [None] * 4
        for batch, client in enumerate(clients, 1):
            assert {status for status, _, _ in client.answers} == {200}
            assert {tuple(shape) for _, _, shape in client.answers} == {(batch, 4)}
            assert {version for _, version, _ in client.answers} == {first, *VERSIONS}
            assert client.answers[-1][1] == VERSIONS[-1]
        # Three processes have come and gone since this one connected.
        status, answer = await asyncio.to_thread(talk, idle)
        assert (status, answer["model_version"]) == (200, VERSIONS[-1])
        idle.close()
        total = sum(len(client.answers) for client in clients) + 1
        await counted(server, total)
        assert server.stats().requests == total
        assert server.stats().errors == 0
        assert 0 < server.stats().latency.total <= server.stats().requests

    before = children()
    serve(tmp_path / "w", story, address=address)
    assert children() == before


def test_a_request_that_is_half_sent_when_its_model_goes_is_answered_by_that_model(tmp_path):
    variant = Variant("tiny")
    body = json.dumps(RIGHT).encode()
    request = b"POST /v2/models/active/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def story(server: Server):
        host, port = server.address.split(":")
        client = socket.create_connection((host, int(port)), 30)
        client.sendall(request[:-7])
        while server.stats().in_flight == 0:  # noqa: ASYNC110 - a test looks from outside, where no event is
            await asyncio.sleep(0.01)
        await server.swap(in_version(variant.manifest, VERSIONS[0]), variant.model)
        # For a moment both processes accept.
        while (await asked(server, "GET", "/v2/models/active"))[1]["versions"] != [VERSIONS[0]]:
            pass
        # The rest, and a second request at once, which the same process may answer or the next.
        client.sendall(request[-7:] + request)
        said = await asyncio.to_thread(read_answers, client, 2)
        assert said[0]["model_version"] == variant.manifest.model.sha256
        assert said[1]["outputs"] == said[0]["outputs"]
        # The connection has gone over by now, or goes as soon as the old process hears that it is to end.
        while said[-1]["model_version"] != VERSIONS[0]:
            client.sendall(request)
            said = await asyncio.to_thread(read_answers, client, 1)
        client.close()

    serve(tmp_path, story)


def test_a_slow_answer_is_waited_for_though_its_model_goes(lab: Lab, misbehaving_runtime):
    request = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}
    variant = Variant("tiny")

    async def story():
        given = lab.misbehaving("slow")
        async with serving_file(lab.folder / "w", given, f"unix:{lab.folder}/s.sock", answer_s=60.0) as server:
            slow = asyncio.create_task(asked(server, "POST", "/v2/models/active/infer", request))
            while server.stats().in_flight == 0:  # noqa: ASYNC110 - a test looks from outside, where no event is
                await asyncio.sleep(0.01)
            await server.swap(variant.manifest, variant.model)
            return await slow

    status, answer = asyncio.run(story())
    assert (status, answer["model_name"]) == (200, "slow")


def test_no_more_than_two_models_of_before_are_kept_for_clients_that_dawdle(tmp_path):
    """Each swap leaves one request that never comes in full."""
    variant = Variant("tiny")
    half = b"POST /v2/models/active/infer HTTP/1.1\r\nContent-Length: 400\r\n\r\n{"

    async def story(server: Server):
        before, dawdling = children(), []
        for version in ("4" * 64, *VERSIONS):
            dawdling.append((await asyncio.open_unix_connection(server.address[5:]))[1])
            dawdling[-1].write(half)
            wanted = len(dawdling)
            while server.stats().in_flight < min(wanted, 3):  # noqa: ASYNC110 - no event is seen from outside
                await asyncio.sleep(0.01)
            await server.swap(in_version(variant.manifest, version), variant.model)
        await asyncio.to_thread(wait_for, lambda: len(children() - before) == 3 and not children() & before, 20)
        for each in dawdling:
            each.close()

    serve(tmp_path / "w", story, address=f"unix:{tmp_path}/s.sock")


async def heard(clients: list[Client], more: int) -> None:
    """Wait until each has so many answers more, or is dead."""
    wanted = [len(client.answers) + more for client in clients]
    while any(  # noqa: ASYNC110 - a test looks from outside, where no event is
        client.is_alive() and len(client.answers) < count for client, count in zip(clients, wanted, strict=True)
    ):
        await asyncio.sleep(0.01)


def talk(connection: http.client.HTTPConnection) -> tuple[int, dict]:
    connection.request("POST", "/v2/models/active/infer", json.dumps(RIGHT))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def read_answers(client: socket.socket, count: int) -> list[dict]:
    reader = client.makefile("rb")
    found = []
    for _ in range(count):
        size = 0
        while (line := reader.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                size = int(line.partition(b":")[2])
        found.append(json.loads(reader.read(size)))
    return found
