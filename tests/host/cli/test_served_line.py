"""The line of `edgepress devices` about the model that serves."""

from __future__ import annotations

import msgspec
from edgepress_host.served import served
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.messages import Telemetry
from edgepress_protocol.served import InputStats

TOLD = Telemetry(
    12.5,
    requests=1204,
    request_errors=3,
    request_latency=Histogram.of([1_000_000, 1_000_000, 3_000_000]),
    request_inputs=(InputStats("x", 2, 32, 0.5, 0.25, -1.0, 1.5, nan_count=1), InputStats("y", 1, infinite_count=2)),
)


def test_requests_latency_and_inputs_are_told_in_one_line():
    said = served(TOLD)
    assert said.startswith("1,204 requests, 3 failed; p50 1.00 ms, p95 3.")
    assert said.endswith("; x 0.5 ± 0.25, -1 to 1.5, 1 NaN; y 2 infinite")


def test_an_agent_that_tells_less_is_shown_as_far_as_it_tells():
    assert served(msgspec.structs.replace(TOLD, request_latency=None, request_inputs=())) == "1,204 requests, 3 failed"


def test_nothing_is_said_where_nothing_was_asked():
    assert served(None) == ""
    assert served(Telemetry(12.5)) == ""
    assert served(Telemetry(12.5, requests=0, request_errors=0)) == ""
