"""The controller through its REST interface and its real broker, with devices that speak the protocol."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

import msgspec
from edgepress_host import keys
from edgepress_protocol.messages import (
    Failed,
    Measured,
    Need,
    Presence,
    Report,
    decode_signed,
    encode,
)
from edgepress_protocol.transfer import decode_frame
from honest import listening


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
