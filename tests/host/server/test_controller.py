"""The controller through its REST interface and its real broker, with devices that speak the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest
from edgepress_host import keys
from edgepress_protocol.messages import (
    Failed,
    HostState,
    Measured,
    Need,
    Presence,
    Report,
    decode_signed,
    decode_to_device,
    encode,
)
from edgepress_protocol.transfer import decode_frame
from honest import listening


def wait_gone(pid: int) -> None:
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_trial_goes_out_and_its_measurement_comes_back(controller, devices):
    pi = devices.add(controller, "pi-1")
    manifest = controller.manifest(b"model" * 50_000, stats={"accuracy": 0.9})
    (trial,) = controller.post("/v1/trials", {"manifests": [manifest]})["trials"]
    (found,) = controller.until(lambda: controller.measured(manifest, "pi-1"))
    assert (found["trial"], found["manifest"], found["measurement"]["latency"]["p50_ms"]) == (
        trial["id"],
        manifest,
        1.5,
    )
    assert [one["state"] for one in controller.get("/v1/trials", device="pi-1")["trials"]] == ["done"]
    devices.until(pi, lambda: pi.wants[-1].trials == ())
    generations = [want.generation for want in pi.wants]
    assert generations == sorted(set(generations))
    stats = {one["manifest"]: one["stats"] for one in controller.get("/v1/manifests")["manifests"]}
    assert stats[manifest] == {"accuracy": 0.9}


def test_a_want_is_retained_and_signed_with_the_key_that_devices_trust(controller, devices):
    pi = devices.add(controller, "signed")
    devices.until(pi, lambda: pi.wants)
    with listening(controller.broker_port, "edgepress/v1/default/d/signed/want") as heard:
        controller.until(lambda: heard)
    key = keys.load_public(controller.data_dir / "keys")
    assert heard[0].retain
    assert b"signed" in key.verify("want", decode_signed(heard[0].payload))


def test_a_device_that_trusts_another_key_is_told_nothing_that_it_believes(controller, devices, tmp_path):
    keys.init(tmp_path / "other")
    pi = devices.add(controller, "distrustful")
    devices.until(pi, lambda: pi.wants)
    pi.trust = tmp_path / "other" / keys.PUBLIC_NAME
    wants = len(pi.wants)
    controller.post("/v1/trials", {"manifests": [controller.manifest(b"model")]})
    devices.until(pi, lambda: pi.rejected)
    assert "not signed by the trusted key" in pi.rejected[0]
    assert len(pi.wants) == wants


def test_two_devices_are_served_by_one_broadcast(controller, devices):
    pis = [devices.add(controller, f"twin-{n}", window=4) for n in range(2)]
    manifest = controller.manifest(os.urandom(24 * 65536))
    with listening(controller.broker_port, "edgepress/v1/default/blob/+") as heard:
        controller.post("/v1/trials", {"manifests": [manifest]})
        controller.until(lambda: len(controller.measured(manifest)) == 2)
    published = Counter(decode_frame(message.payload).index for message in heard)
    assert published == Counter(range(24))
    assert [pi.frames for pi in pis] == [24, 24]


def test_a_late_joiner_gets_what_it_lacks(controller, devices):
    devices.add(controller, "early")
    manifest = controller.manifest(os.urandom(20 * 65536))
    controller.post("/v1/trials", {"manifests": [manifest], "devices": "early"})
    controller.until(lambda: controller.measured(manifest))
    late = devices.add(controller, "late")
    controller.post("/v1/trials", {"manifests": [manifest], "devices": "late"})
    controller.until(lambda: controller.measured(manifest, "late"))
    assert late.frames == 20


def test_a_device_that_stalls_does_not_hold_the_other_back(controller, devices):
    deaf = devices.add(controller, "deaf", deaf=True)
    devices.add(controller, "well")
    manifest = controller.manifest(os.urandom(24 * 65536))
    controller.post("/v1/trials", {"manifests": [manifest]})
    controller.until(lambda: controller.measured(manifest, "well"))
    assert controller.get("/v1/trials", device="deaf")["trials"][0]["state"] == "queued"

    async def recover() -> None:
        deaf.deaf = False
        for wire in deaf._wanted():
            await deaf._ask(wire, stalled=True)

    devices.do(recover())
    controller.until(lambda: controller.measured(manifest, "deaf"))


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


def test_a_second_controller_on_the_same_data_is_refused_with_one_line(controller, controllers):
    second = controllers(data_dir=controller.data_dir)
    assert second.start() == ""
    assert second.process.wait(5) == 2
    line = second.errors.read_text().splitlines()[-1]
    assert f"pid {controller.process.pid}, {controller.http.base_url}".rstrip("/") in line
    controller.get("/v1/health")


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


def test_the_same_report_counts_once(controller, devices):
    pi = devices.add(controller, "reporter")
    manifest = controller.manifest(os.urandom(100))
    controller.post("/v1/trials", {"manifests": [manifest]})
    (found,) = controller.until(lambda: controller.measured(manifest))
    devices.do(pi.publish("report", encode(Report(found["trial"], manifest, Failed("crash", "not so")))))
    fence(controller, devices, pi)
    assert controller.measured(manifest) == [found]
    assert controller.get("/v1/trials", device="reporter")["trials"][0]["state"] == "done"


def fence(controller, devices, device) -> None:
    """Return when the controller has heard everything that a device has published on `report` so far."""
    before = controller.device(device.id)["rejected_messages"]
    devices.do(device.publish("report", b"a fence"))
    controller.until(lambda: controller.device(device.id)["rejected_messages"] > before)


def test_a_device_of_another_protocol_version_is_refused_with_one_line(controller, devices):
    pi = devices.add(controller, "old", speaks=(7, 9))
    refused = controller.device("old")["refused"]
    assert refused == (
        "no common protocol version: this side speaks 1 to 2, the other 7 to 9; upgrade edgepress on this side"
    )
    answer = controller.post("/v1/trials", {"manifests": [controller.manifest(b"model")]})
    assert answer["trials"] == []
    assert answer["skipped"][0]["reason"] == refused
    assert pi.wants == []


def test_a_device_without_the_runtime_is_left_out_and_the_others_go_on(controller, devices):
    devices.add(controller, "pi-1")
    manifests = [controller.manifest(b"one"), controller.manifest(b"two", format_="tflite")]
    answer = controller.post("/v1/trials", {"manifests": manifests})
    assert [trial["manifest"] for trial in answer["trials"]] == manifests[:1]
    reason = "no runtime here runs 'tflite' (it has onnx)"
    assert answer["skipped"] == [{"device": "pi-1", "manifest": manifests[1], "reason": reason}]


def test_hostile_messages_are_counted_and_stop_nothing(controller, devices, measurement):
    devices.add(controller, "victim", deaf=True)
    evil = devices.add(controller, "evil", deaf=True)
    manifest = controller.manifest(os.urandom(70_000))
    trials = controller.post("/v1/trials", {"manifests": [manifest]})["trials"]
    own = {trial["device"]: trial["id"] for trial in trials}
    nan = msgspec.structs.replace(measurement, load_ms=float("nan"))
    sent = [
        ("state", b"\xc1\xff garbage"),
        ("up", encode(Need("0" * 64, 1, b"", 1))),
        ("need", encode(Need("0" * 64, 10, b"\x01", 1))),
        ("report", encode(Report(own["victim"], manifest, Measured(measurement)))),
        ("report", encode(Report(own["evil"], manifest, Measured(nan)))),
        ("report", encode(Report(own["evil"], "0" * 64, Measured(measurement)))),
        ("tm", b"\x93" * 100_000),
    ]
    for leaf, payload in sent:
        devices.do(evil.publish(leaf, payload))
    controller.until(lambda: controller.device("evil")["rejected_messages"] == len(sent))
    assert controller.measured(manifest) == []
    errors = controller.errors.read_text()
    assert "device evil: speaks of trial" in errors
    assert "is not finite" in errors
    assert "Traceback" not in errors


def test_a_will_of_an_earlier_session_marks_nobody_as_gone(controller, devices):
    pi = devices.add(controller, "comeback")
    stale = Presence("an earlier session", False)
    devices.do(pi.publish("up", encode(stale), retain=True))
    devices.do(pi.publish("up", b"a fence"))
    controller.until(lambda: controller.device("comeback")["rejected_messages"])
    assert controller.device("comeback")["online"]
    devices.stop(pi)
    controller.until(lambda: not controller.device("comeback")["online"])


def test_trials_queue_for_a_device_that_is_offline_and_can_be_cancelled(controller, devices):
    pi = devices.add(controller, "away")
    devices.stop(pi)
    controller.until(lambda: not controller.device("away")["online"])
    manifest = controller.manifest(b"model for later")
    first, second = (controller.post("/v1/trials", {"manifests": [manifest]})["trials"][0] for _ in range(2))
    controller.call("DELETE", f"/v1/trials/{second['id']}", expect=204)
    assert "no open trial" in controller.call("DELETE", f"/v1/trials/{second['id']}", expect=404)["error"]
    devices.start(pi)
    controller.until(lambda: controller.measured(manifest))
    states = {one["id"]: one["state"] for one in controller.get("/v1/trials", device="away")["trials"]}
    assert states == {first["id"]: "done", second["id"]: "cancelled"}


def test_a_removed_device_leaves_nothing_retained(controller, devices):
    pi = devices.add(controller, "sold")
    devices.until(pi, lambda: pi.wants)
    with listening(controller.broker_port, "edgepress/v1/default/d/sold/+") as heard:
        devices.stop(pi)
        controller.until(lambda: not controller.device("sold")["online"])
        controller.call("DELETE", "/v1/devices/sold", expect=204)
        cleared = {f"edgepress/v1/default/d/sold/{leaf}" for leaf in ("up", "state", "want")}
        controller.until(lambda: {str(message.topic) for message in heard if not message.payload} == cleared)
    assert controller.device("sold") is None
    assert "no device" in controller.call("DELETE", "/v1/devices/sold", expect=404)["error"]


def test_whoever_waits_for_changes_hears_of_one_at_once(controller):
    seq = controller.get("/v1/changes", after=0, timeout_s=0)["seq"]
    started = time.monotonic()
    threading.Timer(0.3, controller.manifest, (os.urandom(50),)).start()
    changes = controller.get("/v1/changes", after=seq, timeout_s=20)
    assert time.monotonic() - started < 10
    assert [change["kind"] for change in changes["changes"]] == ["manifest"]


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


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (("--broker", "mqtt://127.0.0.1:1"), 1, "broker mqtt://127.0.0.1:1 cannot be reached"),
        (("--broker", "http://me:secret@there"), 2, "expected mqtt://"),
        (("--bind", "203.0.113.7"), 2, "cannot listen on 203.0.113.7:1883"),
        (("--bind", "127.0.0.1", "--broker", "mqtt://there"), 2, "give one of them"),
        (("--fleet", "a/b"), 2, "fleet 'a/b'"),
        (("--port", "1"), 2, None),
    ],
)
def test_what_cannot_be_is_one_line(controllers, arguments, status, line):
    if line is None and os.geteuid() == 0:
        pytest.skip("root may listen on every port")
    controller = controllers(*arguments)
    assert controller.start() == ""
    assert controller.process.wait(15) == status
    errors = controller.errors.read_text()
    assert (line or "cannot listen on 127.0.0.1:1") in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert "secret" not in errors


def test_without_a_key_one_line_says_how_to_make_one(controllers, tmp_path):
    controller = controllers("--keys", str(tmp_path / "nowhere"))
    assert controller.start() == ""
    assert controller.process.wait(5) == 2
    assert "edgepress keys init" in controller.errors.read_text().splitlines()[-1]


def test_a_bound_broker_takes_the_password_only(controllers: Callable[..., Any]):
    controller = controllers("--bind", "127.0.0.1:0")
    line = controller.start()
    file = controller.data_dir / "broker-password"
    assert str(file) in line
    assert file.stat().st_mode & 0o777 == 0o600
    password = file.read_text()
    assert password not in line
    assert controller.get("/v1/health")["broker_password_file"] == str(file)

    async def connect(with_password: str | None) -> None:
        async with aiomqtt.Client(
            "127.0.0.1",
            controller.broker_port,
            protocol=aiomqtt.ProtocolVersion.V5,
            username="edgepress" if with_password else None,
            password=with_password,
            timeout=2,
        ):
            pass

    asyncio.run(connect(password))
    for wrong in ("wrong", None):
        with pytest.raises(aiomqtt.MqttError):
            asyncio.run(connect(wrong))
