"""Under which conditions a trial was measured, and what telemetry tells of the model that serves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from edgepress_agent import sensors
from edgepress_agent.board import telemetry
from edgepress_agent.measure import conditions
from edgepress_agent.serving.serve import ServeStats
from edgepress_protocol.histogram import Histogram


def test_throttling_while_a_trial_ran_is_noted(boards: Path, tmp_path: Path) -> None:
    root = tmp_path / "orin"
    shutil.copytree(boards / "orin-nano", root)
    before = conditions.read(sensors.found(root), root)
    (root / "sys/class/hwmon/hwmon2/oc2_event_cnt").write_text("3\n")
    after = conditions.read(sensors.found(root), root)
    assert conditions.notes(before, after) == (
        "power mode pmode:0002",
        "the board throttled 3 times for over-current while this was measured",
    )


def test_telemetry_tells_how_serving_goes(tmp_path: Path) -> None:
    stats = ServeStats(requests=3, errors=1, latency=Histogram.of([1_000_000, 2_000_000, 3_000_000]))
    now = telemetry.read(Path("/"), stats, state_dir=tmp_path)
    assert (now.requests, now.request_errors) == (3, 1)
    assert now.request_p50_ms == pytest.approx(2.0, rel=0.004)
    assert now.uptime_s > 0
    assert now.memory_used_bytes is not None
    assert now.memory_used_bytes > 0
    assert now.free_disk_bytes is not None
    assert now.free_disk_bytes > 0
