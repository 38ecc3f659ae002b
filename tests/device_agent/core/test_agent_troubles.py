"""The daemon in trouble: killed, lied to, out of disk, with rotten files and without a broker."""

import asyncio
from collections import Counter

import msgspec
import pytest
from edgepress_protocol.manifest import digest
from edgepress_protocol.messages import Config, Failed, Measured
from edgepress_protocol.signing import PrivateKey

pytestmark = pytest.mark.timeout(120)


def test_a_damaged_active_model_falls_back_says_so_and_heals(scene):
    pytest.importorskip("onnxruntime")

    async def story():
        first, second = scene.model(seed=1, padding_bytes=500), scene.model(seed=2, padding_bytes=500)
        async with scene.host() as host:
            scene.agent.start()
            manifests = host.offer(first, second)
            for number, model in enumerate((first, second), 1):
                await host.want(deployment=scene.deployment(model, number), manifests=manifests)
                wanted = scene.deployment(model, number).id
                await host.until(
                    lambda w=wanted: (
                        host.states and (s := host.states[-1].deployment) and (s.deployment, s.phase) == (w, "active")
                    )
                )
            scene.agent.kill()
            path = scene.agent.state_dir / "slots" / second.id / "model"
            with path.open("r+b") as stream:
                stream.write(b"rotten")
            heard = len(host.states)
            scene.agent.start()
            await host.until(lambda: len(host.states) > heard)
            assert host.states[heard].active.manifest == first.id
            assert "the slot of tiny-2 is given up" in host.states[heard].refused
            # Its blob was the same file: it is found to be damaged too, and only that one is fetched again.
            await host.until(lambda: host.states[-1].active.manifest == second.id and not host.states[-1].refused)
            wire = second.manifest.model.wire.sha256
            assert {w for (w, _), count in host.sent.items() if count > 1} == {wire}

    asyncio.run(story())


def test_a_file_that_rots_after_its_transfer_is_neither_measured_nor_activated_but_fetched_again(scene):
    pytest.importorskip("onnxruntime")

    async def story():
        model = scene.model(padding_bytes=5000)
        wire, path = model.manifest.model.wire.sha256, scene.agent.state_dir / "blobs" / model.manifest.model.sha256
        async with scene.host() as host:
            scene.agent.start()
            manifests = host.offer(model)
            await host.want(trials=(scene.trial(model, 1),), manifests=manifests)
            await host.until(lambda: len(host.reports) == 1)
            for wish in ({"trials": (scene.trial(model, 2),)}, {"deployment": scene.deployment(model)}):
                with path.open("r+b") as stream:  # in a comment of the file: it runs, and computes what it did
                    stream.seek(-100, 2)
                    stream.write(b"rotten")
                host.sent.clear()
                await host.want(manifests=manifests, **wish)
                await host.until(
                    lambda: (
                        host.reports[-1].trial == scene.trial(model, 2).id
                        if "trials" in wish  # noqa: B023 - called in this turn of the loop alone
                        else host.states[-1].active
                    )
                )
                assert {w for w, _ in host.sent} == {wire}
            assert isinstance(host.reports[-1].outcome, Measured), host.reports[-1]
            slot = scene.agent.state_dir / "slots" / model.id / "model"
            assert digest(slot.read_bytes()) == model.manifest.model.sha256

    asyncio.run(story())


def test_killed_in_mid_transfer_it_resumes_and_never_fetches_again_what_it_had(scene):
    async def story():
        model = scene.model(400_000)
        async with scene.host() as host:
            host.budget = 60
            scene.agent.start()
            manifests = host.offer(model)
            await host.want(trials=(scene.trial(model),), manifests=manifests, config=Config(window_chunks=4))
            big = model.manifest.model.wire
            asked = len(big.chunks)
            assert asked > 80

            def missing():
                needs = [need for need in host.needs if need.wire == big.sha256]
                return sum(byte.bit_count() for byte in needs[-1].missing) if needs else asked

            had = host.budget - 4
            await host.until(lambda: asked - missing() >= had)
            scene.agent.kill()
            journal = (scene.agent.state_dir / "partial" / f"{big.sha256}.journal").read_bytes()
            here = {index for index, mark in enumerate(journal) if mark}
            assert len(here) >= had
            host.budget = None
            scene.agent.start()
            await host.until(lambda: host.reports)
            assert f"resuming with {len(here)} chunks here" in scene.agent.said()
            assert not [
                index for (wire, index), n in host.sent.items() if wire == big.sha256 and n > 1 and index in here
            ]

    asyncio.run(story())


def test_an_altered_chunk_is_refused_and_repaired(scene):
    async def story():
        model = scene.model(60_000)
        async with scene.host() as host:
            altered = []

            def alter(index, chunk):
                if index == 3 and not altered:
                    altered.append(index)
                    return bytes([chunk[0] ^ 1]) + chunk[1:]
                return chunk

            host.alter = alter
            scene.agent.start()
            await host.want(trials=(scene.trial(model),), manifests=host.offer(model))
            await host.until(lambda: host.reports)
            assert altered
            assert "dropped a chunk (1 so far): chunk 3 was altered" in scene.agent.said()
            wire = model.manifest.model.wire.sha256
            assert {index: n for (w, index), n in host.sent.items() if w == wire and n > 1} == {3: 2}

    asyncio.run(story())


def test_a_broker_killed_and_restarted_empty_is_survived(scene):
    async def story():
        model = scene.model(200_000)
        async with scene.host() as host:
            host.budget = 10
            scene.agent.start()
            await host.until(lambda: host.states)
            await host.want(trials=(scene.trial(model),), manifests=host.offer(model))
            await host.until(lambda: host.budget == 0)
            want = host.last_want
            sent = Counter(host.sent)
            scene.broker.kill()
        scene.broker.start()
        async with scene.host() as host:
            host.offer(model)
            host.sent.update(sent)
            await host.say_online(session="s2")
            # The agent says everything again of its own accord; the host publishes its want again.
            await host.until(lambda: host.states and host.presence and host.presence[-1].online)
            await host.publish_want("pi", want)
            await host.until(lambda: host.reports)
            # Only what the broker may have lost on its way was sent twice.
            assert sum(count > 1 for count in host.sent.values()) <= 10

    asyncio.run(story())


def test_a_want_of_another_key_is_refused_in_one_line(scene):
    async def story():
        model = scene.model()
        async with scene.host() as host:
            scene.agent.start()
            await host.want(
                key=PrivateKey.generate("stranger"), trials=(scene.trial(model),), manifests=host.offer(model)
            )
            await host.until(lambda: host.states and host.states[-1].refused)
            refused = host.states[-1].refused
            assert refused == "want is not signed by the trusted key 'test-host'"
            assert host.states[-1].generation == 0
            assert not host.needs
            # The right key is obeyed, and the refusal is over.
            await host.want(trials=(), manifests=())
            await host.until(lambda: host.states[-1].generation == 2 and not host.states[-1].refused)
        assert scene.agent.said().count("not signed by the trusted key") == 1

    asyncio.run(story())


def test_a_manifest_of_another_key_ends_its_trial_alone(scene):
    async def story():
        good, forged = scene.model(seed=1), scene.model(seed=2, padding_bytes=10)
        forged.sign(PrivateKey.generate("stranger"))
        async with scene.host() as host:
            scene.agent.start()
            manifests = host.offer(good, forged)
            await host.want(trials=(scene.trial(forged, 1), scene.trial(good, 2)), manifests=manifests)
            await host.until(lambda: len(host.reports) >= 2)
            outcomes = {int(report.trial, 16): report.outcome for report in host.reports}
            assert isinstance(outcomes[1], Failed)
            assert outcomes[1].kind == "rejected"
            assert "manifest is not signed by the trusted key" in outcomes[1].detail
            assert outcomes[2] is not None
            assert not any(wire == forged.manifest.model.wire.sha256 for wire, _ in host.sent)

    asyncio.run(story())


def test_the_longest_reason_still_fits_into_what_the_host_reads(scene):
    async def story():
        model = scene.model()
        model.manifest = msgspec.structs.replace(model.manifest, needs="n" * 4096)
        model.sign(scene.key)
        async with scene.host() as host:
            scene.agent.start()
            manifests = host.offer(model)
            await host.want(trials=(scene.trial(model),), deployment=scene.deployment(model), manifests=manifests)
            await host.until(lambda: host.reports)
            assert host.reports[0].outcome.kind == "unsupported"
            await host.until(lambda: (s := host.states[-1].deployment) and s.phase == "failed")
            # What was remembered of it can be read again too: an older want is still an older one.
            scene.agent.stop()
            heard = len(host.states)
            scene.agent.start()
            await host.until(lambda: len(host.states) > heard)
            assert host.states[heard].generation == 1
        assert "damaged" not in scene.agent.said()

    asyncio.run(story())


def test_a_host_of_another_protocol_version_is_refused_in_one_line(scene):
    async def story():
        async with scene.host() as host:
            await host.say_online(speaks=(7, 9))
            scene.agent.start()
            await host.until(lambda: host.states and host.states[-1].refused)
            assert "no common protocol version" in host.states[-1].refused
            await host.want(protocol=7)
            line = "this side speaks 1 to 2, the other 7; upgrade edgepress on this side"
            await host.until(lambda: line in host.states[-1].refused)
            assert host.states[-1].generation == 0

    asyncio.run(story())


def test_disk_full_is_said_in_one_line_and_is_recovered_from(scene):
    pytest.importorskip("onnxruntime")

    async def story():
        big, small = scene.model(1_500_000, seed=1, chunk_bytes=65536), scene.model(seed=2)
        async with scene.host() as host:
            scene.agent.start()
            manifests = host.offer(big, small)
            tight = Config(store_quota_bytes=1 << 20)
            await host.want(trials=(scene.trial(big, 1), scene.trial(small, 2)), manifests=manifests, config=tight)
            await host.until(lambda: len(host.reports) >= 2)
            outcomes = {int(report.trial, 16): report.outcome for report in host.reports}
            assert outcomes[1].kind == "error"
            assert outcomes[1].detail.startswith("disk full: ")
            assert isinstance(outcomes[2], Measured), outcomes[2]
            await host.want(deployment=scene.deployment(big, 1), manifests=manifests, config=tight)
            await host.until(lambda: (s := host.states[-1].deployment) and s.phase == "failed")
            assert host.states[-1].deployment.reason.startswith("disk full: ")
            await host.want(deployment=scene.deployment(big, 2), manifests=manifests)
            await host.until(lambda: (s := host.states[-1].deployment) and s.phase == "active")

    asyncio.run(story())


def test_a_trial_that_takes_the_agent_down_three_times_is_given_up(scene):
    """A weak power supply resets the board whenever a model loads it; SIGKILL stands for that."""
    pytest.importorskip("onnxruntime")

    async def story():
        model = scene.model()
        long = msgspec.structs.replace(
            scene.trial(model), options=msgspec.structs.replace(scene.trial(model).options, window_s=60.0)
        )
        async with scene.host() as host:
            await host.want(trials=(long,), manifests=host.offer(model))
            for _ in range(3):
                host.progress.clear()
                scene.agent.start()
                await host.until(lambda: any("timing" in said.detail for said in host.progress))
                # Another wish does not end the attempt that is under way, be it the last.
                await host.want(trials=(long,), manifests=host.offer(model))
                await host.until(lambda: host.states[-1].generation == host.generation)
                assert not host.reports
                scene.agent.kill()
            scene.agent.start()
            await host.until(lambda: host.reports)
            assert host.reports[-1].outcome.kind == "crash"
            assert "went down 3 times during this trial" in host.reports[-1].outcome.detail
            # A stop on purpose is not counted.
            again = msgspec.structs.replace(long, id="5" * 32)
            await host.want(trials=(again,), manifests=host.offer(model))
            for _ in range(4):
                await host.until(lambda: any("timing" in said.detail for said in host.progress))
                scene.agent.stop()
                host.progress.clear()
                scene.agent.start()
            await host.until(lambda: any("timing" in said.detail for said in host.progress))

    asyncio.run(story())
