"""Who is sent what, when: everything arrives, nothing is published twice for progress, no window is overrun."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import pytest
from edgepress_host.fleet.distribute import Distributor, Send
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Wire
from edgepress_protocol.messages import Need
from edgepress_protocol.transfer import to_bitmap
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule


def wire_of(name: str, chunks: int) -> Wire:
    return Wire("none", hashlib.sha256(name.encode()).hexdigest(), 1024 * chunks, 1024, (b"\0" * 32,) * chunks)


def need(wire: Wire, missing, window: int = 4, *, stalled: bool = False) -> Need:
    return Need(wire.sha256, wire.size_bytes, to_bitmap(missing, len(wire.chunks)), window, stalled)


class Receiver:
    """A device: takes chunks, and says what it lacks after every half window and at the end."""

    def __init__(self, name: str, window: int) -> None:
        self.name, self.window = name, window
        self.missing: dict[str, set[int]] = {}
        self.wires: dict[str, Wire] = {}
        self.fresh: Counter[str] = Counter()

    def want(self, wire: Wire) -> Need:
        self.wires[wire.sha256] = wire
        self.missing[wire.sha256] = set(range(len(wire.chunks)))
        return need(wire, self.missing[wire.sha256], self.window)

    def take(self, send: Send) -> Need | None:
        missing = self.missing.get(send.wire.sha256, set())
        if send.index not in missing:
            return None
        missing.remove(send.index)
        self.fresh[send.wire.sha256] += 1
        if missing and self.fresh[send.wire.sha256] < max(1, self.window // 2):
            return None
        self.fresh[send.wire.sha256] = 0
        return need(send.wire, missing, self.window)

    def stalled(self) -> list[Need]:
        return [
            need(self.wires[sha256], missing, self.window, stalled=True)
            for sha256, missing in self.missing.items()
            if missing
        ]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    windows=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    asks_late_s=st.lists(st.floats(0, 0.19), min_size=4, max_size=4),
)
@settings(max_examples=80, deadline=None)
def test_each_chunk_is_published_once_for_all_who_asked_in_time(sizes, windows, asks_late_s):
    wires = [wire_of(f"blob {n}", size) for n, size in enumerate(sizes)]
    devices = [Receiver(f"d{n}", window) for n, window in enumerate(windows)]
    distributor, published, now = Distributor(), Counter(), 0.0
    for device, late_s in sorted(zip(devices, asks_late_s, strict=False), key=lambda pair: pair[1]):
        for wire in wires:
            distributor.need(device.name, device.want(wire), wire, late_s)
    assert distributor.due(max(asks_late_s)) == []
    now = 0.2 + max(asks_late_s)
    while sends := distributor.due(now):
        for send in sends:
            assert send.device is None
            published[send.wire.sha256, send.index] += 1
            for device in devices:
                if answer := device.take(send):
                    distributor.need(device.name, answer, send.wire, now)
        now += 0.01
    assert published == Counter({(wire.sha256, index): 1 for wire in wires for index in range(len(wire.chunks))})
    assert distributor.wake_at_s(now) is None


class Pushing(RuleBasedStateMachine):
    """Devices that join, lose chunks, stall, leave and come back, in any order, within the time of one breath."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.distributor = Distributor(gather_s=0.0)
        self.wires = [wire_of("a", 23), wire_of("b", 7), wire_of("c", 1)]
        self.devices = {name: Receiver(name, window) for name, window in (("x", 1), ("y", 4), ("z", 9))}
        self.on_its_way: dict[str, list[Send]] = defaultdict(list)
        self.published: dict[str, set[tuple[str, int]]] = defaultdict(set)

    def tell(self, device: Receiver, message: Need) -> None:
        if message.stalled or not message.missing:
            self.published[device.name] = {key for key in self.published[device.name] if key[0] != message.wire}
        self.distributor.need(device.name, message, device.wires[message.wire], self.now)

    @rule(name=st.sampled_from("xyz"), blob=st.integers(0, 2))
    def ask(self, name: str, blob: int) -> None:
        device, wire = self.devices[name], self.wires[blob]
        if wire.sha256 not in device.missing:
            self.tell(device, device.want(wire))

    @rule()
    def push(self) -> None:
        self.now += 0.01
        for send in self.distributor.due(self.now):
            key = (send.wire.sha256, send.index)
            asking = [d for d in self.devices.values() if send.index in d.missing.get(send.wire.sha256, ())]
            targets = [d for d in asking if send.device in {None, d.name}]
            assert any(key not in self.published[device.name] for device in targets), "published again for nothing"
            for device in targets:
                self.published[device.name].add(key)
                self.on_its_way[device.name].append(send)

    @rule(name=st.sampled_from("xyz"), arrives=st.booleans())
    def next_chunk(self, name: str, arrives: bool) -> None:
        if self.on_its_way[name]:
            send = self.on_its_way[name].pop(0)
            if arrives and (answer := self.devices[name].take(send)):
                self.tell(self.devices[name], answer)

    @rule(name=st.sampled_from("xyz"))
    def stall(self, name: str) -> None:
        if not self.on_its_way[name]:
            for message in self.devices[name].stalled():
                self.tell(self.devices[name], message)

    @rule(name=st.sampled_from("xyz"))
    def leave_and_come_back(self, name: str) -> None:
        self.distributor.gone(name)
        self.on_its_way[name].clear()
        for message in self.devices[name].stalled():
            self.tell(self.devices[name], message)

    @invariant()
    def no_window_is_overrun(self) -> None:
        for device in self.devices.values():
            assert self.distributor.outstanding(device.name) <= device.window

    def teardown(self) -> None:
        for _ in range(200):
            self.push()
            for name in self.devices:
                while self.on_its_way[name]:
                    self.next_chunk(name, arrives=True)
                if not any(self.on_its_way.values()):
                    self.stall(name)
        assert all(not missing for device in self.devices.values() for missing in device.missing.values())


TestPushing = Pushing.TestCase
TestPushing.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_silent_device_with_a_full_window_holds_the_others_back_for_five_seconds_only():
    wire = wire_of("blob", 20)
    quick, silent = Receiver("quick", 4), Receiver("silent", 4)
    distributor = Distributor()
    for device in (quick, silent):
        distributor.need(device.name, device.want(wire), wire, 0.0)

    def push(now: float) -> list[int]:
        sent = []
        while sends := distributor.due(now):
            for send in sends:
                sent.append(send.index)
                if answer := quick.take(send):
                    distributor.need("quick", answer, wire, now)
        return sent

    assert push(0.2) == [0, 1, 2, 3]
    assert distributor.wake_at_s(0.3) == pytest.approx(5.2)
    assert push(5.1) == []
    assert push(5.3) == list(range(4, 20))
    distributor.need("silent", silent.stalled()[0], wire, 6.0)
    assert push(6.0) == [0, 1, 2, 3]


def test_a_device_is_sent_one_file_after_the_other():
    first, second = wire_of("first", 8), wire_of("second", 8)
    distributor = Distributor(gather_s=0.0)
    for wire in (first, second):
        distributor.need("x", need(wire, range(8), 4), wire, 0.0)
    distributor.need("y", need(first, range(8), 4), first, 0.0)
    assert distributor.due(0.0) == [Send(first, index) for index in range(4)]
    distributor.need("x", need(first, range(4, 8), 4), first, 0.1)
    assert distributor.due(0.1) == []  # y is not ready, and the second file would hide x's progress in the first
    distributor.need("y", need(first, range(4, 8), 4), first, 0.2)
    assert distributor.due(0.2) == [Send(first, index) for index in range(4, 8)]
    distributor.need("x", need(first, [], 4), first, 0.3)
    assert distributor.due(0.3) == [Send(second, index) for index in range(4)]


def test_a_hole_is_mended_alone_where_nobody_else_waits_for_it():
    wire = wire_of("blob", 4)
    distributor = Distributor(gather_s=0.0)
    distributor.need("a", need(wire, range(4), 8), wire, 0.0)
    distributor.need("b", need(wire, range(4), 8), wire, 0.0)
    assert [send.device for send in distributor.due(0.0)] == [None] * 4
    distributor.need("a", need(wire, [2], 8, stalled=True), wire, 1.0)
    assert distributor.due(1.0) == [Send(wire, 2, "a")]
    distributor.need("a", need(wire, [2], 8, stalled=True), wire, 2.0)
    distributor.need("b", need(wire, [2, 3], 8, stalled=True), wire, 2.0)
    assert distributor.due(2.0) == [Send(wire, 2, None), Send(wire, 3, "b")]


def test_the_bandwidth_is_kept():
    wire = wire_of("blob", 10)
    distributor = Distributor(bytes_per_s=10 * (1024 + 16), gather_s=0.0)
    distributor.need("a", need(wire, range(10), 100), wire, 0.0)
    times, now = [], 0.0
    while True:
        times += [now] * len(distributor.due(now))
        wake = distributor.wake_at_s(now)
        if len(times) == 10 or wake is None:
            break
        now = wake
    assert times == pytest.approx([0.1 * n for n in range(10)])


def test_a_need_that_does_not_fit_is_rejected_and_changes_nothing():
    wire = wire_of("blob", 10)
    distributor = Distributor(gather_s=0.0)
    for bad in (Need(wire.sha256, 7, b"\xff\x03", 4), Need(wire.sha256, wire.size_bytes, b"\xff\xff", 4)):
        with pytest.raises(Rejected):
            distributor.need("a", bad, wire, 0.0)
    assert distributor.due(0.0) == []
