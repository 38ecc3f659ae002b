"""Real parts to test the daemon with: a broker, an honest small host, and agents as processes of their own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiomqtt
import msgspec
import pytest
from edgepress_protocol.manifest import Blob, EvaluationSet, Golden, Manifest, digest
from edgepress_protocol.messages import (
    Deployment,
    HostState,
    Need,
    Presence,
    ProfileOptions,
    Progress,
    Report,
    Signed,
    State,
    Telemetry,
    Trial,
    Want,
    decode_to_host,
    encode,
)
from edgepress_protocol.signing import PrivateKey
from edgepress_protocol.topics import Topics
from edgepress_protocol.transfer import describe, encode_frame, from_bitmap, split
from edgepress_protocol.version import SPOKEN
from protobuf import field

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "models"
QUICK = ProfileOptions(windows=1, window_s=0.05, warmup_runs=1, warmup_s=0, timeout_s=60, energy=False)
WAIT_S = 30.0

_CONFIG = """\
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 10
[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 16777216
max_inflight_count = 100
dynamic_filters = true
"""


class Broker:
    """rumqttd as a child process; it forgets everything when it is killed."""

    def __init__(self, folder: Path, more: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._config = folder / "rumqttd.toml"
        self._config.write_text(_CONFIG.format(port=self.port) + more)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = json.dumps({"config_path": str(self._config)})
        code = "from iotcore._serve import main; main()"
        self._process = subprocess.Popen([sys.executable, "-c", code, options], stdin=subprocess.PIPE)
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            time.sleep(0.02)
        raise AssertionError("the broker did not start")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


class Model:
    """A real ONNX model, made larger by a doc string, with its signed manifest and the blobs that it needs."""

    def __init__(self, key: PrivateKey, padding_bytes: int = 0, chunk_bytes: int = 4096, seed: int = 0) -> None:
        text = base64.b64encode(random.Random(seed).randbytes(padding_bytes))
        # Field 6 of ModelProto is doc_string.
        data = (FIXTURES / "tiny.onnx").read_bytes() + (field(6, text) if text else b"")
        written = json.loads((FIXTURES / "tiny.manifest.json").read_text())
        self.blobs: dict[str, tuple[Blob, bytes]] = {}
        template = msgspec.json.decode(json.dumps(written), type=Manifest)
        golden = Golden(self.add((FIXTURES / "tiny.golden.safetensors").read_bytes()), atol=1e-4, rtol=0.05)
        self.manifest = msgspec.structs.replace(
            template, variant=f"tiny-{seed}", model=self.add(data, chunk_bytes), golden=golden
        )
        self.sign(key)

    def add(self, data: bytes, chunk_bytes: int = 4096) -> Blob:
        blob, form = describe(data, chunk_bytes)
        self.blobs[blob.wire.sha256] = (blob, form)
        return blob

    def sign(self, key: PrivateKey) -> None:
        self.signed = key.sign("manifest", encode(self.manifest))
        self.id = digest(self.signed.payload)

    def with_wrong_golden(self, key: PrivateKey) -> Model:
        """The golden vectors of another model: this one computes something else."""
        data = bytearray((FIXTURES / "tiny.golden.safetensors").read_bytes())
        data[-8:] = b"\x00\x00\xc8\x42" * 2  # two outputs of 100.0
        self.manifest = msgspec.structs.replace(
            self.manifest, variant="wrong", golden=Golden(self.add(bytes(data)), atol=1e-4, rtol=0.001)
        )
        self.sign(key)
        return self

    def evaluation(self) -> EvaluationSet:
        return EvaluationSet(self.add((FIXTURES / "tiny.top1.safetensors").read_bytes()), samples=8)


class Host:
    """An honest host in small: signs wants, answers needs, remembers what it heard and what it sent."""

    def __init__(self, client: aiomqtt.Client, key: PrivateKey, topics: Topics) -> None:
        self.client = client
        self.key = key
        self.topics = topics
        self.blobs: dict[str, tuple[Blob, bytes]] = {}
        self.sent: Counter[tuple[str, int]] = Counter()
        self.budget: int | None = None  # chunks that it may still send
        self.alter: Callable[[int, bytes], bytes] = lambda index, chunk: chunk
        self.presence: list[Presence] = []
        self.states: list[State] = []
        self.needs: list[Need] = []
        self.reports: list[Report] = []
        self.progress: list[Progress] = []
        self.telemetry: list[Telemetry] = []
        self.generation = 0
        self.last_want: bytes | None = None
        self._heard = asyncio.Condition()

    async def say_online(self, speaks: tuple[int, int] = SPOKEN, session: str = "s1") -> None:
        state = HostState(session, online=True, speaks=speaks)
        await self.client.publish(self.topics.host_state, encode(state), qos=1, retain=True)

    def offer(self, *models: Model) -> tuple[Signed, ...]:
        for model in models:
            self.blobs.update(model.blobs)
        return tuple(model.signed for model in models)

    async def want(self, device: str = "pi", *, key: PrivateKey | None = None, **fields: object) -> None:
        self.generation = int(fields.pop("generation", self.generation + 1))  # type: ignore[call-overload]
        known = {"fleet": self.topics.fleet, "device": device, "generation": self.generation, "protocol": 1}
        want = Want(**{**known, **fields})  # type: ignore[arg-type]
        await self.publish_want(device, encode((key or self.key).sign("want", encode(want))))

    async def publish_want(self, device: str, payload: bytes) -> None:
        self.last_want = payload
        await self.client.publish(self.topics.device(device, "want"), payload, qos=1, retain=True)

    async def until(self, told: Callable[[], object], wait_s: float = WAIT_S) -> None:
        async with self._heard:
            try:
                await asyncio.wait_for(self._heard.wait_for(lambda: bool(told())), wait_s)
            except asyncio.TimeoutError:
                state = self.states[-1] if self.states else None
                raise AssertionError(f"not heard within {wait_s} s; last state: {state}; {self.reports}") from None

    async def listen(self) -> None:
        async for message in self.client.messages:
            said = decode_to_host(bytes(message.payload))  # type: ignore[arg-type]
            heard: dict[type, list] = {
                Presence: self.presence,
                State: self.states,
                Need: self.needs,
                Report: self.reports,
                Progress: self.progress,
                Telemetry: self.telemetry,
            }
            if type(said) in heard:
                heard[type(said)].append(said)
            if isinstance(said, Need):
                await self.answer(said)
            async with self._heard:
                self._heard.notify_all()

    async def answer(self, need: Need) -> None:
        """Send at once what is asked for the first time, and what is asked for again as stalled."""
        blob, form = self.blobs[need.wire]
        chunks = list(split(form, blob.wire.chunk_bytes))
        for index in sorted(from_bitmap(need.missing, len(chunks))):
            if (self.sent[need.wire, index] and not need.stalled) or self.budget == 0:
                continue
            self.budget = None if self.budget is None else self.budget - 1
            self.sent[need.wire, index] += 1
            frame = encode_frame(need.wire, index, self.alter(index, chunks[index]))
            await self.client.publish(self.topics.blob(need.wire), frame, qos=0)


@contextlib.asynccontextmanager
async def connected_host(broker: Broker, key: PrivateKey, fleet: str = "default") -> AsyncIterator[Host]:
    topics = Topics(fleet)
    async with aiomqtt.Client(
        "127.0.0.1", broker.port, identifier=f"edgepress-host-{fleet}", protocol=aiomqtt.ProtocolVersion.V5
    ) as client:
        host = Host(client, key, topics)
        await client.subscribe([(topics.every_device(leaf), 1) for leaf in ("up", "state", "need", "report", "tm")])
        listening = asyncio.create_task(host.listen())
        try:
            yield host
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError, aiomqtt.MqttError):
                await listening


class Agent:
    """`edgepress-agent run` as a process."""

    def __init__(self, folder: Path, broker: Broker, trust: Path, device: str = "pi") -> None:
        self.state_dir = folder / device
        self.log = folder / f"{device}.log"
        self.command = [sys.executable, "-m", "edgepress_agent", "run"]
        self.command += ["--broker", f"mqtt://127.0.0.1:{broker.port}", "--id", device, "--trust", str(trust)]
        self.command += ["--state-dir", str(self.state_dir), "--serve", "off", "--reconnect-max", "1"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*self.command, *more], stderr=log, stdout=log)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(10)

    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="session")
def key() -> PrivateKey:
    return PrivateKey.generate("test-host")


@pytest.fixture
def trust(tmp_path: Path, key: PrivateKey) -> Path:
    path = tmp_path / "host.pub"
    path.write_text(key.public.to_text())
    return path


@pytest.fixture
def agent(tmp_path: Path, broker: Broker, trust: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path, broker, trust)
    yield agent
    if agent.process is not None and agent.process.poll() is None:
        agent.process.kill()
        agent.process.wait()
    print(agent.said() if agent.log.exists() else "the agent was never started")


def trial(model: Model, number: int = 1, **more: object) -> Trial:
    return Trial(id=f"{number:032x}", manifest=model.id, options=QUICK, **more)  # type: ignore[arg-type]


def deployment(model: Model, number: int = 1) -> Deployment:
    return Deployment(id=f"{0xD0000 + number:032x}", manifest=model.id)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Callable[[str], Broker]]:
    """Start a broker with more of a configuration: a password, TLS."""
    started: list[Broker] = []

    def start(more: str) -> Broker:
        folder = tmp_path / f"broker-{len(started)}"
        folder.mkdir()
        started.append(Broker(folder, more))
        started[-1].start()
        return started[-1]

    yield start
    for broker in started:
        broker.kill()


class Scene:
    """Everything of one test: a broker, a host, agents, models."""

    def __init__(self, folder: Path, broker: Broker, key: PrivateKey, trust: Path, agent: Agent) -> None:
        self.folder = folder
        self.broker = broker
        self.key = key
        self.trust = trust
        self.agent = agent

    def host(self, fleet: str = "default") -> contextlib.AbstractAsyncContextManager[Host]:
        return connected_host(self.broker, self.key, fleet)

    def model(self, padding_bytes: int = 0, **more: int) -> Model:
        return Model(self.key, padding_bytes, **more)

    trial = staticmethod(trial)
    deployment = staticmethod(deployment)


@pytest.fixture
def scene(tmp_path: Path, broker: Broker, key: PrivateKey, trust: Path, agent: Agent) -> Scene:
    return Scene(tmp_path, broker, key, trust, agent)
