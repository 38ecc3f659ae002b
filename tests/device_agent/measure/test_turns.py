"""Trials on one machine take turns, and their processes end with the agent."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import subprocess
import sys

import msgspec
import psutil
from edgepress_protocol.messages import Measured
from measure_lab import Lab, Variant, gone, wait_for


async def heard(lab: Lab) -> None:
    while not lab.phases:  # noqa: ASYNC110 - a test looks from outside, where no event is
        await asyncio.sleep(0.01)


def test_agents_on_one_machine_measure_in_turn(lab: Lab):
    variant = Variant("tiny")

    async def story():
        with lab.lock.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            trial = asyncio.create_task(lab.profile_async(lab.job(variant.manifest, variant.model)))
            await heard(lab)
            assert lab.phases == [("waiting", "another agent on this machine measures")]
        return await trial

    assert isinstance(asyncio.run(story()), Measured)


def test_a_trial_given_up_while_waiting_leaves_the_turn_to_others(lab: Lab):
    variant = Variant("tiny")

    async def story():
        with lab.lock.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            trial = asyncio.create_task(lab.profile_async(lab.job(variant.manifest, variant.model)))
            await heard(lab)
            trial.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await trial
        return await lab.profile_async(lab.job(variant.manifest, variant.model))

    assert isinstance(asyncio.run(story()), Measured)


def test_a_lock_that_cannot_be_had_is_one_line(lab: Lab):
    lab.lock.mkdir()
    outcome = lab.profile_variant("tiny")
    assert outcome.kind == "error"
    assert "Is a directory" in outcome.detail


def test_the_child_dies_with_the_agent(lab: Lab, misbehaving_runtime):
    manifest, model = lab.misbehaving("hang")
    program = (
        "import asyncio, sys, msgspec; from pathlib import Path; from edgepress_agent.measure import check;"
        "from edgepress_protocol.manifest import Manifest;"
        "m = msgspec.json.decode(sys.argv[1], type=Manifest); p = Path(sys.argv[2]);"
        "asyncio.run(check.golden(m, p, None, timeout_s=100, work_dir=p.parent / 'work'))"
    )
    agent = subprocess.Popen([sys.executable, "-c", program, msgspec.json.encode(manifest).decode(), str(model)])
    wait_for(lambda: psutil.Process(agent.pid).children(), seconds=100)
    (child,) = psutil.Process(agent.pid).children()
    agent.kill()
    agent.wait()
    wait_for(lambda: gone(child.pid))
