"""A client of the active model, for programs on the same board. This file needs the standard library alone: copy it.

    from edgepress_agent.serving.client import Model
    model = Model("unix:/run/edgepress/serve.sock")
    print(model([0.1, 0.2, 0.3, 0.4])[0].tolist())

Numbers travel as little-endian bytes, in the binary form of the Open Inference Protocol. A model keeps one connection
and is for one thread at a time; it goes on through deployments.
"""

from __future__ import annotations

import array
import contextlib
import json
import math
import socket
import struct
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

_FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_ALIASES = {"l": "q", "L": "Q"} if struct.calcsize("l") == 8 else {"l": "i", "L": "I"}
_HEAD_BYTES = 64 * 1024


class Refused(Exception):  # noqa: N818 - it names what happened to the request
    """The endpoint answered with an error: its `status`, and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class Model:
    """The model at an endpoint: `unix:PATH`, or `HOST:PORT`. Call it with its inputs, get a list of its outputs.

    An input is a list of numbers, flat or nested, or anything with a buffer (an array, a NumPy array, bytes of a
    camera). An output is a memoryview of the output's shape and type: it can be indexed, has `tolist()`, and
    `numpy.asarray(output)` takes it without a copy.

    Raises:
        ValueError: that is no address.
        OSError: nobody answers there.
        Refused: there is no such model.
    """

    def __init__(self, address: str, name: str = "active", timeout_s: float = 30.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._path = f"/v2/models/{quote(name, safe='')}"
        self._socket: socket.socket | None = None
        self.about = self._look()

    def __call__(self, *inputs: Any) -> list[memoryview]:
        """Infer once: inputs and outputs are in the model's order.

        Raises:
            OSError: the connection broke, or no answer came in time.
            Refused: the inputs are not the model's.
            ValueError: they are not numbers of a shape that fits.
        """
        try:
            return self._infer(inputs)
        except (Refused, ValueError):
            # Another model may serve by now, with other inputs: then once more.
            before, self.about = self.about, self._look()
            if before == self.about:
                raise
        return self._infer(inputs)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _look(self) -> dict[str, Any]:
        about: dict[str, Any] = json.loads(self._exchange("GET", self._path, b"", 0)[0])
        return about

    def _infer(self, inputs: Sequence[Any]) -> list[memoryview]:
        wanted = self.about["inputs"]
        if len(inputs) != len(wanted):
            names = ", ".join(each["name"] for each in wanted)
            raise ValueError(f"{len(inputs)} inputs were given, the model takes {len(wanted)}: {names}")
        rendered, parts = [], []
        for given, spec in zip(inputs, wanted, strict=True):
            datatype, shape, data = _packed(given, spec)
            size = {"binary_data_size": len(data)}
            rendered.append({"name": spec["name"], "shape": shape, "datatype": datatype, "parameters": size})
            parts.append(data)
        header = json.dumps({"inputs": rendered, "parameters": {"binary_data_output": True}}).encode()
        text, tensors = self._exchange("POST", f"{self._path}/infer", b"".join([header, *parts]), len(header))
        outputs, start = [], 0
        for output in json.loads(text)["outputs"]:
            stop = start + output["parameters"]["binary_data_size"]
            outputs.append(_unpacked(tensors[start:stop], output["datatype"], output["shape"]))
            start = stop
        return outputs

    def _exchange(self, method: str, path: str, body: bytes, json_bytes: int) -> tuple[bytes, memoryview]:
        request = (
            f"{method} {path} HTTP/1.1\r\nHost: board\r\nContent-Length: {len(body)}\r\n"
            f"Inference-Header-Content-Length: {json_bytes}\r\n\r\n"
        ).encode() + body
        if self._socket is not None:
            # A connection that was kept may be gone, with a process that crashed; a request changes nothing: once more.
            with contextlib.suppress(ConnectionError):
                return self._asked(self._socket, request)
            self.close()
        self._socket = self._connected()
        return self._asked(self._socket, request)

    def _connected(self) -> socket.socket:
        if self._address.startswith("unix:"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(self._timeout_s)
            try:
                connection.connect(self._address[5:])
            except OSError as error:
                connection.close()
                raise type(error)(error.errno, error.strerror, self._address[5:]) from None
            return connection
        host, _, port = self._address.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"{self._address!r}: expected unix:PATH or HOST:PORT")
        connection = socket.create_connection((host.strip("[]"), int(port)), self._timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _asked(self, connection: socket.socket, request: bytes) -> tuple[bytes, memoryview]:
        """Send, and read the answer: its JSON, and the bytes behind that."""
        try:
            connection.sendall(request)
            data = b""
            while (end := data.find(b"\r\n\r\n")) < 0:
                data += _some(connection.recv(_HEAD_BYTES))
            status, fields = _head(data[:end])
            size = int(fields["content-length"])
            body = bytearray(data[end + 4 :])
            while len(body) < size:
                body += _some(connection.recv(size - len(body)))
        except BaseException:
            self.close()  # half an answer may be left in it
            raise
        if fields.get("connection") == "close":
            self.close()
        if status != 200:
            raise Refused(status, json.loads(body)["error"])
        split = int(fields.get("inference-header-content-length", size))
        return bytes(body[:split]), memoryview(body)[split:]


def _some(piece: bytes) -> bytes:
    if not piece:
        raise ConnectionAbortedError("the endpoint closed the connection in the midst of an answer")
    return piece


def _head(data: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = data.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in fields}


def _packed(given: Any, spec: dict[str, Any]) -> tuple[str, list[int], bytes]:
    """Return datatype, shape and bytes of an input."""
    datatype, kind = spec["datatype"], _FORMATS[spec["datatype"]]
    try:
        view = memoryview(given)
    except TypeError:
        shape, flat = _flat(given)
    else:
        if _ALIASES.get(view.format, view.format) == kind:
            return datatype, _shape(list(view.shape or ()), spec), view.tobytes()
        shape, flat = _flat(view.tolist())
    if kind not in "efd" and any(isinstance(number, float) for number in flat):
        datatype, kind = "FP32", "f"  # a quantized input takes reals too, and the endpoint quantizes them
    try:
        data = struct.pack(f"<{len(flat)}{kind}", *flat)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"input {spec['name']!r}: not all are {datatype} ({error})") from error
    return datatype, _shape(shape, spec), data


def _flat(given: Any) -> tuple[list[int], list[Any]]:
    shape, level = [], [given]
    while level and all(isinstance(each, (list, tuple)) for each in level):
        shape.append(len(level[0]))
        if any(len(each) != shape[-1] for each in level):
            raise ValueError("the rows of an input differ in length")
        level = [number for row in level for number in row]
    return shape, level


def _shape(shape: list[int], spec: dict[str, Any]) -> list[int]:
    """Give flat numbers the model's shape: a free first dimension becomes what is left over, other free ones are 1."""
    wanted = spec["shape"]
    if len(shape) == len(wanted):
        return shape
    fixed = [max(size, 1) for size in wanted]
    count = math.prod(shape)
    if wanted and wanted[0] < 0:
        fixed[0] = max(1, count // math.prod(fixed))
    if math.prod(fixed) != count:
        raise ValueError(f"input {spec['name']!r}: {count} numbers for shape {wanted}")
    return fixed


def _unpacked(data: memoryview, datatype: str, shape: list[int]) -> memoryview:
    kind = _FORMATS[datatype]
    if kind == "e":  # which no memoryview can be cast to
        data = memoryview(array.array("f", struct.unpack(f"<{len(data) // 2}e", data))).cast("B")
        kind = "f"
    # No type checker knows which of its formats a text is.
    cast: Any = data.cast
    view: memoryview = cast(kind, shape) if math.prod(shape) else cast(kind)
    return view
