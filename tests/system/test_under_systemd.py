"""The package under a real systemd, hardened as its unit says: it measures, serves, is watched, and changes hands."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import booted
import pytest
from line import Line

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests/fixtures/models"
ASK = """
import sys; sys.path.insert(0, "/opt/edgepress/lib/python3.11/site-packages")
from edgepress_agent.serving.client import Model
print(len(Model("unix:/run/edgepress/serve.sock")([0.5] * 16)[0].tolist()[0]))
"""
OTHER = """#!/bin/sh
[ "$1" = run ] && exit 1
exec /opt/edgepress/bin/edgepress-agent "$@"
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(booted.missing()), reason=booted.missing() or "nothing is missing"),
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="a package for bookworm is built with its Python 3.11"),
]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path / "fleet" / "data")
    yield made
    made.stop()


@pytest.fixture
def system(tmp_path: Path, line: Line) -> Iterator[booted.Booted]:
    arch = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    build = [sys.executable, "deploy/deb/build.py", "--arch", arch, "--out", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (deb,) = tmp_path.glob("edgepress-agent_*.deb")
    (tmp_path / "system").mkdir()
    with booted.booted(tmp_path / "system", deb, line.data_dir / "keys/edgepress.pub", line.broker, "board") as system:
        yield system


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """No event of that system reaches this one."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_service_measures_serves_is_watched_and_goes(system: booted.Booted, line: Line) -> None:
    line.wait_for(board=True)
    assert system.of_service("ActiveState") == "active"
    assert system.of_service("StatusText") == f"connected to {line.broker} as board"
    told = system.said("edgepress-agent", "status")
    assert "active (running)" in told
    assert f"connected to {line.broker}" in system.said("edgepress-agent", "logs")

    quick = ("--windows", "1", "--window-s", "0.2")
    printed = line.json("profile", MODELS / "tiny.onnx", MODELS / "dense.tflite", *quick)
    assert [one["state"] for one in printed["trials"]] == ["done", "done"]
    for one in printed["measurements"]:
        guards = " ".join(one["measurement"]["guards"])
        for guard in ("no-new-privileges", "no-capabilities", "address-space"):
            assert guard in guards
        assert "seccomp" in guards or any("seccomp" in note for note in one["measurement"]["notes"])
    line.run("deploy", "tiny", "--devices", "all")
    assert system.said("/usr/bin/python3.11", "-c", ASK) == "4\n"

    # As its user, with nothing of root's, in folders of its own.
    first = system.of_service("MainPID")
    rights = dict(row.split(":", 1) for row in system.said("cat", f"/proc/{first}/status").splitlines())
    assert rights["Uid"].split()[0] == system.said("id", "-u", "edgepress").strip()
    assert int(rights["CapEff"], 16) == int(rights["CapBnd"], 16) == 0
    assert (rights["NoNewPrivs"].strip(), rights["Seccomp"].strip()) == ("1", "2")
    assert system.said("stat", "-c", "%U %a", "/var/lib/edgepress", "/etc/edgepress/agent.toml") == (
        "edgepress 700\nroot 640\n"
    )

    # A loop that hangs pings no watchdog: within 30 s it is another process, and the model is served again.
    system.said("kill", "-STOP", first)
    until(lambda: system.of_service("MainPID") not in {first, "0"})
    until(lambda: system.of_service("ActiveState") == "active")
    line.wait_for(board=True)
    assert system.of_service("NRestarts") == "1"
    until(lambda: system.run("/usr/bin/python3.11", "-c", ASK).stdout == "4\n")

    # A model's process that eats the memory would be killed: the service goes on (OOMPolicy), as it does here.
    (child,) = system.said("pgrep", "-P", system.of_service("MainPID")).split()
    system.said("kill", "-KILL", child)
    until(lambda: system.run("/usr/bin/python3.11", "-c", ASK).stdout == "4\n")
    assert system.of_service("NRestarts") == "1"

    # Another edition that says it could take over, and then does not start: the old one is started again.
    system.said("sh", "-c", 'echo "$0" > /usr/local/bin/other && chmod 755 /usr/local/bin/other', OTHER)
    refused = system.run("edgepress-agent", "upgrade", "--program", "/usr/local/bin/other")
    assert (refused.returncode, "the service is back at" in refused.stderr) == (1, True), refused.stderr
    assert system.of_service("ActiveState") == "active"
    assert "/opt/edgepress/bin/edgepress-agent" in system.of_service("ExecStart")
    until(lambda: system.run("/usr/bin/python3.11", "-c", ASK).stdout == "4\n")

    system.said("dpkg", "-P", "edgepress-agent")
    line.wait_for(board=False)
    assert system.of_service("LoadState") == "not-found"
    assert system.run("test", "-e", "/var/lib/edgepress").returncode == 1
