"""The controller's connection to the broker: it comes back by itself, and then says everything again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Iterable
from typing import Any, Protocol

import aiomqtt
from edgepress_protocol.errors import Unavailable
from edgepress_protocol.messages import HostState, encode
from edgepress_protocol.topics import Topics
from paho.mqtt.reasoncodes import ReasonCode

from edgepress_host.fleet.distribute import Send
from edgepress_host.server.broker import Endpoint

log = logging.getLogger(__name__)

FROM_DEVICES = ("up", "state", "need", "report", "tm")
CONNECT_S = 10.0
FIRST_PAUSE_S = 0.2


class Listener(Protocol):
    """What the link tells the controller, and asks of it."""

    def on_message(self, topic: str, payload: bytes) -> None:
        """Take in what a device published."""

    def on_connected(self) -> None:
        """Retain again whatever is to be retained: the connection stands."""

    def on_disconnected(self) -> None:
        """Note that the connection is gone, and with it what is known of every device's presence."""

    def chunks_due(self) -> Iterable[tuple[Send, bytes]]:
        """Frames to publish now."""

    def chunks_wake_in_s(self) -> float | None:
        """How long until `chunks_due` may return something again by itself."""


class Link:
    """One connection at a time, with one reader, one writer of retained topics and one of chunks."""

    def __init__(
        self,
        endpoint: Endpoint,
        topics: Topics,
        session: str,
        listener: Listener,
        *,
        keepalive_s: int,
        max_pause_s: float,
    ) -> None:
        self._endpoint = endpoint
        self._topics = topics
        self._session = session
        self._listener = listener
        self._keepalive_s = keepalive_s
        self._max_pause_s = max_pause_s
        self._pending: dict[str, bytes] = {}
        self._has_pending = asyncio.Event()
        self._has_needs = asyncio.Event()
        self.connected = asyncio.Event()

    def retain(self, topic: str, payload: bytes) -> None:
        """Publish a retained message once the connection stands; of a topic the latest counts, empty bytes clear it."""
        self._pending.pop(topic, None)
        self._pending[topic] = payload
        self._has_pending.set()

    def look_for_chunks(self) -> None:
        """Say that needs changed."""
        self._has_needs.set()

    async def run(self) -> None:
        """Stay connected until cancelled, and then say goodbye.

        Raises:
            Unavailable: the very first connection cannot be made.
        """
        pause_s, ever = FIRST_PAUSE_S, False
        while True:
            try:
                async with self._client() as client:
                    ever, pause_s = True, FIRST_PAUSE_S
                    await self._serve(client)
            except* (aiomqtt.MqttError, OSError) as group:
                cause = _first(group)
                if not ever:
                    raise Unavailable(f"broker {self._endpoint.url} cannot be reached: {_words(cause)}") from cause
                if self.connected.is_set():
                    log.warning("the connection to the broker is lost (%s); connecting again", _words(cause))
            if self.connected.is_set():
                self.connected.clear()
                self._listener.on_disconnected()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause_s = min(2 * pause_s, self._max_pause_s)

    def _client(self) -> aiomqtt.Client:
        return _Client(
            self._endpoint.host,
            self._endpoint.port,
            username=self._endpoint.username,
            password=self._endpoint.password,
            identifier=f"edgepress-host-{self._topics.fleet}",
            protocol=aiomqtt.ProtocolVersion.V5,
            will=aiomqtt.Will(self._topics.host_state, self._presence(online=False), qos=1, retain=True),
            clean_start=True,
            keepalive=self._keepalive_s,
            timeout=CONNECT_S,
            tls_context=self._endpoint.tls_context(),
        )

    async def _serve(self, client: aiomqtt.Client) -> None:
        for leaf in FROM_DEVICES:
            topic = self._topics.every_device(leaf)
            for code in await client.subscribe(topic, qos=1):
                if isinstance(code, ReasonCode) and code.is_failure:
                    raise Unavailable(f"the broker refuses the subscription to {topic}: {code}")
        # Only after the subscriptions: devices answer this with what they need.
        self._listener.on_connected()
        self.retain(self._topics.host_state, self._presence(online=True))
        self.connected.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(client), name="read")
                tasks.create_task(self._write(client), name="write")
                tasks.create_task(self._write_chunks(client), name="chunks")
        except asyncio.CancelledError:
            with contextlib.suppress(aiomqtt.MqttError):
                await client.publish(
                    self._topics.host_state, self._presence(online=False), qos=1, retain=True, timeout=1.0
                )
            raise

    async def _read(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            if isinstance(message.payload, bytes) and message.payload:  # empty: a retained topic was cleared
                self._listener.on_message(str(message.topic), message.payload)

    # No time limit on what is published: a connection that is gone ends the reader, and with it the writers; and
    # Python 3.11 can lose a cancellation where there is one.

    async def _write(self, client: aiomqtt.Client) -> None:
        while True:
            self._has_pending.clear()
            while self._pending:
                topic, payload = next(iter(self._pending.items()))
                await client.publish(topic, payload, qos=1, retain=True, timeout=math.inf)
                if self._pending.get(topic) is payload:
                    del self._pending[topic]
            await self._has_pending.wait()

    async def _write_chunks(self, client: aiomqtt.Client) -> None:
        while True:
            self._has_needs.clear()
            for send, frame in self._listener.chunks_due():
                sha256 = send.wire.sha256
                topic = self._topics.device(send.device, "chunk") if send.device else self._topics.blob(sha256)
                await client.publish(topic, frame, qos=0, timeout=math.inf)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._listener.chunks_wake_in_s()):
                    await self._has_needs.wait()

    def _presence(self, *, online: bool) -> bytes:
        return encode(HostState(self._session, online))


class _Client(aiomqtt.Client):
    """aiomqtt's client, which hides the reason code of a PUBACK: a broker that refuses what we publish is named."""

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Any) -> None:
        if reason_code.is_failure:
            log.warning("the broker refuses what this controller publishes: %s", reason_code)
        super()._on_publish(client, userdata, mid, reason_code, properties)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _words(error: BaseException) -> str:
    text = str(error)
    if text == "Operation timed out":
        return "it does not answer, or closes the connection (is the password right?)"
    return text or type(error).__name__
