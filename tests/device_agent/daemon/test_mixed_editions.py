"""A real agent and a host of another edition, either way round: what both speak is enough to work by."""

import asyncio

import pytest
from edgepress_protocol.messages import Measured
from started import speaking

EARLIER, NOW = (1, 1), (1, 2)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("speaks", "host_speaks"), [(EARLIER, NOW), (NOW, EARLIER)])
def test_a_trial_and_a_deployment_go_through(scene, speaks, host_speaks, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("PYTHONPATH", speaking(tmp_path / "edition", speaks)["PYTHONPATH"])

    async def story():
        model = scene.model()
        async with scene.host() as host:
            await host.say_online(speaks=host_speaks)
            scene.agent.start()
            manifests = host.offer(model)
            # The highest version that both speak.
            await host.want(
                protocol=1, deployment=scene.deployment(model), trials=(scene.trial(model),), manifests=manifests
            )
            await host.until(lambda: host.reports and host.states[-1].active)
            assert isinstance(host.reports[-1].outcome, Measured), host.reports[-1]
            assert (host.states[-1].device.speaks, host.states[-1].refused) == (speaks, "")
            if speaks == EARLIER:
                await host.want(protocol=2, manifests=manifests)
                await host.until(lambda: "upgrade edgepress on this side" in host.states[-1].refused)
                assert host.states[-1].active, "a host that has gone too far takes nothing from it"

    asyncio.run(story())
