"""A fleet of mixed editions: real controllers and real agents that speak an earlier protocol, either way round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nets import classifier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
QUICK = ("--windows", "1", "--window-s", "0.1")


def worked(line: Any) -> tuple[dict[str, str], dict[str, str | None], dict[str, str]]:
    """States of trials, active variants and refusals, by device."""
    trials = {one["device"]: one["state"] for one in line.json("trials", "list", "--all")["trials"]}
    views = line.json("devices")["devices"]
    active = {one["id"]: (one["active"] or {}).get("variant") for one in views}
    return trials, active, {one["id"]: one["refused"] for one in views}


def test_agents_of_this_edition_and_of_the_one_before_under_a_host(fleets: Callable[..., Any], tmp_path: Path) -> None:
    line = fleets()
    line.start_agent("before", speaks=(1, 1))
    line.start_agent("now")
    line.wait_for(before=True, now=True)
    line.run("profile", classifier(tmp_path / "small.onnx", 8), *QUICK)
    line.run("deploy", "small", "--devices", "before,now")
    assert worked(line) == (
        {"before": "done", "now": "done"},
        {"before": "small", "now": "small"},
        {"before": "", "now": ""},
    )


def test_an_agent_of_this_edition_under_a_host_of_the_one_before(fleets: Callable[..., Any], tmp_path: Path) -> None:
    line = fleets(speaks=(1, 1))
    line.start_agent("now", speaks=(1, 2))
    line.wait_for(now=True)
    line.run("profile", classifier(tmp_path / "small.onnx", 8), *QUICK)
    line.run("deploy", "small", "--devices", "now")
    assert worked(line) == ({"now": "done"}, {"now": "small"}, {"now": ""})
