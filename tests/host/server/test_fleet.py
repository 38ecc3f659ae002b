"""The pure fleet and rollouts: whatever happens, devices converge on what is wanted, and a restart loses nothing."""

from __future__ import annotations

import uuid

import msgspec
import pytest
from edgepress_host.fleet import rollout as rollouts
from edgepress_host.fleet.fleet import WANT_BYTES, Fleet
from edgepress_host.fleet.records import Changes, DeviceRecord, TrialRecord
from edgepress_host.fleet.rollout import Rollout, advance
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Blob, Manifest, TensorSpec, Wire, digest
from edgepress_protocol.measurement import Board, Device
from edgepress_protocol.messages import (
    Active,
    Deployment,
    DeploymentStatus,
    Failed,
    Presence,
    Report,
    Signed,
    State,
    Trial,
    Want,
    encode,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule


def payload(variant: str, chunks: int = 1) -> bytes:
    tensor = TensorSpec("x", "float32", (None, 4))
    wire = Wire("none", "0" * 64, chunks * 1024, 1024, (b"\0" * 32,) * chunks)
    return encode(Manifest(variant, "onnx", Blob("0" * 64, chunks * 1024, wire), (tensor,), (tensor,)))


PAYLOADS = {digest(one): one for one in (payload("one"), payload("two"), payload("three"))}
NAMES = st.sampled_from(["a", "b", "c"])
MANIFESTS = st.sampled_from(sorted(PAYLOADS))


def sign(payload: bytes) -> Signed:
    return Signed(payload, b"\0" * 64)


def state(name: str, generation: int = 0, **more: object) -> State:
    board = Board("kind", "model", "arch", "cpu", 1, 1, "os", "python")
    return State(f"session of {name}", Device(name, board, "0", (1, 1)), generation, **more)


class Converging(RuleBasedStateMachine):
    """Devices obey the highest generation that they have seen; the host may restart, or lose everything it knew."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet("f", manifests=PAYLOADS)
        self.kept = Changes()
        self.obeyed: dict[str, Want] = {}

    def take(self, changes: Changes) -> None:
        self.kept.devices |= changes.devices
        self.kept.trials |= changes.trials
        for device in changes.forgotten:
            del self.kept.devices[device]
        for device in changes.wants:
            self.publish(device)

    def publish(self, device: str) -> None:
        want = self.fleet.want(device, sign)
        before = self.obeyed.get(device)
        if before is None or want.generation > before.generation:
            self.obeyed[device] = want
        else:
            assert want == before, "another want under a generation that the device has seen"

    @rule(name=NAMES)
    def speak(self, name: str) -> None:
        seen = self.obeyed[name].generation if name in self.obeyed else 0
        self.take(self.fleet.on_state(name, state(name, seen), 0.0))

    @rule(name=NAMES, manifest=MANIFESTS)
    def try_out(self, name: str, manifest: str) -> None:
        if name in self.fleet.devices:
            self.take(self.fleet.add_trials([TrialRecord(Trial(uuid.uuid4().hex, manifest), name, 0.0)]))

    @rule(name=NAMES, manifest=MANIFESTS)
    def deploy(self, name: str, manifest: str) -> None:
        if name in self.fleet.devices:
            self.take(self.fleet.deploy(name, Deployment(uuid.uuid4().hex, manifest)))

    @rule(name=NAMES)
    def report(self, name: str) -> None:
        for trial in self.obeyed[name].trials if name in self.obeyed and name in self.fleet.devices else ():
            report = Report(trial.id, trial.manifest, Failed("crash", ""))
            self.take(self.fleet.on_report(name, report, 0.0))
            assert self.fleet.on_report(name, report, 0.0) == Changes(), "a report that comes again changes nothing"

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.fleet.trials:
            self.take(self.fleet.cancel(data.draw(st.sampled_from(sorted(self.fleet.trials))), 0.0))

    @rule(name=NAMES)
    def forget(self, name: str) -> None:
        if name in self.fleet.devices:
            self.take(self.fleet.forget(name, 0.0))

    @rule()
    def restart(self) -> None:
        self.fleet = Fleet("f", self.kept.devices.values(), self.kept.trials.values(), PAYLOADS)
        for name in self.fleet.devices:
            self.publish(name)

    @rule()
    def lose_everything(self) -> None:
        self.kept = Changes()
        self.restart()

    @invariant()
    def what_is_kept_is_what_is(self) -> None:
        assert self.kept.devices == self.fleet.devices
        assert {key: one for key, one in self.kept.trials.items() if one.ended_unix_s is None} == self.fleet.trials

    @invariant()
    def devices_obey_what_is_wanted(self) -> None:
        for name, record in self.fleet.devices.items():
            obeyed = self.obeyed[name]
            assert obeyed.generation == record.generation
            assert obeyed.deployment == record.deployment
            open_trials = {trial.trial.id for trial in self.fleet.trials.values() if trial.device == name}
            assert {trial.id for trial in obeyed.trials} == open_trials
            assert {digest(signed.payload) for signed in obeyed.manifests} >= {
                trial.manifest for trial in obeyed.trials
            }


TestConverging = Converging.TestCase
TestConverging.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_want_never_outgrows_a_message():
    large = [payload(f"v{n}", chunks=WANT_BYTES // 3 // 34) for n in range(5)]
    payloads = {digest(one): one for one in large}
    fleet = Fleet("f", manifests=payloads)
    fleet.on_state("a", state("a"), 0.0)
    ids = [uuid.uuid4().hex for _ in payloads]
    fleet.add_trials(TrialRecord(Trial(i, m), "a", 0.0) for i, m in zip(ids, payloads, strict=True))
    first = fleet.want("a", sign)
    assert [trial.id for trial in first.trials] == ids[:2]
    fleet.on_report("a", Report(ids[0], first.trials[0].manifest, Failed("crash", "")), 0.0)
    assert [trial.id for trial in fleet.want("a", sign).trials] == ids[1:3]


def test_a_host_with_an_old_copy_of_its_records_resumes_above_what_a_device_saw():
    fleet = Fleet("f", [DeviceRecord(state("a", 3), 3)])
    changes = fleet.on_state("a", state("a", 9), 0.0)
    assert (changes.wants, fleet.want("a", sign).generation) == ({"a"}, 10)
    assert changes.devices["a"].generation == 10
    assert fleet.on_state("a", state("a", 10), 0.0).wants == set()


def test_what_a_device_runs_stays_wanted_where_its_manifest_is_known():
    manifest = next(iter(PAYLOADS))
    fleet = Fleet("f", manifests=PAYLOADS)
    fleet.on_state("a", state("a", active=Active("1" * 32, manifest, "v")), 0.0)
    fleet.on_state("b", state("b", active=Active("1" * 32, "9" * 64, "v")), 0.0)
    assert fleet.want("a", sign).deployment == Deployment("1" * 32, manifest)
    assert fleet.want("b", sign).deployment is None


def test_the_will_of_an_earlier_session_changes_nothing():
    fleet = Fleet("f")
    fleet.on_state("a", msgspec.structs.replace(state("a"), session="second"), 0.0)
    fleet.on_presence("a", Presence("second", True), 0.0)
    fleet.on_presence("a", Presence("first", False), 0.0)
    assert fleet.devices["a"].online
    fleet.on_presence("a", Presence("second", False), 0.0)
    assert not fleet.devices["a"].online


@given(st.permutations(["up", "state"]), st.booleans())
def test_presence_and_inventory_may_come_in_any_order(order, online):
    fleet = Fleet("f")
    for leaf in order:
        if leaf == "up":
            fleet.on_presence("a", Presence("session of a", online), 0.0)
        else:
            fleet.on_state("a", state("a"), 0.0)
    assert fleet.devices["a"].online is online


def test_what_cannot_be_is_rejected():
    fleet = Fleet("f")
    for hostile in (state("b"), state("a", (1 << 63) - 1)):
        with pytest.raises(Rejected):
            fleet.on_state("a", hostile, 0.0)
    assert fleet.devices == {}


class Rolling(RuleBasedStateMachine):
    """Devices that obey, fail, or take their time: a rollout ends well everywhere, or is undone everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.before = {name: Deployment(uuid.uuid4().hex, "0" * 64) for name in "abcd"}
        self.devices = {
            name: DeviceRecord(self.running(name, deployment), 1, deployment=deployment)
            for name, deployment in self.before.items()
        }
        self.rollout = Rollout(uuid.uuid4().hex, "1" * 64, tuple("abcd"), 2, 10.0, 0.0)

    @staticmethod
    def running(name: str, deployment: Deployment) -> State:
        active = Active(deployment.id, deployment.manifest, "v")
        return state(name, active=active, deployment=DeploymentStatus(deployment.id, "active"))

    @rule(dt=st.floats(0, 6))
    def go_on(self, dt: float) -> None:
        self.now += dt
        step = advance(self.rollout, self.devices, self.now)
        assert set(step.deploy) <= set(step.rollout.previous), "what is switched can be set back"
        self.rollout = step.rollout
        for name, deployment in step.deploy.items():
            self.devices[name] = msgspec.structs.replace(self.devices[name], deployment=deployment)

    @rule(name=st.sampled_from("abcd"))
    def obey(self, name: str) -> None:
        wanted = self.devices[name].deployment
        self.devices[name] = msgspec.structs.replace(self.devices[name], state=self.running(name, wanted))

    @rule(name=st.sampled_from("abcd"))
    def fail(self, name: str) -> None:
        record = self.devices[name]
        if record.deployment.id == self.rollout.id:
            status = DeploymentStatus(record.deployment.id, "failed", "crash")
            failed = msgspec.structs.replace(record.state, active=None, deployment=status)
            self.devices[name] = msgspec.structs.replace(record, state=failed)

    @invariant()
    def the_rest_waits_for_the_canary(self) -> None:
        if self.rollout.phase in {"canary", "holding"}:
            assert [self.devices[name].deployment for name in "cd"] == [self.before[name] for name in "cd"]

    @invariant()
    def the_end_is_the_same_everywhere(self) -> None:
        wanted = {name: record.deployment for name, record in self.devices.items()}
        if self.rollout.phase == "failed":
            assert wanted == self.before
            assert self.rollout.reason.endswith("crash")
        if self.rollout.phase == "done":
            assert {deployment.id for deployment in wanted.values()} == {self.rollout.id}


TestRolling = Rolling.TestCase
TestRolling.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_canary_is_watched_for_the_whole_hold():
    devices = {name: DeviceRecord(state(name), 1) for name in "ab"}
    step = advance(Rollout("0" * 32, "1" * 64, ("a", "b"), 1, 10.0, 0.0), devices, 0.0)
    assert list(step.deploy) == ["a"]
    active = state("a", active=Active("0" * 32, "1" * 64, "v"))
    devices["a"] = DeviceRecord(active, 1, deployment=step.deploy["a"])
    step = advance(step.rollout, devices, 5.0)
    assert (step.rollout.phase, step.wake_at_unix_s) == ("holding", 15.0)
    assert advance(step.rollout, devices, 14.9).deploy == {}
    assert list(advance(step.rollout, devices, 15.0).deploy) == ["b"]
    del devices["a"]
    assert advance(step.rollout, devices, 6.0).rollout.reason == "a was removed"


def test_a_rollout_without_canary_goes_everywhere_at_once():
    devices = {name: DeviceRecord(state(name), 1) for name in "ab"}
    step = advance(Rollout("0" * 32, "1" * 64, ("a", "b"), 0, 10.0, 0.0), devices, 0.0)
    assert (step.rollout.phase, list(step.deploy)) == ("rest", ["a", "b"])
    assert rollouts.fail(step.rollout, "enough").deploy == {"a": None, "b": None}
