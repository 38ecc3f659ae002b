"""Agents of an earlier edition get files in the forms that they know, or a line that says what to upgrade."""

import hashlib

import pressed
from edgepress_protocol import codec
from edgepress_protocol.messages import Active

MODEL = pressed.safetensors({"w": pressed.floats(100, 80, pressed.pruned_and_clustered(0.05))})
OTHER = pressed.safetensors({"w": pressed.floats(80, 100, pressed.pruned_and_clustered(0.05), seed=7)})


def codec_of(controller, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    return controller.call("PUT", f"/v1/blobs/{sha256}", content=data)["codec"]


def test_a_fleet_that_speaks_version_2_gets_the_container_and_an_old_agent_that_comes_later_is_told(own, devices):
    new = devices.add(own, "new", speaks=(1, 2))
    manifest = own.manifest(MODEL)
    assert codec_of(own, MODEL) == "container"
    devices.add(own, "old", speaks=(1, 1))
    answer = own.post("/v1/trials", {"manifests": [manifest]})
    assert [one["device"] for one in answer["trials"]] == ["new"]
    assert [(one["device"], one["reason"]) for one in answer["skipped"]] == [
        ("old", "it speaks protocol version 1, which has no container to travel in; upgrade edgepress on it")
    ]
    assert own.until(lambda: own.measured(manifest, "new"))
    assert new.wants[-1].protocol == 2
    refusal = own.call("POST", "/v1/rollouts", expect=409, json={"manifest": manifest, "devices": "old"})
    assert "upgrade edgepress on it" in refusal["error"]
    # What comes from now on travels so that both can read it; a form that was given once stays.
    assert codec_of(own, OTHER) in codec.read_by(1)
    assert codec_of(own, MODEL) == "container"
    later = own.manifest(OTHER, variant="later")
    assert own.post("/v1/trials", {"manifests": [later]})["skipped"] == []
    assert own.until(lambda: own.measured(later, "old") and own.measured(later, "new"))


def test_a_device_that_went_back_to_an_old_edition_is_not_set_back_to_a_file_that_it_cannot_read(own, devices):
    pi = devices.add(own, "downgraded", speaks=(1, 2))
    manifest = own.manifest(MODEL)
    rollout = own.post("/v1/rollouts", {"manifest": manifest, "devices": "downgraded"})
    own.until(lambda: own.get(f"/v1/rollouts/{rollout['id']}")["phase"] == "done")
    pi.speaks, pi.before = (1, 1), Active("d" * 32, manifest, "tiny")
    devices.do(pi.say_state())
    own.until(lambda: own.get("/v1/devices")["devices"][0]["previous"])
    refusal = own.call("POST", "/v1/rollbacks", expect=409, json={"devices": "downgraded"})
    assert refusal["error"] == (
        "downgraded cannot go back to 'tiny': it speaks protocol version 1, which has no container to travel in;"
        " upgrade edgepress on it"
    )
    assert {want.deployment.id for want in pi.wants if want.deployment} == {rollout["id"]}


def test_a_wire_form_that_the_disk_altered_is_made_again_by_uploading_the_file_again(own, devices):
    devices.add(own, "new", speaks=(1, 2))
    assert codec_of(own, MODEL) == "container"
    (path,) = (own.data_dir / "blobs" / "wires").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert codec_of(own, MODEL) == "container"
    assert path.read_bytes() == whole
