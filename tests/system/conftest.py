"""Fleets of their own, and an independent listener at the broker."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
import pytest
from edgepress_protocol.messages import Need, decode_to_host
from edgepress_protocol.topics import Topics
from edgepress_protocol.transfer import decode_frame
from line import Line


@pytest.fixture
def fleets(tmp_path: Path) -> Iterator[Callable[..., Line]]:
    """Starts controllers; all that runs is stopped at the end."""
    made: list[Line] = []

    def start(*serve: object, **options: Any) -> Line:
        made.append(Line(tmp_path / f"fleet{len(made)}" / "data", *serve, **options))
        return made[-1]

    yield start
    for line in made:
        line.stop()


class Listener:
    """Hears every chunk and need; `log` holds ("chunk", wire digest, index) and ("need", device, Need) in order."""

    def __init__(self, broker: str) -> None:
        self.log: list[tuple[Any, ...]] = []
        self._changed = threading.Condition()
        self._topics = Topics("default")
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = self._hear
        heard = threading.Event()
        self._client.on_subscribe = lambda *_: heard.set()
        url = urlsplit(broker)
        self._client.connect(url.hostname or "", url.port or 1883)
        self._client.subscribe([(self._topics.every_blob, 0), (self._topics.every_device("need"), 1)])
        self._client.loop_start()
        assert heard.wait(10)

    def _hear(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            if "/blob/" in message.topic:
                self.log.append(("chunk", message.topic.rpartition("/")[2], decode_frame(message.payload).index))
            else:
                need = decode_to_host(message.payload)
                assert isinstance(need, Need)
                self.log.append(("need", self._topics.parse_device(message.topic).device_id, need))
            self._changed.notify_all()

    def chunks(self, since: int = 0) -> Counter[tuple[str, int]]:
        """How often each chunk of each blob was published."""
        return Counter((one[1], one[2]) for one in self.log[since:] if one[0] == "chunk")

    def wait(self, enough: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until what was heard is enough."""
        with self._changed:
            assert self._changed.wait_for(enough, timeout_s), "not heard in time"

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def listen() -> Iterator[Callable[[Line], Listener]]:
    """Puts an independent listener at a fleet's broker."""
    made: list[Listener] = []

    def start(line: Line) -> Listener:
        made.append(Listener(line.broker))
        return made[-1]

    yield start
    for listener in made:
        listener.close()
