"""What devices and callers should not do, and what must go on all the same."""

from __future__ import annotations

import json
import os
import socket

import msgspec
from edgepress_host.server.views import Devices
from edgepress_protocol.messages import Need, Presence, Telemetry, encode
from edgepress_protocol.transfer import decode_frame, to_bitmap
from honest import listening


def test_numbers_that_no_message_can_carry_are_refused_before_they_are_kept(controller, devices):
    devices.add(controller, "wanted")
    manifest = controller.manifest(b"model")
    tensor = {"name": "x", "dtype": "float32", "shape": [None, 4]}
    blob = controller.put(b"labelled samples")
    for body in (
        {"manifests": [manifest], "options": {"memory_limit_bytes": 1 << 70}},
        {"manifests": [manifest], "evaluation": {"blob": blob, "samples": 1 << 70}},
    ):
        answer = controller.call("POST", "/v1/trials", expect=400, content=json.dumps(body))
        assert "\n" not in answer["error"]
    body = {"variant": "v", "format": "onnx", "model": blob, "inputs": [tensor], "outputs": [tensor]}
    body["inputs"] = [tensor | {"shape": [1 << 70]}]
    controller.call("POST", "/v1/manifests", expect=400, content=json.dumps(body))
    assert controller.get("/v1/trials", device="wanted")["trials"] == []
    controller.post("/v1/trials", {"manifests": [manifest], "devices": "wanted"})
    controller.until(lambda: controller.measured(manifest, "wanted"))


def test_telemetry_that_is_not_a_number_spoils_no_answer(controller, devices):
    evil = devices.add(controller, "evil")
    devices.do(evil.publish("tm", encode(Telemetry(float("nan"), temperature_celsius=float("inf")))))
    controller.until(lambda: controller.device("evil")["rejected_messages"])
    msgspec.json.decode(controller.http.get("/v1/devices").content, type=Devices)


def holding_back(controller, devices, name):
    """A device that was published two of three chunks and says nothing of them."""
    device = devices.add(controller, name, window=2, deaf=True)
    manifest = controller.manifest(os.urandom(3 * 65536))
    controller.post("/v1/trials", {"manifests": [manifest], "devices": name})
    return device


def ask_for_all(devices, device) -> None:
    (wire,) = device._wanted()
    need = Need(wire.sha256, wire.size_bytes, to_bitmap([0, 1, 2], 3), 2)
    devices.do(device.publish("need", encode(need)))


def test_a_session_that_takes_over_is_sent_what_was_on_its_way_to_the_one_before(controller, devices):
    with listening(controller.broker_port, "edgepress/v1/default/blob/+") as heard:
        agent = holding_back(controller, devices, "quick")
        controller.until(lambda: len(heard) == 2)
        # Killed and started again before the broker noticed: no word of the first one's end.
        devices.do(agent.publish("up", encode(Presence("the next session", True)), retain=True))
        ask_for_all(devices, agent)
        controller.until(lambda: len(heard) == 4)
    assert [decode_frame(message.payload).index for message in heard] == [0, 1, 0, 1]


def test_a_will_of_an_earlier_session_takes_no_transfer_away(controller, devices):
    with listening(controller.broker_port, "edgepress/v1/default/blob/+") as heard:
        agent = holding_back(controller, devices, "slow")
        controller.until(lambda: len(heard) == 2)
        devices.do(agent.publish("up", encode(Presence("an earlier session", False))))
        ask_for_all(devices, agent)
        # What another device asks for after that comes after that.
        holding_back(controller, devices, "fence")
        controller.until(lambda: len(heard) == 4)
    assert str(heard[2].topic) != str(heard[0].topic)


def test_a_sender_that_leaves_in_mid_upload_leaves_no_traceback(controller):
    url = controller.http.base_url
    auth = controller.http.headers["Authorization"]
    for path in ("/v1/blobs/" + "0" * 64, "/v1/trials"):
        method = "PUT" if "blobs" in path else "POST"
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: {auth}\r\nContent-Length: 1000000\r\n\r\n"
        )
        with socket.create_connection((url.host, url.port), timeout=10) as sending:
            sending.sendall(head.encode() + b"x" * 1000)
    controller.get("/v1/health")
    assert "Traceback" not in controller.errors.read_text()
    assert not list((controller.data_dir / "blobs" / "files").glob(".*"))
