"""The whole line by commands alone: profile, select, deploy, rollback, report."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUICK = ("--windows", "1", "--window-s", "0.05")


def test_profile_measures_every_variant_on_every_board(profiled: dict[str, Any]) -> None:
    states = {(one["device"], one["variant"]): one["state"] for one in profiled["trials"]}
    assert states == {
        (device, variant): "failed" if variant == "broken" else "done"
        for device in ("pi-1", "pi-2")
        for variant in ("original", "small", "broken")
    }
    original = [one for one in profiled["measurements"] if one["variant"] == "original"]
    assert [one["measurement"]["accuracy"]["value"] for one in original] == [1.0, 1.0]


def test_wrong_golden_vectors_are_a_failed_trial_that_says_so(line: Any, profiled: dict[str, Any]) -> None:
    listed = line.json("trials", "list", "--all")["trials"]
    assert all(one["detail"].startswith("golden") for one in listed if one["variant"] == "broken")


def test_select_takes_the_budget_of_the_recipe_and_options_before_it(
    line: Any, folder: Path, profiled: dict[str, Any]
) -> None:
    (choice,) = line.json("select", "--variants", folder)["choices"]
    assert choice["chosen"] == "small:onnx"
    assert choice["devices"] == ["pi-1", "pi-2"]
    reasons = {one["variant"]: one["reason"] for one in choice["standings"]}
    assert reasons["broken"].startswith("failed on pi-1: golden")
    (choice,) = line.json("select", "--variants", folder, "--max-accuracy-drop", "0.01")["choices"]
    assert choice["chosen"] == "original:onnx"
    said = line.run("select", "--variants", folder, "--energy-mj", "5").stdout
    assert "no choice: no board here measured energy" in " ".join(said.split())
    assert "widen the budget" in line.error("deploy", "--selected")
    lifted = line.json("select", "--variants", folder, "--max-accuracy-drop", "none")["choices"]
    assert [one["budget"]["max_accuracy_drop"] for one in lifted] == [None]
    by_device = line.json("select", "--per", "device")["choices"]
    assert [one["group"] for one in by_device] == ["pi-1", "pi-2"]


def test_deploy_selected_then_rollback(line: Any, folder: Path, profiled: dict[str, Any]) -> None:
    def active() -> dict[str, str]:
        return {one["id"]: one["active"]["variant"] for one in line.json("devices")["devices"] if one["active"]}

    line.run("deploy", "original:onnx", "--devices", "pi-1,pi-2")
    assert active() == {"pi-1": "original", "pi-2": "original"}
    line.run("select", "--variants", folder)
    said = line.run("deploy", "--selected", "--canary", "1", "--hold-s", "0.1").stderr
    assert "small:onnx on pi-1, pi-2: active" in said
    assert active() == {"pi-1": "small", "pi-2": "small"}
    line.run("rollback", "--devices", "pi-1")
    assert active() == {"pi-1": "original", "pi-2": "small"}


def test_a_deployment_that_fails_its_golden_vectors_sets_all_back(line: Any, profiled: dict[str, Any]) -> None:
    line.run("deploy", "original", "--devices", "pi-2")
    assert "set back" in line.error("deploy", "broken", "--devices", "pi-2", expect=1)
    views = {one["id"]: one for one in line.json("devices")["devices"]}
    assert views["pi-2"]["active"]["variant"] == "original"


def test_report_is_one_page_without_a_network(
    line: Any, folder: Path, profiled: dict[str, Any], tmp_path: Path
) -> None:
    line.run("select", "--variants", folder)
    page = tmp_path / "report.html"
    assert line.json("report", "--out", page)["measurements"] >= 4
    text = page.read_text()
    assert len(text) < 1_000_000
    assert not re.search(r"""(src|href)=|@import|url\(|<script""", text)
    assert text.count("<svg") == 4
    for expected in ("pi-1", "pi-2", "small:onnx", "chosen</span>", "failed on pi-1: golden"):
        assert expected in text


def test_a_ready_file_needs_no_recipe(line: Any, model: Callable[[Path, int], Path], tmp_path: Path) -> None:
    path = model(tmp_path / "found.onnx", 16)
    answer = line.json("profile", path, "--devices", "pi-1", *QUICK)
    (view,) = answer["measurements"]
    assert (view["variant"], view["measurement"]["accuracy"]) == ("found", None)
    assert view["measurement"]["golden_max_error"] is not None


def test_a_trial_is_shown_with_all_that_it_measured(line: Any, folder: Path, profiled: dict[str, Any]) -> None:
    asked = ("--layers", "--sweep-threads", "2", "--provider", "nowhere", "--devices", "pi-1", *QUICK)
    (view,) = line.json("profile", "small", "--variants", folder, *asked)["measurements"]
    shown = line.json("trials", "show", view["trial"][:8])
    assert (shown["trial"]["id"], shown["measurement"]) == (view["trial"], view)
    found, said = view["measurement"], line.run("trials", "show", view["trial"]).stdout
    assert f"{found['latency']['runs']:,} runs" in said
    for label in (
        "pi-1",
        "small:onnx",
        "tight loop",
        "at 20 Hz",
        "2 threads",
        "layers",
        "accuracy",
        "golden",
        "guards",
    ):
        assert label in said
    assert "nowhere" in said, "a place to run on that is not there is never left out in silence"
    assert all(f"{layer['operator']}  {layer['name']}".rstrip() in said for layer in found["layers"])
    (failed, *_) = [one["id"] for one in profiled["trials"] if one["state"] == "failed"]
    assert "golden" in line.run("trials", "show", failed).stdout


def test_trials_queue_for_a_board_that_is_offline_and_can_be_cancelled(line: Any, profiled: dict[str, Any]) -> None:
    said = line.run("profile", "small", "--devices", "sleeper", *QUICK).stderr
    assert "trials stay queued: sleeper is offline" in said
    (queued,) = [one for one in line.json("trials")["trials"] if one["device"] == "sleeper"]
    assert line.json("trials", "cancel", queued["id"][:8])["cancelled"] == [queued["id"]]
    assert not [one for one in line.json("trials")["trials"] if one["device"] == "sleeper"]


def test_no_wait_returns_at_once(line: Any, profiled: dict[str, Any]) -> None:
    assert "queued" in line.run("profile", "small", "--devices", "sleeper", "--no-wait", *QUICK).stderr
    line.run("trials", "cancel", "--all")


def test_ctrl_c_leaves_trials_queued_and_says_how_to_cancel(line: Any, profiled: dict[str, Any]) -> None:
    process = subprocess.Popen(
        line.command("profile", "original", "--devices", "pi-1", "--windows", "50", "--window-s", "5"),
        env=line.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while "measuring" not in said:
        said = process.stderr.readline()
        assert said, "ended before it measured"
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(10) == 130
    assert "trials cancel" in rest
    assert "Traceback" not in rest
    assert line.json("trials", "cancel", "--all")["cancelled"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("devices", "remove", "pi-9"), "pi-"),
        (("deploy", "small", "--devices", "pi-9"), "pi-9"),
        (("deploy", "smal"), "did you mean 'small'"),
        (("profile", "smal"), "did you mean 'small'"),
        (("profile", "small", "--devices", "colour=red"), "colour"),
        (("trials", "cancel", "zzz"), "no open trial"),
        (("trials", "show", "zzz"), "no trial with an id that starts with 'zzz'"),
        (("profile", "small", *("--provider", "cuda") * 9), "expected up to 8 words"),
        (("profile", "small", "--provider", "CUDA!"), "expected up to 8 words such as tensorrt or cuda, got 'CUDA!'"),
        (("deploy",), "either a variant or --selected"),
        (("deploy", "--selected", "--devices", "pi-1"), "leave out --devices"),
        (("select", "--p95-latency-ms", "0"), "above 0"),
    ],
)
def test_a_mistake_is_one_line(line: Any, profiled: dict[str, Any], arguments: tuple[str, ...], words: str) -> None:
    assert words in line.error(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [("devices",), ("trials",), ("trials", "list", "--all"), ("select",), ("keys", "show"), ("gc",), ("doctor",)],
)
def test_json_is_all_there_is_on_standard_output(
    line: Any, profiled: dict[str, Any], arguments: tuple[str, ...]
) -> None:
    assert line.json(*arguments)


def test_tables_for_people(line: Any, profiled: dict[str, Any]) -> None:
    assert "pi-1" in line.run("devices").stdout
    assert "small:onnx" in line.run("select").stdout
    assert "broken" in line.run("trials", "list", "--all").stdout


def test_a_device_can_be_forgotten(line: Any) -> None:
    line.start_agent("guest")
    line.wait_for(guest=True)
    assert line.error("devices", "remove", "guest").startswith("guest is connected: end its agent first")
    line.stop_agent("guest")
    line.wait_for(guest=False)
    assert line.json("devices", "remove", "guest") == {"removed": "guest"}
    assert "guest" not in [one["id"] for one in line.json("devices")["devices"]]


def test_a_rollout_that_waits_for_a_board_that_is_offline_holds_nobody_up(line: Any, profiled: dict[str, Any]) -> None:
    said = line.run("deploy", "small", "--devices", "sleeper").stderr
    assert "the rollout goes on by itself when they come: sleeper is offline" in said
    said = line.run("rollback", "--devices", "sleeper").stderr
    assert "sleeper ran nothing before" in said


def test_a_board_that_trusts_another_key_is_named_and_holds_nobody_up(
    line: Any, profiled: dict[str, Any], tmp_path: Path
) -> None:
    from edgepress_host import keys
    from edgepress_host.client.client import connect

    keys.init(tmp_path / "other")
    line.start_agent("stranger", trust=tmp_path / "other" / keys.PUBLIC_NAME)
    try:
        with connect(line.data_dir, print) as client:
            client.follow(lambda: any(view.id == "stranger" and view.refused for view in client.devices()), tick_s=5.0)
        said = line.run("profile", "small", "--devices", "stranger", *QUICK).stderr
        assert "trials stay queued: stranger refuses this controller: " in said
        said = line.run("deploy", "small", "--devices", "stranger").stderr
        assert "stranger refuses this controller: " in said
    finally:
        line.stop_agent("stranger")
        line.wait_for(stranger=False)
        line.run("devices", "remove", "stranger")


def test_a_board_that_ran_nothing_before_can_be_rolled_back(line: Any, profiled: dict[str, Any]) -> None:
    from edgepress_host.client.client import connect

    line.start_agent("novice")
    try:
        line.wait_for(novice=True)
        deploy = ("deploy", "small", "--devices", "novice", "--canary", "1", "--hold-s", "3600")
        process = subprocess.Popen(line.command(*deploy), env=line.environment, stderr=subprocess.PIPE, text=True)
        with connect(line.data_dir, print) as client:
            client.follow(lambda: any(view.id == "novice" and view.active for view in client.devices()), tick_s=5.0)
        assert process.stderr is not None
        while "watched" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1]
        assert "the rollout goes on; take it back with: edgepress rollback --devices novice\n" in said
        assert line.error(*deploy).endswith("roll it back first: edgepress rollback --devices novice")
        assert "novice ran nothing before" in line.run("rollback", "--devices", "novice").stderr
    finally:
        line.stop_agent("novice")
        line.wait_for(novice=False)
        line.run("devices", "remove", "novice")
