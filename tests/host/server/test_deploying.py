"""Rollouts and rollbacks, with devices that speak the protocol."""

from __future__ import annotations

import json


def test_a_canary_goes_first_and_the_rest_follow(controller, devices):
    pis = [devices.add(controller, f"row-{n}") for n in range(3)]
    manifest = controller.manifest(b"version one")
    body = {"manifest": manifest, "devices": "row-1,row-0,row-2", "canary": 1, "hold_s": 0.5}
    rollout = controller.post("/v1/rollouts", body)
    assert (rollout["phase"], list(rollout["previous"])) == ("canary", ["row-1"])
    path = f"/v1/rollouts/{rollout['id']}"
    controller.until(lambda: controller.get(path)["phase"] == "holding")
    assert [pi.wants[-1].deployment is not None for pi in pis] == [False, True, False]
    controller.until(lambda: controller.get(path)["phase"] == "done")
    shown = [controller.device(pi.id) for pi in pis]
    assert [one["active"]["deployment"] for one in shown] == [rollout["id"]] * 3
    assert rollout["id"] in [one["id"] for one in controller.get("/v1/rollouts")["rollouts"]]


def test_a_canary_that_fails_is_set_back_and_the_rest_never_hear_of_it(controller, devices):
    canary, other = devices.add(controller, "canary"), devices.add(controller, "other")
    first = controller.post("/v1/rollouts", {"manifest": controller.manifest(b"good"), "devices": "canary,other"})
    controller.until(lambda: controller.get(f"/v1/rollouts/{first['id']}")["phase"] == "done")
    wants = len(other.wants)
    canary.fails = True
    body = {"manifest": controller.manifest(b"bad"), "devices": "canary,other", "canary": 1, "hold_s": 60}
    second = controller.post("/v1/rollouts", body)
    found = controller.until(
        lambda: (lambda one: one if one["phase"] == "failed" else None)(controller.get(f"/v1/rollouts/{second['id']}"))
    )
    assert found["reason"] == "canary: golden vectors differ"
    devices.until(canary, lambda: canary.wants[-1].deployment.id == first["id"])
    assert len(other.wants) == wants


def test_one_rollout_at_a_time_and_a_rollback_ends_it(controller, devices):
    pi = devices.add(controller, "busy")
    good = controller.post("/v1/rollouts", {"manifest": controller.manifest(b"good one"), "devices": "busy"})
    controller.until(lambda: controller.get(f"/v1/rollouts/{good['id']}")["phase"] == "done")
    body = {"manifest": controller.manifest(b"next one"), "devices": "busy", "canary": 1, "hold_s": 3600}
    held = controller.post("/v1/rollouts", body)
    controller.until(lambda: controller.get(f"/v1/rollouts/{held['id']}")["phase"] == "holding")
    refused = controller.call("POST", "/v1/rollouts", expect=409, content=json.dumps(body))
    assert refused["error"].endswith("which still goes on; roll it back first: edgepress rollback --devices busy")
    back = controller.post("/v1/rollbacks", {"devices": "busy"})
    assert back == {"devices": {"busy": good["manifest"]}}
    devices.until(pi, lambda: pi.wants[-1].deployment.id == good["id"])
    ended = controller.get(f"/v1/rollouts/{held['id']}")
    assert (ended["phase"], ended["reason"]) == ("failed", "rolled back by the user")


def test_there_must_be_something_to_go_back_to(controller, devices):
    devices.add(controller, "new")
    answer = controller.call("POST", "/v1/rollbacks", expect=409, content=b'{"devices": "new"}')
    assert "nothing to go back to" in answer["error"]


def test_a_format_that_a_device_cannot_run_is_not_rolled_out(controller, devices):
    devices.add(controller, "onnx-only")
    body = {"manifest": controller.manifest(b"lite", format_="tflite"), "devices": "onnx-only"}
    answer = controller.call("POST", "/v1/rollouts", expect=409, content=json.dumps(body))
    assert answer["error"] == "onnx-only: no runtime here runs 'tflite' (it has onnx)"


def test_a_device_that_ran_nothing_before_is_not_said_to_be_set_back(controller, devices):
    devices.add(controller, "first-try", fails=True)
    rollout = controller.post("/v1/rollouts", {"manifest": controller.manifest(b"bad one"), "devices": "first-try"})
    controller.until(lambda: controller.get(f"/v1/rollouts/{rollout['id']}")["phase"] == "failed")
    said = [one["text"] for one in controller.get("/v1/changes")["changes"] if one["rollout"] == rollout["id"]]
    assert said[-1].endswith("first-try: golden vectors differ; nothing to go back to on first-try")
