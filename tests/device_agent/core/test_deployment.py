"""The life of deployments: a table, and the promise that the current slot always holds a verified, complete model."""

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from edgepress_agent import deployment as life
from edgepress_agent.deployment import Deploying, Event
from edgepress_agent.state.files import Files
from edgepress_agent.state.slots import Pair, Slots
from edgepress_protocol.errors import Unavailable
from edgepress_protocol.manifest import Manifest, TensorSpec, digest
from edgepress_protocol.messages import Active, Deployment, encode
from edgepress_protocol.signing import PrivateKey
from edgepress_protocol.transfer import describe
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

KEY = PrivateKey.generate("life")
TENSOR = (TensorSpec("x", "float32", (None, 2)),)
MODELS = range(4)


def wish(number: int, manifest: str = "a" * 64) -> Deployment:
    return Deployment(f"{number:032x}", manifest)


def run(now: Deploying, *kinds: str) -> tuple[Deploying, list[str]]:
    actions = []
    for kind in kinds:
        assert now.wanted is not None
        now, action = life.step(now, Event(now.wanted.id, kind, "why"))
        actions.append(action)
    return now, actions


def test_the_straight_way():
    now, action = life.want(Deploying(), wish(1), Pair(), None)
    assert action == "fetch"
    now, actions = run(now, "fetched", "passed", "switched", "served")
    assert actions == ["check", "switch", "serve", "settle"]
    assert now.status().phase == "active"


@pytest.mark.parametrize(
    ("way", "last"),
    [
        (["unfetchable"], "nothing"),
        (["fetched", "refused"], "nothing"),
        (["fetched", "passed", "unswitchable"], "nothing"),
        (["fetched", "passed", "switched", "unserved"], "undo"),
    ],
)
def test_every_failure_is_final_and_says_why(way, last):
    now, _ = life.want(Deploying(), wish(1), Pair(), None)
    now, actions = run(now, *way)
    assert actions[-1] == last
    assert (now.status().phase, now.status().reason) == ("failed", "why")
    for kind in ("fetched", "passed", "switched", "served"):
        assert life.step(now, Event(now.wanted.id, kind)) == (now, "nothing")
    assert life.want(now, wish(1), Pair(), "why") == (now, "nothing")
    assert life.want(Deploying(), wish(1), Pair(), "why")[0].status().reason == "why"


def test_back_to_the_previous_without_fetching_unless_it_was_damaged():
    current, previous = Active("1" * 32, "a" * 64, "a"), Active("2" * 32, "b" * 64, "b")
    now, action = life.want(Deploying(), wish(3, "b" * 64), Pair(current, previous), None)
    assert action == "verify"
    assert run(now, "passed", "switched", "served")[1] == ["switch", "serve", "settle"]
    assert run(now, "refused")[1] == ["fetch"]


def test_what_is_active_already_only_changes_its_name():
    current = Active("1" * 32, "a" * 64, "a")
    assert life.want(Deploying(), Deployment("1" * 32, "a" * 64), Pair(current), None)[1] == "nothing"
    now, action = life.want(Deploying(), wish(9), Pair(current), None)
    assert (now.phase, action) == ("active", "relabel")


def test_a_new_wish_takes_over_except_while_a_model_starts():
    now, _ = life.want(Deploying(), wish(1), Pair(), None)
    later, action = life.want(now, wish(2, "b" * 64), Pair(), None)
    assert (later.wanted, action) == (wish(2, "b" * 64), "fetch")
    assert life.step(later, Event(wish(1).id, "fetched")) == (later, "nothing")
    starting, _ = run(now, "fetched", "passed", "switched")
    assert life.want(starting, wish(2, "b" * 64), Pair(), None) == (starting, "nothing")


def test_a_wish_for_nothing_leaves_the_model_alone():
    now, _ = life.want(Deploying(), wish(1), Pair(), None)
    assert life.want(now, None, Pair(), None) == (Deploying(), "nothing")
    assert Deploying().status() is None


class Life(RuleBasedStateMachine):
    """Wishes, good and bad ends of every step, damaged files, restarts: in any order, against real slots."""

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.base = Path(self.folder.name)
        self.signed = {}
        for number in MODELS:
            data = random.Random(number).randbytes(300)
            (self.base / digest(data)).write_bytes(data)
            manifest = Manifest(f"v{number}", "onnx", describe(data)[0], TENSOR, TENSOR)
            signed = KEY.sign("manifest", encode(manifest))
            self.signed[digest(signed.payload)] = signed
        self.checked = set()
        self.count = 0
        self.once_active = False
        self.failed = {}
        self.pending = None
        self.now = Deploying()
        self.slots = Slots(self.base / "slots", KEY.public, Files())
        self.before = Pair()

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(model=st.sampled_from(MODELS), same=st.booleans())
    def wish(self, model, same):
        self.count += 0 if same and self.count else 1
        wanted = wish(self.count, list(self.signed)[model])
        if same and self.now.wanted is not None:
            wanted = self.now.wanted
        self.now, action = life.want(self.now, wanted, self.slots.pair, self.failed.get(wanted.id))
        self.act(action)

    @rule()
    def wish_for_nothing(self):
        self.now, action = life.want(self.now, None, self.slots.pair, None)
        self.act(action)

    @precondition(lambda self: self.pending)
    @rule(well=st.booleans())
    def the_pending_step_ends(self, well):
        good, bad = self.pending
        if good == "passed" and self.now.phase == "checking" and well:
            self.checked.add(self.now.wanted.manifest)
        self.happened(good if well else bad)

    @rule(number=st.integers(0, 5), kind=st.sampled_from(["fetched", "passed", "refused", "served", "unserved"]))
    def a_stale_event_arrives(self, number, kind):
        stale = wish(number)
        if self.now.wanted is None or stale.id != self.now.wanted.id:
            assert life.step(self.now, Event(stale.id, kind)) == (self.now, "nothing")

    @rule()
    def restart(self):
        self.slots = Slots(self.base / "slots", KEY.public, Files())
        assert self.slots.restore() == ""
        self.now, self.pending = Deploying(), None

    def happened(self, kind):
        self.now, action = life.step(self.now, Event(self.now.wanted.id, kind, "why"))
        if self.now.phase == "failed":
            self.failed[self.now.wanted.id] = "why"
        self.act(action)

    def act(self, action):
        self.pending = {
            "fetching": ("fetched", "unfetchable"),
            "checking": ("passed", "refused"),
            "returning": ("passed", "refused"),
            "starting": ("served", "unserved"),
        }.get(self.now.phase)
        if action == "switch":
            self.before = self.slots.pair
            wanted = self.now.wanted
            try:
                if self.now.phase == "checking":
                    self.slots.prepare(self.signed[wanted.manifest], lambda sha256: self.base / sha256)
                self.slots.switch(Active(wanted.id, wanted.manifest, "v"))
            except Unavailable:
                self.happened("unswitchable")
            else:
                self.once_active = True
                self.happened("switched")
        elif action == "relabel":
            self.slots.switch(replace_deployment(self.slots.pair.current, self.now.wanted.id))
        elif action == "settle":
            self.slots.settle()
        elif action == "undo":
            self.slots.put_back(self.before)
            self.slots.settle()
            self.once_active = self.before.current is not None

    @invariant()
    def the_current_slot_holds_a_verified_complete_model(self):
        if not hasattr(self, "slots"):
            return
        current = self.slots.pair.current
        if self.once_active:
            assert current is not None
        if current is not None:
            opened = self.slots.open(current.manifest)
            assert current.manifest in self.checked, "active without ever having passed its check"
            assert digest(opened.model.read_bytes()) == opened.manifest.model.sha256
        if self.slots.pair.previous is not None:
            assert self.slots.open(self.slots.pair.previous.manifest), "there is something to roll back to"
        if self.now.phase == "active":
            assert current.manifest == self.now.wanted.manifest


def replace_deployment(active: Active, deployment: str) -> Active:
    return Active(deployment, active.manifest, active.variant)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_phase_that_is_finer_than_the_hosts_is_told_as_checking():
    for phase in ("returning", "starting"):
        assert replace(Deploying(wish(1)), phase=phase).status().phase == "checking"
