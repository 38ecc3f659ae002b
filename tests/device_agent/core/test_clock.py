"""Whether the clock is set is asked of the kernel, and said to the host."""

from __future__ import annotations

import asyncio
import ctypes

import pytest
from edgepress_agent import clock
from started import at_start


@pytest.mark.parametrize(("state", "synced"), [(0, True), (1, True), (5, False), (-1, None)])
def test_what_the_kernel_says(monkeypatch, state, synced):
    class Library:
        adjtimex = staticmethod(lambda _: state)

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library)
    assert clock.clock_synced() is synced


def test_a_library_that_does_not_know_says_nothing(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert clock.clock_synced() is None


@pytest.mark.parametrize("synced", [True, False])
def test_the_host_hears_of_it_and_the_agent_works_all_the_same(scene, tmp_path, monkeypatch, synced):
    pytest.importorskip("onnxruntime")
    told = f"import edgepress_agent.clock as c; c.clock_synced = lambda: {synced}"
    monkeypatch.setenv("PYTHONPATH", at_start(tmp_path / "start", told)["PYTHONPATH"])

    async def story():
        model = scene.model()
        async with scene.host() as host:
            scene.agent.start()
            await host.want(deployment=scene.deployment(model), manifests=host.offer(model))
            await host.until(lambda: host.states and host.states[-1].active)
            assert host.states[-1].clock_synced is synced
            scene.agent.stop()

    asyncio.run(story())
