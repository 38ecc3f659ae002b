"""The board and its serving model, read now and then. What cannot be read is None."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.messages import Telemetry

from edgepress_agent import sensors
from edgepress_agent.board import memory, proc
from edgepress_agent.board.load import Load
from edgepress_agent.board.sysfs import is_simulated
from edgepress_agent.serving.serve import ServeStats

_log = logging.getLogger(__name__)
T = TypeVar("T")
_load = Load()
"""Starts the clock: the load is that since the last call."""


def read(root: Path, serve_stats: ServeStats | None, *, state_dir: Path | None = None) -> Telemetry:
    """Read the board once. It blocks for as long as its sensors take, some 25 ms at most.

    A recorded tree has no processor load and no uptime of its own: uptime is then the machine's, load blank.
    """
    board = sensors.found(root)
    power = sensors.power(board)
    requests = serve_stats.latency if serve_stats is not None else None
    return Telemetry(
        uptime_s=_uptime_s(root),
        cpu_percent=None if is_simulated(root) else _load.percent(),
        memory_used_bytes=_of(root, memory.used_bytes),
        temperature_celsius=_value(next(iter(sensors.of(board, "temperature")), None)),
        # A counter has no power of a moment.
        power_mw=None if power is None or power.wraps_at_mj is not None else _value(power),
        free_disk_bytes=None if state_dir is None else shutil.disk_usage(state_dir).free,
        requests=None if serve_stats is None else serve_stats.requests,
        request_errors=None if serve_stats is None else serve_stats.errors,
        request_p50_ms=requests.percentile_ms(50) if requests is not None and requests.total else None,
        simulated=is_simulated(root),
        request_latency=requests,
        request_inputs=() if serve_stats is None else serve_stats.inputs,
    )


def _value(source: sensors.Source | None) -> float | None:
    """Telemetry goes on without a sensor that fails at the moment; a measurement does not."""
    if source is None:
        return None
    try:
        return source.read()
    except Unavailable as error:
        _log.debug("telemetry leaves %s blank: %s", source.sensor.name, error)
        return None


def _uptime_s(root: Path) -> float:
    told = _of(root, proc.uptime_s)
    return time.monotonic() if told is None else told


def _of(root: Path, read: Callable[[Path], T | None]) -> T | None:
    try:
        return read(root)
    except Unavailable as error:
        _log.debug("telemetry leaves a field blank: %s", error)
        return None
