"""Bytes that nobody should send: every answer is one, or the connection ends; the endpoint goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest
from edgepress_agent.serving.head import Head, Refused, answer_head, parse_head
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_lab import Variant, wait_for
from serve_lab import RIGHT, ask, post, serve

_TOKEN = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
_NUMBER = st.integers(-(10**30), 10**30).map(str) | st.sampled_from(["", "0", "7", "0x10", "1e3", "٣", "9" * 5000])
_FIELD = st.tuples(
    st.sampled_from(
        ["Content-Length", "content-length", "Inference-Header-Content-Length", "Connection", "Expect", "Host", " x"]
    )
    | _TOKEN,
    _NUMBER | st.sampled_from(["close", "keep-alive", "100-continue", "chunked", "gzip"]) | _TOKEN,
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
_SIZE = st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 1 << 70) | _JSON})
_TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y"]) | _JSON,
        "shape": st.just([1, 16]) | st.lists(st.integers(-2, 1 << 70), max_size=40) | _JSON,
        "datatype": st.sampled_from(["FP32", "INT8", "BOOL", "BYTES", "FP16"]) | _JSON,
        "data": st.lists(st.floats(allow_nan=False) | st.integers(), max_size=20) | _JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 1 << 70) | _JSON})
        | _JSON,
    },
)
_REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(_TENSOR, max_size=3) | _JSON,
        "outputs": st.lists(_TENSOR, max_size=3) | _JSON,
        "id": _JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_output", "sequence_id"]), _JSON) | _JSON,
    },
)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader_of_heads(data):
    parsed_or_refused(data)


@given(st.lists(_FIELD, max_size=6), st.sampled_from(["GET", "POST", "PUT", "get"]), _TOKEN)
def test_no_fields_break_it(fields, method, path):
    lines = [f"{method} /{path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    asked = parsed_or_refused("\r\n".join(lines).encode())
    if asked is not None:
        assert 0 <= (asked.json_bytes or 0) <= asked.body_bytes <= 32 * 1024 * 1024


def parsed_or_refused(data: bytes) -> Head | None:
    try:
        return parse_head(data)
    except Refused as refused:
        assert 400 <= refused.status < 600
        assert answer_head(refused.status, 0).startswith(b"HTTP/1.1 ")
        return None


@settings(max_examples=60)
@given(_REQUEST, st.binary(max_size=100) | st.just(b"\0" * 64))
def test_no_request_breaks_the_endpoint(endpoint, request_body, behind):
    status, answer, _ = post(endpoint, request_body, behind)
    assert status in {200, 400}, answer
    if status == 400:
        assert "\n" not in answer["error"]


@settings(max_examples=30)
@given(st.binary(max_size=120))
def test_no_bytes_break_the_endpoint(endpoint, data):
    said = send(endpoint, data)
    assert said == b"" or said.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
    assert ask(endpoint, "GET", "/v2/health/ready")[0] == 200


INFER = b"POST /v2/models/active/infer HTTP/1.1\r\n"
BODY = json.dumps(RIGHT).encode()


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"GET /v2 HTTP/1.1\nHost: board\n\n", 400, "does not end with CR LF"),
        (b"GET /v2 HTTP/1.1\r\nHost: a\nb\r\n\r\n", 400, "does not end with CR LF"),
        (b"GET /v2\r\n\r\n", 400, "expected METHOD PATH HTTP/1.1"),
        (b"GET /v2 HTTP/2.0\r\n\r\n", 505, "expected HTTP/1.1"),
        (b"GET /v2 HTTP/1.1\r\nHost : board\r\n\r\n", 400, "expected NAME: VALUE"),
        (b"GET /v2 HTTP/1.1\r\n folded\r\n\r\n", 400, "expected NAME: VALUE"),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", 431, "may have 32768 bytes"),
        (INFER + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "do not agree"),
        (INFER + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 411, "chunks are not read"),
        (INFER + b"Content-Length: -1\r\n\r\n", 411, "is no number"),
        (INFER + b"Content-Length: 3\r\nInference-Header-Content-Length: 4\r\n\r\n{}}", 400, "more than the body's 3"),
        (INFER + b"Content-Length: 3\r\nContent-Encoding: gzip\r\n\r\nabc", 415, "compressed"),
    ],
)
def test_heads_that_are_refused(endpoint, data, status, said):
    head, _, body = send(endpoint, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in head
    assert said in json.loads(body)["error"]


def test_two_requests_in_one_packet_and_one_in_many(endpoint):
    request = INFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    said = send(endpoint, request + request)
    assert said.count(b"HTTP/1.1 200 OK") == 2
    with client_of(endpoint) as client:
        for index in range(len(request)):
            client.sendall(request[index : index + 1])
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).startswith(b"HTTP/1.1 200 OK")


def test_a_client_that_waits_for_the_go_ahead_gets_it(endpoint):
    with client_of(endpoint) as client:
        client.sendall(INFER + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).startswith(b"HTTP/1.1 200 OK")


def test_head_has_no_body_and_1_0_closes(endpoint):
    with client_of(endpoint) as client:
        client.sendall(b"HEAD /v2 HTTP/1.1\r\n\r\nGET /v2/health/live HTTP/1.0\r\n\r\n")
        head, second = read_all(client).split(b"\r\n\r\n", 1)
    assert b"Content-Length: " in head
    assert second.startswith(b"HTTP/1.1 200 OK")
    assert second.endswith(b'{"live":true}')


def test_clients_that_go_in_the_midst_leave_nothing_behind(endpoint):
    for _ in range(70):  # more than may be open at a time
        assert send(endpoint, INFER + b"Content-Length: 100\r\n\r\n{") == b""
    assert ask(endpoint, "POST", "/v2/models/active/infer", RIGHT)[0] == 200
    wait_for(lambda: endpoint.stats().in_flight == 0)


def test_a_connection_too_many_is_told_so(tmp_path):
    def crowd(server):
        clients = [client_of(server) for _ in range(64)]
        for client in clients:
            client.sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        status, answer = ask(server, "GET", "/v2/health/live")
        assert status == 503
        assert answer["error"] == "64 connections are open already: close some, or keep one open"
        for client in clients:
            client.close()

    serve(tmp_path, lambda server: asyncio.to_thread(crowd, server))


def test_the_path_may_be_escaped(endpoint):
    assert ask(endpoint, "GET", "/v2/models/%74iny")[0] == 200
    assert ask(endpoint, "GET", f"/v2/models/{Variant('tiny').manifest.variant}?verbose=1")[0] == 200


def client_of(server) -> socket.socket:
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), 30)


def read_all(client: socket.socket) -> bytes:
    data = b""
    # A server that closes without having read all that came resets the connection.
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            data += piece
    return data


def send(server, data: bytes) -> bytes:
    with client_of(server) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return read_all(client)
