"""A controller that stops, is killed, loses its broker, its database or its disk, goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from edgepress_protocol.messages import (
    HostState,
    decode_to_device,
)
from honest import listening


def wait_gone(pid: int) -> None:
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_broker_that_was_killed_and_forgot_everything_is_told_again(own, devices):
    devices.add(own, "pi-1")
    before = own.broker_pid()
    seq = own.get("/v1/changes", after=0, timeout_s=0)["seq"]
    os.kill(before, signal.SIGKILL)

    def came_and_went() -> bool:
        texts = [change["text"] for change in own.get("/v1/changes", after=seq, timeout_s=0)["changes"]]
        return "pi-1 is offline" in texts and "pi-1 is online" in texts

    own.until(came_and_went)
    assert own.broker_pid() != before
    with listening(own.broker_port, "edgepress/v1/default/#") as heard:
        own.until(lambda: {"want", "state", "up"} <= {str(m.topic).rpartition("/")[2] for m in heard if m.retain})
        host = next(m for m in heard if str(m.topic).endswith("host/state"))
        assert msgspec.msgpack.decode(host.payload, type=HostState).online
    manifest = own.manifest(b"model")
    own.post("/v1/trials", {"manifests": [manifest]})
    own.until(lambda: own.measured(manifest))


def test_a_host_that_lost_its_database_resumes_above_what_devices_saw(own, devices):
    pi = devices.add(own, "pi-1")
    for number in range(3):
        manifest = own.manifest(b"model %d" % number)
        own.post("/v1/trials", {"manifests": [manifest]})
        own.until(lambda manifest=manifest: own.measured(manifest))
    assert own.stop() == 0
    seen = pi.generation
    for file in own.data_dir.glob("controller.sqlite*"):
        file.unlink()
    own.start()
    devices.until(pi, lambda: pi.wants[-1].generation > seen)
    manifest = own.manifest(b"new model")
    own.post("/v1/trials", {"manifests": [manifest]})
    own.until(lambda: own.measured(manifest))


def test_a_host_that_was_killed_goes_on_where_it_was_and_its_broker_dies_with_it(own, devices):
    pi = devices.add(own, "pi-1")
    first = own.manifest(b"first")
    own.post("/v1/trials", {"manifests": [first]})
    own.until(lambda: own.measured(first))
    pi.deaf = True
    second = own.manifest(os.urandom(20 * 65536), variant="second")
    own.post("/v1/trials", {"manifests": [second]})
    devices.until(pi, lambda: pi.wants[-1].trials)
    pi.deaf = False
    broker = own.broker_pid()
    own.stop(signal.SIGKILL)
    wait_gone(broker)
    own.start()
    own.until(lambda: own.measured(second))
    assert own.measured(first)


def test_another_broker_may_be_used_and_hears_a_goodbye(controller, controllers, devices):
    port = controller.broker_port
    other = controllers("--broker", f"mqtt://127.0.0.1:{port}", "--fleet", "other")
    assert f"broker mqtt://127.0.0.1:{port}" in other.start()
    session = other.get("/v1/health")["session"]
    assert other.stop() == 0
    assert not (other.data_dir / "controller.json").exists()
    with listening(port, "edgepress/v1/other/host/state") as heard:
        controller.until(lambda: heard)
    assert heard[0].retain
    assert decode_to_device(heard[0].payload) == HostState(session, online=False)


def test_whoever_waits_for_changes_is_answered_when_the_controller_stops(own):
    seq = own.get("/v1/changes", after=0, timeout_s=0)["seq"]
    url = own.http.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as waiting:
        request = f"GET /v1/changes?after={seq}&timeout_s=60 HTTP/1.1\r\nHost: {url.host}\r\n\r\n"
        waiting.sendall(request.encode())
        own.get("/v1/health")  # came later, so that the first request is being waited for
        started = time.monotonic()
        assert own.stop() == 0
        assert time.monotonic() - started < 8
        answer = waiting.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b'"changes":[]}')
    assert "Traceback" not in own.errors.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which takes root")
def test_a_full_disk_is_one_line_and_nothing_is_lost(controllers, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", small], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        controller = controllers(data_dir=small / "data")
        controller.start()
        manifest = controller.manifest(b"kept")
        data = os.urandom(6 << 20)
        path = f"/v1/blobs/{hashlib.sha256(data).hexdigest()}"
        assert "disk full" in controller.call("PUT", path, expect=503, content=data)["error"]
        filler = small / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        # Now nothing at all can be written.
        answer = controller.http.put(f"/v1/blobs/{hashlib.sha256(b'x').hexdigest()}", content=b"x")
        assert answer.status_code == 503
        assert "\n" not in answer.json()["error"]
        filler.unlink()
        assert [one["manifest"] for one in controller.get("/v1/manifests")["manifests"]] == [manifest]
        controller.manifest(b"kept too")
        controller.stop()
        assert "Traceback" not in controller.errors.read_text()
    finally:
        subprocess.run(["umount", "-l", small], check=True)
