"""The doctor: what is missing, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepress_host import doctor


def test_a_missing_package_names_the_extra_that_has_it() -> None:
    installed = {"torch": "2.13.0"}.get
    check = doctor.packages("compress", "host", ("torch", "onnx"), True, installed)
    assert (check.state, check.found) == ("missing", "not installed: onnx")
    assert check.remedy == "pip install 'edgepress[host]'"
    assert doctor.packages("x", "tflite", ("onnx",), False, installed).state == "optional"
    assert doctor.packages("x", "host", ("torch",), True, installed).state == "ok"


def test_an_old_python_is_refused() -> None:
    assert doctor.python((3, 10, 12)).state == "missing"
    assert doctor.python((3, 11, 0)).state == "ok"


def test_no_shared_memory_is_said(tmp_path: Path) -> None:
    assert doctor.shared_memory(tmp_path / "none").remedy


def test_here_everything_that_the_line_needs_is_there(shell: Any) -> None:
    shell.run("keys", "init")
    checks = {check["name"]: check for check in shell.json("doctor")["checks"]}
    assert checks["key"]["state"] == "ok"
    assert checks["running"] == {
        "name": "running",
        "state": "optional",
        "found": "no controller",
        "remedy": "edgepress serve (commands start one when they need it)",
    }
    assert all(check["remedy"] for check in checks.values() if check["state"] != "ok")


def test_something_essential_that_is_broken_is_status_1(shell: Any) -> None:
    shell.run("keys", "init")
    (shell.data_dir / "keys" / "edgepress.key").chmod(0o644)
    done = shell.run("doctor", expect=1)
    assert "chmod 600" in done.stdout


def test_it_changes_nothing(shell: Any) -> None:
    shell.run("doctor", "--json")
    assert not shell.data_dir.exists()
