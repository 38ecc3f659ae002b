"""The connection to the broker: connects, subscribes, carries messages both ways, and comes back after every loss.

Nothing sent while there is no connection is kept: whoever sends says everything again at `Connected`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiomqtt
from edgepress_protocol.errors import Unavailable
from edgepress_protocol.messages import Presence, encode
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY

from edgepress_agent._compat import timeout
from edgepress_agent.clock import clock_synced
from edgepress_agent.log import Said, logger
from edgepress_agent.settings import Broker, Settings

FIRST_DELAY_S = 0.2
CONNECT_S = 10.0
_STEADY_S = 10.0
_LOST = "Disconnected during message iteration"  # aiomqtt's words
_CLOSED = "it closed the connection without an answer; check the password, the port, and mqtt:// or mqtts://"
_GOODBYE_S = 1.0
_SUSPICIOUS = 3


@dataclass(frozen=True)
class Connected:
    """A new session stands, with its standing subscriptions."""

    session: str


@dataclass(frozen=True)
class Disconnected:
    """The session is gone."""


@dataclass(frozen=True)
class Arrived:
    """A message from the broker."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Publish:
    """Publish a message."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


@dataclass(frozen=True)
class Subscribe:
    """Subscribe to topics at QoS 0; the standing subscriptions are the link's own."""

    topics: tuple[str, ...]


@dataclass(frozen=True)
class Unsubscribe:
    """Give up subscriptions."""

    topics: tuple[str, ...]


LinkEvent = Connected | Disconnected | Arrived
Operation = Publish | Subscribe | Unsubscribe

_BY_THE_CLOCK = ("certificate is not yet valid", "certificate has expired")
"""What a board says of good certificates, too, that has just started without a battery for its clock."""


class Link:
    """One device's connection; `deliver` is called with every event, in order, `on_status` with a line for people."""

    def __init__(self, settings: Settings, deliver: Callable[[LinkEvent], None], seed: int | None = None) -> None:
        topics = settings.topics
        self._settings = settings
        self._deliver = deliver
        # Jitter only spreads devices over time; it guards no secret.
        self._random = random.Random(seed)  # noqa: S311
        self._up = topics.device(settings.device_id, "up")
        self._standing = [
            (topics.device(settings.device_id, "want"), 1),
            (topics.device(settings.device_id, "chunk"), 0),
            (topics.host_state, 1),
        ]
        self._outgoing: asyncio.Queue[Operation] | None = None
        self._said = Said()
        self._client: _Client | None = None
        self._session = ""
        self.on_status: Callable[[str], None] = lambda _: None

    def send(self, *operations: Operation) -> None:
        """Do these in order while the connection stands; without a connection they are dropped."""
        if self._outgoing is not None:
            for operation in operations:
                self._outgoing.put_nowait(operation)

    async def run(self) -> None:
        """Keep a connection for ever.

        Raises:
            Unavailable: a connect timeout was set, and no first connection came about within it.
        """
        patience_s = self._settings.timing.connect_timeout_s
        deadline = None if patience_s is None else time.monotonic() + patience_s
        delays = self._delays()
        reason = ""
        short_lived = 0
        while True:
            began, before = time.monotonic(), self._session
            try:
                await self._one_session(CONNECT_S if deadline is None else min(CONNECT_S, max(deadline - began, 0.01)))
            except TimeoutError:
                reason = reason or f"broker {self._settings.broker}: no answer"
            except (aiomqtt.MqttError, OSError, ValueError) as error:
                reason = f"broker {self._settings.broker}: {_say(error)}"
            if self._session:
                deadline = None
            if deadline is not None and time.monotonic() >= deadline:
                raise Unavailable(f"{reason}; gave up after {patience_s:g} s")
            steady = time.monotonic() - began > _STEADY_S
            if steady:
                delays = self._delays()
            short_lived = 0 if steady else short_lived + (self._session != before)
            line = f"{reason}{self._suspicion(short_lived)}; trying again"
            self.on_status(line)
            self._said.warn("broker", line)
            await asyncio.sleep(next(delays))

    def _suspicion(self, short_lived: int) -> str:
        if short_lived < _SUSPICIOUS:
            return ""
        # A broker ends a session when another begins under the same name; not every one says that it does.
        return f", {short_lived} times soon after connecting: does another agent run as {self._settings.device_id!r}?"

    async def say_goodbye(self) -> None:
        """Tell the host that this device stops on purpose; no connection, no word."""
        if self._outgoing is None or self._client is None:
            return
        farewell = encode(Presence(self._session, online=False))
        with contextlib.suppress(aiomqtt.MqttError):
            await self._client.publish(self._up, farewell, qos=1, retain=True, timeout=_GOODBYE_S)

    async def _one_session(self, connect_within_s: float) -> None:
        session = secrets.token_hex(8)
        async with contextlib.AsyncExitStack() as stack:
            async with timeout(connect_within_s):
                client = await stack.enter_async_context(self._new_client(session))
            granted = await client.subscribe(self._standing)
            _check_granted([topic for topic, _ in self._standing], granted)
            self._outgoing = asyncio.Queue()
            self._client, self._session = client, session
            line = f"connected to {self._settings.broker} as {self._settings.device_id}"
            self.on_status(line)
            logger.info("%s", line)
            self._said.forget("broker")
            self._deliver(Connected(session))
            try:
                await _first_to_fail(self._send_all(client, self._outgoing), self._receive_all(client))
            finally:
                self._outgoing = None
                self._client = None
                self._deliver(Disconnected())

    async def _send_all(self, client: _Client, outgoing: asyncio.Queue[Operation]) -> None:
        while True:
            match await outgoing.get():
                case Publish(topic, payload, qos, retain):
                    await client.publish(topic, payload, qos=qos, retain=retain)
                case Subscribe(topics):
                    _check_granted(topics, await client.subscribe([(topic, 0) for topic in topics]))
                case Unsubscribe(topics):
                    await client.unsubscribe(list(topics))

    async def _receive_all(self, client: _Client) -> None:
        async for message in client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            self._deliver(Arrived(message.topic.value, payload))

    def _new_client(self, session: str) -> _Client:
        settings = self._settings
        broker = settings.broker
        will = aiomqtt.Will(self._up, encode(Presence(session, online=False)), qos=1, retain=True)
        return _Client(
            broker.host,
            broker.port,
            username=broker.username,
            password=broker.password,
            identifier=f"edgepress-agent-{settings.fleet}-{settings.device_id}",
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=MQTT_CLEAN_START_FIRST_ONLY,
            keepalive=settings.timing.keepalive_s,
            will=will,
            tls_context=_tls(broker),
        )

    def _delays(self) -> Iterator[float]:
        delay = FIRST_DELAY_S
        while True:
            yield delay * self._random.uniform(0.5, 1.0)
            delay = min(delay * 2, self._settings.timing.reconnect_max_s)


class _Client(aiomqtt.Client):
    """aiomqtt's client, which alone would miss a refused PUBACK and a connection that is closed unanswered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._said = Said()

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        # Some brokers answer a wrong password by closing the connection; aiomqtt would wait for the answer.
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError(_CLOSED))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        # "No matching subscribers" (0x10) is no failure: the host may be away.
        if reason_code.is_failure:
            self._said.warn("puback", f"the broker refused a message: {reason_code}; check its access rules")
        super()._on_publish(client, userdata, mid, reason_code, properties)


async def _first_to_fail(*work: Any) -> None:
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_granted(topics: Any, granted: Any) -> None:
    for topic, code in zip(topics, granted, strict=True):
        if code.is_failure:
            raise aiomqtt.MqttError(f"it refuses the subscription to {topic} ({code}); check its access rules")


def _tls(broker: Broker) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=broker.ca) if broker.tls else None


def _say(error: Exception) -> str:
    if isinstance(error, aiomqtt.MqttCodeError) and error.rc is not None:
        return f"refused or lost ({error})"
    text = str(error) or type(error).__name__
    if any(words in text for words in _BY_THE_CLOCK):
        unset = ", and is not set yet" if clock_synced() is False else ""
        text += f"; the clock of this board says {time.strftime('%Y-%m-%d', time.gmtime())}{unset}"
    return "it closed the connection" if text == _LOST else text
