"""What the REST interface takes, refuses and shows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess

import httpx
import pytest


def test_changing_something_takes_the_token(controller):
    bare = httpx.Client(base_url=controller.http.base_url, trust_env=False)
    with bare:
        assert bare.get("/v1/devices").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer \u00e4".encode()}):
            answer = bare.post("/v1/gc", headers=headers)
            assert (answer.status_code, list(answer.json())) == (401, ["error"])
    token = controller.data_dir / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert (controller.data_dir / "controller.json").stat().st_mode & 0o777 == 0o600


def test_a_page_of_elsewhere_that_resolves_to_this_machine_gets_nothing(controller):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        answer = controller.http.get("/v1/devices", headers={"Host": host})
        assert answer.status_code in {400, 421}
    for host in ("localhost:1", "LOCALHOST"):
        assert controller.http.get("/v1/devices", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/v1/trials", b"{", 400, "TrialsIn: "),
        ("POST", "/v1/trials", b'{"manifests": []}', 400, "length >= 1 - at `$.manifests`"),
        ("POST", "/v1/trials", b'{"manifest": 1}', 400, "`manifest`"),
        ("POST", "/v1/trials", b"[" * 5000, 400, "TrialsIn"),
        ("POST", "/v1/trials", b'{"devices": "\xff"}', 400, "TrialsIn"),
        ("POST", "/v1/manifests", b"{}", 400, "missing required field `variant`"),
        ("POST", "/v1/rollouts", b'{"manifest": "x"}', 400, "ManifestIn|RolloutIn"),
        ("GET", "/v1/trials?state=asleep", b"", 404, "no trial state 'asleep'"),
        ("GET", "/v1/changes?after=-1", b"", 400, "after"),
        ("GET", "/v1/rollouts/nothing", b"", 404, "no rollout 'nothing'"),
        ("GET", "/v1/nowhere", b"", 404, "Not Found"),
        ("PUT", "/v1/blobs/short", b"x", 400, "expected a SHA-256"),
        ("PUT", "/v1/blobs/" + "0" * 64, b"x", 422, "send it again"),
        ("PUT", "/v1/blobs/" + hashlib.sha256(b"").hexdigest(), b"", 422, "empty"),
    ],
)
def test_a_bad_request_is_answered_with_one_line(controller, method, path, body, status, says):
    answer = controller.call(method, path, expect=status, content=body)
    assert re.search(re.escape(says).replace("\\|", "|"), answer["error"])
    assert "\n" not in answer["error"]


def test_an_unknown_device_is_named_with_the_nearest_one(controller, devices):
    devices.add(controller, "kitchen")
    manifest = controller.manifest(b"model")
    body = {"manifests": [manifest], "devices": "kitchn"}
    answer = controller.call("POST", "/v1/trials", expect=404, content=json.dumps(body))
    assert answer["error"] == "no device with id 'kitchn'; did you mean 'kitchen'?"
    for selector in ("kind=raspberry", "runtime=tflite", "colour=red"):
        controller.call("POST", "/v1/trials", expect=404, content=json.dumps(body | {"devices": selector}))
    answer = controller.post("/v1/trials", body | {"devices": "kind=test-board"})
    assert [trial["device"] for trial in answer["trials"]] == ["kitchen"]


def test_a_manifest_needs_its_files_and_is_the_same_when_it_comes_again(controller):
    tensor = {"name": "x", "dtype": "float32", "shape": [1]}
    body = {"variant": "v", "format": "onnx", "model": "0" * 64, "inputs": [tensor], "outputs": [tensor]}
    answer = controller.call("POST", "/v1/manifests", expect=404, content=json.dumps(body))
    assert "upload it with PUT" in answer["error"]
    golden = {"blob": controller.put(b"golden"), "atol": 0.1, "rtol": 0.0}
    first = controller.manifest(b"file", golden=golden)
    assert controller.manifest(b"file", golden=golden, stats={"params": 3}) == first
    assert controller.manifest(b"other file", golden=golden) != first
    views = {one["manifest"]: one for one in controller.get("/v1/manifests")["manifests"]}
    assert (views[first]["golden"], views[first]["stats"], views[first]["file_bytes"]) == (True, {"params": 3}, 4)


def test_a_file_that_was_cut_short_on_disk_is_asked_for_again(controller):
    data = os.urandom(1000)
    sha256 = controller.put(data)
    assert controller.http.head(f"/v1/blobs/{sha256}").status_code == 200
    (controller.data_dir / "blobs" / "files" / sha256).write_bytes(data[:-1])
    assert controller.http.head(f"/v1/blobs/{sha256}").status_code == 404
    assert controller.put(data) == sha256
    assert controller.http.head(f"/v1/blobs/{sha256}").status_code == 200


def test_sweeping_removes_what_nothing_refers_to_and_nothing_else(controller, devices):
    devices.add(controller, "sweeper")
    used, unused = controller.manifest(b"kept" * 1000), controller.manifest(b"left alone" * 1000)
    stray = controller.put(b"stray" * 1000)
    controller.post("/v1/trials", {"manifests": [used], "devices": "sweeper"})
    controller.until(lambda: controller.measured(used))
    swept = controller.post("/v1/gc")  # what is younger than the grace time stays
    assert not {unused, stray} & {*swept["manifests"], *swept["blobs"]}
    removed = controller.post("/v1/gc?min_age_s=0")
    assert unused in removed["manifests"]
    assert used not in removed["manifests"]
    assert {stray, hashlib.sha256(b"left alone" * 1000).hexdigest()} <= set(removed["blobs"])
    assert removed["freed_bytes"] >= 15_000
    assert controller.http.head(f"/v1/blobs/{hashlib.sha256(b'kept' * 1000).hexdigest()}").status_code == 200
    assert controller.http.head(f"/v1/blobs/{stray}").status_code == 404
    assert controller.measured(used)


def test_openapi_describes_every_route_and_record(controller):
    document = controller.get("/openapi.json")
    schemas = document["components"]["schemas"]
    assert {"TrialsIn", "DeviceView", "MeasurementView", "Changes", "Rollout", "Latency", "ErrorView"} <= set(schemas)
    text = json.dumps(document)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in schemas
    assert "/v1/measurements" in document["paths"]
    assert "p95_ms" in schemas["Latency"]["properties"]


def test_the_page_runs_no_script_but_its_own(controller):
    answer = controller.http.get("/")
    policy = answer.headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)[1]
    assert "default-src 'none'" in policy
    assert answer.text.count(f'<script nonce="{nonce}">') == answer.text.count("<script") == 1
    assert nonce not in controller.http.get("/").text
    assert "innerHTML" not in answer.text
    assert not re.search(r"https?://", answer.text)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="shows the page in chromium where that is installed")
def test_the_page_shows_what_devices_say_and_reads_none_of_it_as_html(controller, devices, tmp_path):
    devices.add(controller, "shown")
    manifest = controller.manifest(b"shown", variant="<img src=x onerror=alert(1)>")
    controller.post("/v1/trials", {"manifests": [manifest], "devices": "shown"})
    controller.until(lambda: controller.measured(manifest))
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=10000", "--dump-dom", f"{controller.http.base_url}/#still",
    ]  # fmt: skip
    page = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    assert "Test &lt;b&gt;board&lt;/b&gt;" in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img" not in page
    assert "simulated" in page
    for number in ("1.50 ms", "3 B", "90.00 %", '2.50 ms<div class="soft">at 20.0 Hz', "1.10 ms → 1.70 ms", "81.5 °C"):
        assert number in page
    assert "throttled</span>" in page
    assert "&lt;b&gt;a compiler&lt;/b&gt; ran" in page, "why the trial was disturbed"


def test_what_happened_is_said_in_names_that_people_gave(controller, devices):
    seq = controller.get("/v1/changes")["seq"]
    pi = devices.add(controller, "told")
    manifest = controller.manifest(os.urandom(100), variant="slim")
    controller.post("/v1/trials", {"manifests": [manifest], "devices": "told"})
    controller.until(lambda: controller.measured(manifest))
    rollout = controller.post("/v1/rollouts", {"manifest": manifest, "devices": "told"})
    controller.until(lambda: controller.get(f"/v1/rollouts/{rollout['id']}")["phase"] == "done")
    pi.fails = True
    again = controller.post("/v1/rollouts", {"manifest": manifest, "devices": "told"})
    controller.until(lambda: controller.get(f"/v1/rollouts/{again['id']}")["phase"] == "failed")
    said = [change["text"] for change in controller.get("/v1/changes", after=seq)["changes"] if change["text"]]
    assert {
        "told joined: Test <b>board</b>",
        "slim:onnx is new here",
        "told: slim:onnx queued",
        "told: slim:onnx measuring",
        "told: slim:onnx done",
        "told is to run slim:onnx",
        "told runs slim:onnx",
        "slim:onnx on told: active",
        "told could not run slim:onnx: golden vectors differ",
        "slim:onnx on told: failed, set back: told: golden vectors differ",
    } <= set(said)
    assert not [text for text in said if re.search(r"[0-9a-f]{8}", text) or "reported" in text]


def test_the_latest_changes_come_at_once_and_others_from_where_one_was(controller):
    variants = [f"one-of-{number}" for number in range(3)]
    for variant in variants:
        controller.manifest(os.urandom(10), variant=variant)
    latest = controller.get("/v1/changes")
    assert [change["text"] for change in latest["changes"][-3:]] == [
        f"{variant}:onnx is new here" for variant in variants
    ]
    assert controller.get("/v1/changes", after=latest["seq"], timeout_s=0) == {"seq": latest["seq"], "changes": []}


def test_a_manifest_that_comes_again_is_the_latest_of_its_name(controller):
    first, second = (controller.manifest(data, variant="again") for data in (b"first", b"second"))
    assert controller.manifest(b"first", variant="again") == first
    listed = [one["manifest"] for one in controller.get("/v1/manifests")["manifests"] if one["variant"] == "again"]
    assert listed == [second, first]
