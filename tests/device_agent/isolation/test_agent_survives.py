"""Models that crash, hang, eat, flood and lie are outcomes of trials; the agent is the same process afterwards."""

from __future__ import annotations

import asyncio

import msgspec
import psutil
import pytest
from edgepress_protocol.manifest import Manifest, TensorSpec, digest
from edgepress_protocol.messages import Failed, Measured, encode

KINDS = {"crash": "crash", "abort": "memory", "eat": "memory", "hang": "timeout", "flood": "crash", "raise_": "error"}


def misbehaving(scene, behaviour: str):
    """A model of the test's own runtime, signed and offered as any other."""
    model = scene.model()
    ends = (TensorSpec("x", "float32", (None, 1)),), (TensorSpec("y", "float32", (None, 1)),)
    model.manifest = Manifest(behaviour, "misbehaving", model.add(behaviour.encode()), *ends)
    model.sign(scene.key)
    return model


def test_the_agent_outlives_every_model(scene, misbehaving_runtime):
    pytest.importorskip("onnxruntime")

    async def story():
        good = scene.model()
        models = {behaviour: misbehaving(scene, behaviour) for behaviour in KINDS}
        async with scene.host() as host:
            scene.agent.start()
            await host.until(lambda: host.states)
            agent = psutil.Process(scene.agent.process.pid)
            memory_bytes = agent.memory_info().rss
            trials = [
                msgspec.structs.replace(trial, options=msgspec.structs.replace(trial.options, timeout_s=8.0))
                for trial in (scene.trial(model, number) for number, model in enumerate([*models.values(), good], 1))
            ]
            await host.want(trials=tuple(trials), manifests=host.offer(*models.values(), good))
            await host.until(lambda: len({report.trial for report in host.reports}) == len(trials), wait_s=120)
            assert agent.is_running()
            assert agent.pid == scene.agent.process.pid
            assert scene.agent.process.poll() is None
            assert agent.children(recursive=True) == []
            assert agent.memory_info().rss < memory_bytes + 16_000_000
            return {report.manifest: report.outcome for report in host.reports}, models, good

    outcomes, models, good = asyncio.run(story())
    found = {behaviour: outcomes[digest(encode(model.manifest))] for behaviour, model in models.items()}
    assert {name: each.kind for name, each in found.items() if isinstance(each, Failed)} == KINDS
    assert isinstance(outcomes[good.id], Measured)
