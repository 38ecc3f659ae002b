"""A real controller in a process of its own, with its real broker, and small honest devices that speak the protocol."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from edgepress_host import keys
from edgepress_protocol.measurement import Measurement
from honest import Devices, made_up


class Controller:
    """`edgepress serve` as a user starts it."""

    def __init__(self, data_dir: Path, errors: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self.arguments = arguments
        self.errors = errors
        self.process: subprocess.Popen[str] | None = None
        self.http: httpx.Client | None = None

    def start(self) -> str:
        """Start it, and return its first line; empty where it ended instead."""
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "edgepress_host.cli",
                    "--data-dir",
                    str(self.data_dir),
                    "serve",
                    *self.arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            running = msgspec.json.decode((self.data_dir / "controller.json").read_bytes())
            token = Path(running["token_file"]).read_text()
            self.http = httpx.Client(
                base_url=running["url"], headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=30
            )
            self.broker_port = int(self.get("/v1/health")["broker"].rpartition(":")[2])
        return line

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        if self.http is not None:
            self.http.close()
        self.process.send_signal(number)
        status = self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return status

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, params=query)

    def post(self, path: str, body: Any = None) -> Any:
        return self.call("POST", path, content=msgspec.json.encode(body))

    def call(self, method: str, path: str, expect: int = 200, **options: Any) -> Any:
        answer = self.http.request(method, path, **options)
        assert answer.status_code == expect, answer.text
        return answer.json() if answer.content else None

    def device(self, device_id: str) -> Any:
        return next((one for one in self.get("/v1/devices")["devices"] if one["id"] == device_id), None)

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.call("PUT", f"/v1/blobs/{sha256}", content=data)
        return sha256

    def manifest(self, data: bytes, variant: str = "small", format_: str = "onnx", **more: Any) -> str:
        tensor = {"name": "x", "dtype": "float32", "shape": [None, 4]}
        body = {"variant": variant, "format": format_, "model": self.put(data), "inputs": [tensor], "outputs": [tensor]}
        digest: str = self.post("/v1/manifests", body | more)["manifest"]
        return digest

    def measured(self, manifest: str, device: str | None = None) -> Any:
        query = {"manifest": manifest} | ({"device": device} if device else {})
        return self.get("/v1/measurements", **query)["measurements"]

    def broker_pid(self) -> int:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(pid) for pid in children if b"broker_process" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def until(self, look: Callable[[], Any], timeout_s: float = 20.0) -> Any:
        """Look after every change that the controller tells of, until it finds something."""
        end, seq = time.monotonic() + timeout_s, 0
        while not (found := look()):
            assert time.monotonic() < end, f"not within {timeout_s} s; log: {self.errors.read_text()}"
            seq = self.get("/v1/changes", after=seq, timeout_s=0.5)["seq"]
        return found


@pytest.fixture
def controllers(tmp_path: Path) -> Iterator[Callable[..., Controller]]:
    """Make controllers, each on a data directory of its own with a key; all are stopped at the end."""
    made: list[Controller] = []

    def make(*arguments: str, data_dir: Path = tmp_path / "data") -> Controller:
        if not (data_dir / "keys").exists():
            keys.init(data_dir / "keys")
        made.append(Controller(data_dir, tmp_path / f"controller-{len(made)}.log", *arguments))
        return made[-1]

    yield make
    for controller in made:
        controller.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """Give one controller to all tests that leave it alive."""
    data_dir = tmp_path_factory.mktemp("shared") / "data"
    keys.init(data_dir / "keys")
    found = Controller(data_dir, data_dir.with_suffix(".log"))
    assert found.start(), found.errors.read_text()
    yield found
    assert found.stop() == 0
    assert "Traceback" not in found.errors.read_text()


@pytest.fixture
def controller(running: Controller) -> Iterator[Controller]:
    """Give the common controller, without devices."""
    yield running
    for device in running.get("/v1/devices")["devices"]:
        running.call("DELETE", f"/v1/devices/{device['id']}", expect=204)


@pytest.fixture
def own(controllers: Callable[..., Controller]) -> Controller:
    """Give a controller that a test may kill."""
    found = controllers()
    assert found.start(), found.errors.read_text()
    return found


@pytest.fixture
def measurement() -> Measurement:
    """Give numbers of a run that nobody made."""
    return made_up()


@pytest.fixture
def devices() -> Iterator[Devices]:
    """Give a place for devices; what one of them raises fails the test."""
    found = Devices()
    yield found
    assert found.close() == []
