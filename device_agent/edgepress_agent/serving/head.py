"""HTTP/1.1, as much of it as an endpoint on one machine needs: heads of requests in, heads of answers out. Pure.

RFC 9112. A request has a `Content-Length` or no body: chunks, compression and other versions are refused by name.
`Inference-Header-Content-Length` is of the binary data extension of the Open Inference Protocol: so many bytes of the
body are JSON, and tensors follow.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

MAX_BYTES = 32 * 1024
MAX_BODY_BYTES = 32 * 1024 * 1024
GO_AHEAD = b"HTTP/1.1 100 Continue\r\n\r\n"

_LENGTH_DIGITS = 20
_METHODS = ("GET", "HEAD", "POST")
_READ = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "inference-header-content-length",
        "transfer-encoding",
    }
)


class Refused(Exception):  # noqa: N818 - it names what happened to the request
    """A request that gets no more than a status and one line."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


class Head(NamedTuple):
    """What the head of a request says.

    `path` is cut into its parts, query left out; `json_bytes` is None where the whole body is JSON; `keep` tells
    whether more requests may follow on the connection, `waits` whether the client wants a go-ahead for its body.
    """

    method: str
    path: tuple[str, ...]
    body_bytes: int
    json_bytes: int | None
    keep: bool
    waits: bool


def parse_head(data: bytes) -> Head:
    r"""Read the head of a request, without the empty line that ends it.

    >>> parse_head(b"GET /v2/models/a%20b HTTP/1.1\r\nHost: board").path
    ('v2', 'models', 'a b')

    Raises:
        Refused: it is none, or asks for what is not done here. Where its body ends is then not known.
    """
    if len(data) > MAX_BYTES:
        raise too_long()
    request, *lines = data.decode("latin-1").split("\r\n")
    if data.count(b"\n") != len(lines) or data.count(b"\r") != len(lines) or b"\0" in data:
        raise Refused(HTTPStatus.BAD_REQUEST, "a line of the request's head does not end with CR LF")
    words = request.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        raise Refused(HTTPStatus.BAD_REQUEST, f"expected METHOD PATH HTTP/1.1, got {request[:100]!r}")
    method, target, version = words
    if version not in {"HTTP/1.1", "HTTP/1.0"}:
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, f"expected HTTP/1.1, got {version[:20]!r}")
    if method not in _METHODS:
        raise Refused(HTTPStatus.NOT_IMPLEMENTED, f"method {method[:20]!r} is none of {', '.join(_METHODS)}")
    fields = _fields(lines)
    if "transfer-encoding" in fields or (method == "POST" and "content-length" not in fields):
        raise Refused(HTTPStatus.LENGTH_REQUIRED, "a request needs a Content-Length; chunks are not read")
    if fields.get("content-encoding", "identity").lower() != "identity":
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a compressed request is not read: leave Content-Encoding out")
    body_bytes = _number("Content-Length", fields.get("content-length", "0"))
    json_field = fields.get("inference-header-content-length")
    json_bytes = None if json_field is None else _number("Inference-Header-Content-Length", json_field)
    if json_bytes is not None and json_bytes > body_bytes:
        line = f"Inference-Header-Content-Length {json_bytes} is more than the body's {body_bytes} bytes"
        raise Refused(HTTPStatus.BAD_REQUEST, line)
    keep = version == "HTTP/1.1" and "close" not in fields.get("connection", "").lower()
    waits = "100-continue" in fields.get("expect", "").lower()
    return Head(method, _parts(target), body_bytes, json_bytes, keep, waits)


def too_long() -> Refused:
    """Say that a head has no end, or comes too late."""
    return Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head of a request may have {MAX_BYTES} bytes")


def answer_head(status: HTTPStatus, body_bytes: int, *, json_bytes: int | None = None, keep: bool = True) -> bytes:
    """Render the head of an answer, with the empty line that ends it."""
    kind = "application/json" if json_bytes is None else "application/octet-stream"
    tensors = "" if json_bytes is None else f"Inference-Header-Content-Length: {json_bytes}\r\n"
    close = "" if keep else "Connection: close\r\n"
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {body_bytes}\r\n{tensors}{close}\r\n"
    ).encode("latin-1")


def _fields(lines: list[str]) -> dict[str, str]:
    """Return the fields that are read here, by name in lower case."""
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name.strip() != name:
            raise Refused(HTTPStatus.BAD_REQUEST, f"expected NAME: VALUE in the request's head, got {line[:100]!r}")
        name = name.lower()
        if name in _READ:
            value = value.strip()
            if found.get(name, value) != value:
                raise Refused(HTTPStatus.BAD_REQUEST, f"two {name} in the request's head do not agree")
            found[name] = value
    return found


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise Refused(HTTPStatus.LENGTH_REQUIRED, f"{name} is no number: {text[:_LENGTH_DIGITS]!r}")
    # Python reads no number of thousands of digits.
    if len(text) > _LENGTH_DIGITS or int(text) > MAX_BODY_BYTES:
        line = f"a request may have {MAX_BODY_BYTES} bytes, this one says {text[:_LENGTH_DIGITS]}"
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)
    return int(text)


def _parts(target: str) -> tuple[str, ...]:
    return tuple(unquote(part) for part in target.partition("?")[0].split("/")[1:])
