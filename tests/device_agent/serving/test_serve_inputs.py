"""What applications ask with: count, mean, spread, extremes and NaN of each input, cheaply, up to the telemetry."""

from __future__ import annotations

import asyncio
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from edgepress_agent.board import telemetry
from edgepress_agent.serving import looking
from edgepress_agent.serving.looking import Looker, statistics
from edgepress_agent.serving.serve import Server
from edgepress_protocol.manifest import Quantization, TensorSpec
from edgepress_protocol.messages import decode_to_host, encode
from edgepress_protocol.served import InputStats
from hypothesis import given
from hypothesis import strategies as st
from measure_lab import Variant, wait_for
from serve_lab import RIGHT, asked, children, in_version, post, serve

REALS = TensorSpec("x", "float32", (None, 4))
STEPS = TensorSpec("x", "int8", (None, 4), Quantization(0.5, -10))


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), min_size=1, max_size=5))
def test_merged_statistics_are_those_of_all_values(batches):
    merged = statistics(np.array(batches[0]), REALS)
    for batch in batches[1:]:
        merged = merged.merge(statistics(np.array(batch), REALS))
    values = np.concatenate([np.array(batch) for batch in batches])
    assert (merged.requests, merged.count) == (len(batches), values.size)
    assert (merged.min, merged.max) == (values.min(), values.max())
    assert merged.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
    assert merged.std == pytest.approx(values.std(), rel=1e-6, abs=1e-4)


@given(st.lists(st.floats(width=64), max_size=8), st.lists(st.floats(width=64), max_size=8))
def test_no_values_make_a_number_that_json_cannot_hold(first, second):
    seen = statistics(np.array(first), REALS).merge(statistics(np.array(second), REALS))
    assert all(math.isfinite(number) for number in (seen.mean, seen.std, seen.min, seen.max))
    assert seen.count + seen.nan_count + seen.infinite_count == len(first) + len(second)


def test_nan_and_infinities_are_counted_apart():
    seen = statistics(np.array([1.0, 3.0, np.nan, np.inf, -np.inf], np.float32), REALS)
    assert seen == InputStats("x", 1, 2, 2.0, 1.0, 1.0, 3.0, nan_count=1, infinite_count=2)


def test_steps_and_reals_of_a_quantized_input_count_alike():
    steps = statistics(np.array([-10, -8, -6], np.int8), STEPS)
    reals = statistics(np.array([0.0, 1.0, 2.0], np.float32), STEPS)
    assert steps == reals


def test_it_looks_ten_times_a_second_and_a_hundredth_of_the_time_at_most(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(looking, "perf_counter", lambda: now_s)
    looker = Looker([REALS])
    array = np.ones((1, 4), np.float32)
    for step in range(1000):
        now_s = step / 1000
        looker.look([array])
    (seen,) = looker.take()
    assert seen.requests == 10
    assert looker.take() == ()

    def slowly(array, spec):
        nonlocal now_s
        now_s += 0.05
        return statistics(array, spec)

    monkeypatch.setattr(looking, "statistics", slowly)
    now_s = 10.0
    while now_s < 110.0:
        looker.look([array])
        now_s += 0.01
    (seen,) = looker.take()
    assert seen.requests == pytest.approx(100 / 5, abs=1)


def test_telemetry_tells_of_the_model_that_serves_now(tmp_path):
    """The first requests after a start are looked at, and after a swap begin anew; bad requests are not looked at."""
    variant = Variant("tiny")
    nan = {"name": "x", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}

    async def story(server: Server):
        assert told(server).request_inputs == ()
        assert (await asked(server, "POST", "/v2/models/active/infer", {}))[0] == 400
        assert (await asked(server, "POST", "/v2/models/active/infer", RIGHT))[0] == 200
        said = await looked_at(server, requests=2)
        assert said.request_inputs == (InputStats("x", 1, 16, 0.5, 0.0, 0.5, 0.5),)
        assert (said.requests, said.request_errors, said.request_latency.total) == (2, 1, 2)
        assert said.request_p50_ms == said.request_latency.percentile_ms(50)
        await server.swap(in_version(variant.manifest, "1" * 64), variant.model)
        assert told(server).request_inputs == ()
        # For a moment both processes answer.
        await asyncio.to_thread(wait_for, lambda: len(children() - before) == 1, 120)
        values = struct.pack("<16f", math.nan, math.inf, *[0.0, 1.0] * 7)
        assert (await asyncio.to_thread(post, server, {"inputs": [nan]}, values))[0] == 200
        said = await looked_at(server, requests=3)
        assert said.request_inputs == (InputStats("x", 1, 14, 0.5, 0.5, 0.0, 1.0, 1, 1),)
        assert (said.requests, said.request_latency.total) == (3, 1)

    before = children()
    serve(tmp_path, story)


async def looked_at(server: Server, requests: int):
    """The telemetry as soon as it tells of so many requests, and has looked at what the last one asked with."""
    while (said := told(server)).requests < requests or not said.request_inputs:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.01)
    return said


def told(server: Server):
    """The telemetry as the host reads it."""
    return decode_to_host(encode(telemetry.read(Path("/"), server.stats())))
