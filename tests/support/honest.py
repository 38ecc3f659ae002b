"""Small honest devices: they speak the protocol to a real broker, and answer every trial with made-up numbers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
from edgepress_host import keys
from edgepress_protocol.errors import Rejected
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import Manifest, Wire
from edgepress_protocol.measurement import (
    Accuracy,
    Board,
    Conditions,
    Device,
    Latency,
    Measurement,
    Memory,
    Paced,
    Quiet,
    Runtime,
    Soak,
    Stretch,
    Window,
)
from edgepress_protocol.messages import (
    Active,
    DeploymentStatus,
    HostState,
    Measured,
    Need,
    Presence,
    Progress,
    Report,
    State,
    Want,
    decode_signed,
    decode_to_device,
    encode,
)
from edgepress_protocol.signing import PublicKey
from edgepress_protocol.topics import Topics
from edgepress_protocol.transfer import check_chunk, decode_frame, to_bitmap

TOPICS = Topics("default")


def made_up(p50_ms: float = 1.5) -> Measurement:
    """Make up numbers of a run that nobody made."""
    histogram = Histogram.of([int(p50_ms * 1e6)] * 3)
    latency = Latency(
        p50_ms, p50_ms, p50_ms, p50_ms, p50_ms, p50_ms, 3, 0.0, False, (Window(3, 1.0, p50_ms, p50_ms),), histogram
    )
    return Measurement(
        Runtime("onnxruntime", "1", "onnx"), 1.0, 1.0, 10, latency, Memory(1, 2, 3), 1, 1, Conditions(), Conditions(),
        accuracy=Accuracy("top1", 0.9, 10), simulated=True, quiet=Quiet(disturbed=("<b>a compiler</b> ran",)),
        paced=Paced(20.0, 200, 0, 2.0, 2.2, 2.5, 2.7, 3.0, histogram),
        soak=Soak(
            900.0, Stretch(60.0, 9, 1.1, 1.2, 1.3), Stretch(60.0, 9, 1.7, 1.8, 1.9, 81.5), settled=True,
            throttled=True, slice_s=1.0, p50_ms=(1.1, 1.7),
        ),
    )  # fmt: skip


@dataclass
class TestDevice:
    """A device that fetches what it is to have, says it is active, and answers every trial with made-up numbers."""

    __test__ = False

    id: str
    trust: Path
    port: int
    window: int = 4
    speaks: tuple[int, int] = (1, 1)
    generation: int = 0
    deaf: bool = False  # hears chunks, and says nothing of them
    fails: bool = False  # every deployment fails
    before: Active | None = None  # what it says it ran before
    off: bool = False
    wants: list[Want] = field(default_factory=list)
    chunks: dict[str, dict[int, bytes]] = field(default_factory=dict)
    frames: int = 0
    host: HostState | None = None
    rejected: list[str] = field(default_factory=list)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        self.off = False
        while not self.off:
            with contextlib.suppress(aiomqtt.MqttError):
                await self._session()
            await asyncio.sleep(0.1)

    async def _session(self) -> None:
        self.session = os.urandom(8).hex()
        up = TOPICS.device(self.id, "up")
        will = aiomqtt.Will(up, encode(Presence(self.session, False)), 1, True)
        async with aiomqtt.Client(
            "127.0.0.1", self.port, identifier=f"edgepress-agent-default-{self.id}", will=will, clean_start=True,
            protocol=aiomqtt.ProtocolVersion.V5, keepalive=5, timeout=5,
        ) as self.client:  # fmt: skip
            for topic in (TOPICS.device(self.id, "want"), TOPICS.device(self.id, "chunk"), TOPICS.host_state):
                await self.client.subscribe(topic, qos=1)
            await self.client.publish(up, encode(Presence(self.session, True)), qos=1, retain=True)
            await self.say_state()
            for wire in self._wanted():
                await self._ask(wire, stalled=True)
            async for message in self.client.messages:
                await self._take(str(message.topic), bytes(message.payload))
                self.moved.set()

    async def _take(self, topic: str, payload: bytes) -> None:
        if topic == TOPICS.host_state:
            message = decode_to_device(payload)
            assert isinstance(message, HostState)
            self.host = message
        elif topic.endswith("/want"):
            await self._converge(payload)
        else:
            await self._receive(payload)

    async def _converge(self, payload: bytes) -> None:
        key = PublicKey.from_text(self.trust.read_text())
        try:
            want = decode_to_device(key.verify("want", decode_signed(payload)))
            assert isinstance(want, Want)
            self.manifests = {
                hashlib.sha256(signed.payload).hexdigest(): msgspec.msgpack.decode(
                    key.verify("manifest", signed), type=Manifest
                )
                for signed in want.manifests
            }
        except Rejected as error:
            self.rejected.append(str(error))
            return
        if want.generation < self.generation:
            return
        self.generation = want.generation
        self.wants.append(want)
        for wire in self._wanted():
            await self.client.subscribe(TOPICS.blob(wire.sha256))
            await self._ask(wire)
        await self._conclude()

    def _wanted(self) -> list[Wire]:
        if not self.wants:
            return []
        want = self.wants[-1]
        names = ([want.deployment.manifest] if want.deployment else []) + [trial.manifest for trial in want.trials]
        wires = [self.manifests[name].model.wire for name in dict.fromkeys(names)]
        wires += [trial.evaluation.blob.wire for trial in want.trials if trial.evaluation]
        return [wire for wire in wires if self._missing(wire)]

    def _missing(self, wire: Wire) -> list[int]:
        have = self.chunks.get(wire.sha256, {})
        return [index for index in range(len(wire.chunks)) if index not in have]

    async def _ask(self, wire: Wire, *, stalled: bool = False) -> None:
        bits = to_bitmap(self._missing(wire), len(wire.chunks))
        need = Need(wire.sha256, wire.size_bytes, bits, self.window, stalled)
        await self.client.publish(TOPICS.device(self.id, "need"), encode(need), qos=1)

    async def _receive(self, payload: bytes) -> None:
        frame = decode_frame(payload)
        wire = next((one for one in self._wanted() if one.sha256.startswith(frame.prefix.hex())), None)
        if wire is None or self.deaf:
            return
        check_chunk(wire, frame)
        self.frames += 1
        have = self.chunks.setdefault(wire.sha256, {})
        have[frame.index] = frame.chunk
        if len(have) % max(1, self.window // 2) == 0 or not self._missing(wire):
            await self._ask(wire)
        await self._conclude()

    async def _conclude(self) -> None:
        if self._wanted():
            return
        want = self.wants[-1]
        for trial in want.trials:
            await self.publish("tm", encode(Progress(trial.id, "measuring")))
            await self.publish("report", encode(Report(trial.id, trial.manifest, Measured(made_up()))))
        await self.say_state()

    async def say_state(self) -> None:
        """Publish the state that follows from the last want."""
        deployment = self.wants[-1].deployment if self.wants and not self._wanted() else None
        active = status = None
        if deployment and self.fails:
            status = DeploymentStatus(deployment.id, "failed", "golden vectors differ")
        elif deployment:
            active = Active(deployment.id, deployment.manifest, self.manifests[deployment.manifest].variant)
            status = DeploymentStatus(deployment.id, "active")
        board = Board("test-board", "Test <b>board</b>", "x86_64", "a cpu", 2, 1 << 30, "linux", "3", simulated=True)
        runtimes = (Runtime("onnxruntime", "1", "onnx"),)
        device = Device(self.id, board, "0", self.speaks, runtimes)
        state = State(self.session, device, self.generation, active, self.before, status)
        await self.publish("state", encode(state), retain=True)

    async def publish(self, leaf: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish on one of its own topics."""
        await self.client.publish(TOPICS.device(self.id, leaf), payload, qos=1, retain=retain)

    async def until(self, look: Callable[[], Any], timeout_s: float = 20.0) -> Any:
        """Look after every message, until it finds something."""
        async with asyncio.timeout(timeout_s):
            while not (found := look()):
                self.moved.clear()
                await self.moved.wait()
        return found


class Devices:
    """Devices of a test, in an event loop beside it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="devices")
        self._thread.start()

    def add(self, controller: Any, device_id: str, **more: Any) -> TestDevice:
        """Start a device, and wait until the controller (a `Controller` of tests/host/server) knows it."""
        device = TestDevice(device_id, controller.data_dir / "keys" / keys.PUBLIC_NAME, controller.broker_port, **more)
        self.start(device)
        controller.until(lambda: (controller.device(device_id) or {}).get("online"))
        return device

    def start(self, device: TestDevice) -> None:
        async def spawn() -> None:
            self._tasks[device.id] = asyncio.create_task(device.run(), name=device.id)

        self.do(spawn())

    def stop(self, device: TestDevice) -> None:
        """Stop a device as a power cut does: its will speaks for it."""

        async def cut() -> None:
            device.off = True
            device.client._client.socket().shutdown(socket.SHUT_RDWR)  # no DISCONNECT is sent
            await self._tasks.pop(device.id)

        self.do(cut())

    def do(self, work: Coroutine[Any, Any, Any], timeout_s: float = 30.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def until(self, device: TestDevice, look: Callable[[], Any]) -> Any:
        return self.do(device.until(look))

    def close(self) -> list[BaseException]:
        """Stop everything; return what devices raised."""

        async def end() -> list[Any]:
            pending = set(self._tasks.values())
            while pending:  # Python 3.11 can lose a cancellation in `asyncio.wait_for`
                for task in pending:
                    task.cancel()
                _, pending = await asyncio.wait(pending, timeout=1.0)
            return await asyncio.gather(*self._tasks.values(), return_exceptions=True)

        results = self.do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        return [one for one in results if isinstance(one, Exception)]


@contextmanager
def listening(port: int, topic: str) -> Iterator[list[Any]]:
    """An independent subscriber; gives what it hears."""
    heard: list[Any] = []
    ready, stop = threading.Event(), threading.Event()

    async def listen() -> None:
        async with aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe(topic, qos=1)
            ready.set()
            task = asyncio.create_task(collect(client))
            await asyncio.to_thread(stop.wait)
            task.cancel()

    async def collect(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            heard.append(message)

    thread = threading.Thread(target=asyncio.run, args=(listen(),))
    thread.start()
    assert ready.wait(5)
    try:
        yield heard
    finally:
        stop.set()
        thread.join()
