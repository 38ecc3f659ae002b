"""The daemon against a real broker: connect, obey, fetch, measure, report, activate, serve, and stop."""

import asyncio
import json
import signal
import time

import msgspec
import pytest
from edgepress_protocol.messages import Config, Measured

pytestmark = pytest.mark.timeout(120)


def test_a_trial_is_fetched_measured_and_reported_until_the_host_drops_it(scene):
    pytest.importorskip("onnxruntime")

    async def story():
        model = scene.model(40_000)
        evaluation = model.evaluation()
        async with scene.host() as host:
            await host.say_online()
            scene.agent.start()
            await host.until(lambda: host.states)
            assert host.presence[-1].online
            assert host.states[-1].session == host.presence[-1].session
            manifests = host.offer(model)
            wanted = {"trials": (scene.trial(model, evaluation=evaluation),), "manifests": manifests}
            await host.want(**wanted)
            await host.until(lambda: host.reports)
            outcome = host.reports[-1].outcome
            assert isinstance(outcome, Measured), outcome
            assert outcome.measurement.accuracy.samples == 8
            assert outcome.measurement.energy is None
            assert {p.phase for p in host.progress} >= {"fetching", "queued", "measuring"}
            await host.until(lambda: host.states[-1].waiting_reports == 1)

            # Every want that still lists the trial brings the report again; one without it is the acknowledgement.
            await host.want(**wanted)
            await host.until(lambda: len(host.reports) == 2)
            assert host.reports[0] == host.reports[1]
            await host.want()
            await host.until(lambda: host.states[-1].waiting_reports == 0 and host.states[-1].generation == 3)
            assert max(host.sent.values()) == 1
        assert scene.agent.stop() == 0

    asyncio.run(story())


def test_deploy_switch_and_roll_back_without_fetching_again(scene):
    pytest.importorskip("onnxruntime")

    async def story():
        first, second = scene.model(seed=1, padding_bytes=500), scene.model(seed=2, padding_bytes=500)
        async with scene.host() as host:
            scene.agent.start()
            manifests = host.offer(first, second)

            async def deploy(model, number):
                await host.want(deployment=scene.deployment(model, number), manifests=manifests)
                wanted = scene.deployment(model, number).id
                await host.until(
                    lambda: (
                        host.states
                        and (s := host.states[-1].deployment)
                        and s.deployment == wanted
                        and s.phase in {"active", "failed"}
                    )
                )
                return host.states[-1]

            state = await deploy(first, 1)
            assert (state.active.manifest, state.previous) == (first.id, None)
            state = await deploy(second, 2)
            assert (state.active.manifest, state.previous.manifest) == (second.id, first.id)
            sent = host.sent.total()
            state = await deploy(first, 3)
            assert (state.active.manifest, state.previous.manifest) == (first.id, second.id)
            assert state.active.deployment == scene.deployment(first, 3).id
            assert host.sent.total() == sent

            # After a restart the active model is there before any host has spoken.
            scene.agent.kill()
            heard = len(host.states)
            scene.agent.start()
            await host.until(lambda: len(host.states) > heard)
            assert host.states[heard].active == state.active
            assert host.sent.total() == sent

    asyncio.run(story())


def test_a_model_that_fails_its_golden_vectors_never_becomes_active(scene):
    pytest.importorskip("onnxruntime")

    async def story():
        good = scene.model(seed=1)
        wrong = scene.model(seed=2, padding_bytes=100).with_wrong_golden(scene.key)
        async with scene.host() as host:
            scene.agent.start()
            manifests = host.offer(good, wrong)
            await host.want(deployment=scene.deployment(good, 1), manifests=manifests)
            await host.until(lambda: host.states and host.states[-1].active)
            await host.want(deployment=scene.deployment(wrong, 2), manifests=manifests)
            await host.until(lambda: (s := host.states[-1].deployment) and s.phase == "failed")
            assert host.states[-1].deployment.reason.startswith("golden: ")
            assert host.states[-1].active.manifest == good.id

            # A failure is final for its deployment, also after a restart.
            scene.agent.kill()
            heard = len(host.states)
            scene.agent.start()
            await host.until(lambda: len(host.states) > heard and host.states[-1].deployment)
            assert host.states[-1].deployment.phase == "failed"
            assert host.states[-1].active.manifest == good.id

    asyncio.run(story())


def test_two_agents_under_one_name_are_told_so(scene):
    async def story():
        other = type(scene.agent)(scene.folder / "other", scene.broker, scene.trust)
        other.log.parent.mkdir()
        async with scene.host() as host:
            scene.agent.start()
            other.start()
            try:
                await host.until(
                    lambda: all("does another agent run as 'pi'?" in one.said() for one in (scene.agent, other))
                )
            finally:
                other.kill()

    asyncio.run(story())


def test_a_stale_want_is_ignored_and_an_equal_one_is_harmless(scene):
    async def story():
        model = scene.model()
        async with scene.host() as host:
            scene.agent.start()
            await host.want(generation=5)
            await host.until(lambda: host.states and host.states[-1].generation == 5)
            stale = {"trials": (scene.trial(model),), "manifests": host.offer(model)}
            await host.want(generation=4, **stale)
            await host.want(generation=5)
            await host.want(generation=6)
            await host.until(lambda: host.states[-1].generation == 6)
            assert not host.needs
            assert "ignored a want of generation 4: 5 was seen" in scene.agent.said()
            # The highest generation outlives the process.
            scene.agent.kill()
            heard = len(host.states)
            scene.agent.start()
            await host.until(lambda: len(host.states) > heard)
            assert host.states[-1].generation == 6

    asyncio.run(story())


def test_a_cancelled_trial_stops_and_is_not_reported(scene):
    pytest.importorskip("onnxruntime")

    async def story():
        model = scene.model()
        long = msgspec.structs.replace(
            scene.trial(model), options=msgspec.structs.replace(scene.trial(model).options, window_s=60.0)
        )
        async with scene.host() as host:
            scene.agent.start()
            await host.want(trials=(long,), manifests=host.offer(model))
            await host.until(lambda: any("timing" in said.detail for said in host.progress))
            await host.want(trials=(scene.trial(model, 2),), manifests=host.offer(model))
            await host.until(lambda: host.reports)
            assert [int(report.trial, 16) for report in host.reports] == [2]

    asyncio.run(story())


def test_sigterm_says_goodbye_within_two_seconds_and_a_kill_leaves_the_will(scene):
    async def story():
        async with scene.host() as host:
            for how in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
                host.presence.clear()
                scene.agent.start()
                await host.until(lambda: host.presence and host.presence[-1].online)
                session = host.presence[-1].session
                began = time.monotonic()
                status = await asyncio.to_thread(scene.agent.stop, how)
                assert time.monotonic() - began < 2
                assert status == (0 if how is not signal.SIGKILL else -signal.SIGKILL)
                await host.until(lambda: not host.presence[-1].online)
                assert host.presence[-1].session == session

    asyncio.run(story())


def test_telemetry_comes_at_the_hosts_interval(scene):
    async def story():
        async with scene.host() as host:
            scene.agent.start()
            await host.want(config=Config(telemetry_s=0.2))
            await host.until(lambda: len(host.telemetry) >= 4)
            assert host.telemetry[-1].uptime_s > 0
            assert host.telemetry[-1].power_mw is None
            assert scene.agent.stop() == 0

    asyncio.run(story())


def test_the_active_model_is_served_and_trials_wait_while_it_is_busy(scene):
    pytest.importorskip("onnxruntime")

    async def story():
        first, second = scene.model(seed=1), scene.model(seed=2, padding_bytes=60)
        socket_path = scene.folder / "s"
        async with scene.host() as host:
            scene.agent.start("--serve", f"unix:{socket_path}")
            manifests = host.offer(first, second)
            for number, model in enumerate((first, second), 1):
                await host.want(deployment=scene.deployment(model, number), manifests=manifests)
                await host.until(lambda m=model: host.states and (a := host.states[-1].active) and a.manifest == m.id)
                await host.until(lambda: host.states[-1].deployment.phase == "active")
                assert await ready(socket_path, model.manifest.variant)
            answered = asyncio.Event()
            asking = asyncio.create_task(ask_on_and_on(socket_path, second.manifest.variant, answered))
            await answered.wait()
            busy = {
                "deployment": scene.deployment(second, 2),
                "manifests": manifests,
                "config": Config(telemetry_s=0.2),
            }
            await host.want(**busy)
            await host.until(lambda: host.telemetry and host.telemetry[-1].request_inputs)
            told = host.telemetry[-1]
            assert told.requests >= told.request_latency.total >= 1
            assert (told.request_errors, told.request_inputs[0].name, told.request_inputs[0].mean) == (0, "x", 0.0)
            assert told.request_p50_ms > 0
            await host.want(**busy, trials=(scene.trial(first),))
            await host.until(lambda: any(said.phase == "waiting" for said in host.progress))
            assert not host.reports
            asking.cancel()
            await host.until(lambda: host.reports)
            assert isinstance(host.reports[-1].outcome, Measured)
            # After a restart it serves before any host is there.
            scene.agent.kill()
            scene.broker.kill()
            scene.agent.start("--serve", f"unix:{socket_path}")
            async for _ in attempts():
                if socket_path.exists() and await ready(socket_path, second.manifest.variant):
                    break
        scene.broker.start()

    asyncio.run(story())


def test_a_quota_evicts_what_is_not_in_use_and_never_the_active_model(scene):
    """Of one MiB: the active model and one more of these fit, and a third takes the place of the second."""
    pytest.importorskip("onnxruntime")

    async def story():
        active, second, third = (scene.model(280_000, seed=seed) for seed in (1, 2, 3))
        blobs = scene.agent.state_dir / "blobs"
        kept = {"config": Config(store_quota_bytes=1 << 20), "deployment": scene.deployment(active)}
        async with scene.host() as host:
            scene.agent.start()
            kept["manifests"] = host.offer(active, second, third)
            await host.want(**kept)
            await host.until(lambda: host.states and host.states[-1].active)
            for number, model in enumerate((second, third), 1):
                await host.want(**kept, trials=(scene.trial(model, number),))
                await host.until(lambda m=model: any(report.manifest == m.id for report in host.reports))
                assert isinstance(host.reports[-1].outcome, Measured), host.reports[-1]
            there = {path.name for path in blobs.iterdir()}
            models = [model.manifest.model.sha256 for model in (active, second, third)]
            assert [sha256 in there for sha256 in models] == [True, False, True]
            assert sum(path.stat().st_size for path in blobs.iterdir()) <= 1 << 20
            scene.agent.stop()

    asyncio.run(story())


async def ready(path, model):
    return (await request(path, f"GET /v2/models/{model} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).startswith(
        b"HTTP/1.1 200"
    )


async def ask_on_and_on(path, model, answered):
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [0.0] * 16}]})
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    while True:
        answer = await request(path, head + body)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        answered.set()
        await asyncio.sleep(0.05)


async def request(path, text):
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(text.encode())
        answer = await asyncio.wait_for(reader.read(), 10)
    except OSError:
        return b""
    writer.close()
    return answer


async def attempts():
    for _ in range(300):
        yield
        await asyncio.sleep(0.1)
    raise AssertionError("it did not come about within 30 s")
