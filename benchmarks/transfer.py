"""How fast a file reaches boards: edgepress, one MQTT message, and plain HTTP, interleaved in one run.

`python benchmarks/transfer.py [--mb 5] [--rounds 5] [--agents 1 4]` prints a table in Markdown. All three write
the file to disk, flush it, and compute its SHA-256; edgepress and the single message go through one embedded broker.
Everything is on this machine's loopback: read the ratios, not the absolute values.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from edgepress_host import keys
from edgepress_host.client.client import Client, find
from edgepress_host.client.crew import Crew
from edgepress_host.server import views
from edgepress_protocol.manifest import TensorSpec
from edgepress_protocol.messages import Need, decode_to_host
from edgepress_protocol.topics import Topics
from rich.progress import Progress

TENSOR = (TensorSpec("x", "float32", (1,)),)
EDGEPRESS, MESSAGE, HTTP = "edgepress", "one MQTT message, QoS 1", "HTTP, each board for itself"
MESSAGE_MB = 8.0
"""The embedded broker takes no message of twice this size."""


class Stopwatch:
    """Hears, at the broker, when devices say that they lack nothing more of a blob."""

    def __init__(self, broker: str) -> None:
        self._complete: set[str] = set()
        self._changed = threading.Condition()
        self._topics = Topics("default")
        self.client = connected(broker, self._hear, self._topics.every_device("need"))

    def _hear(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        need = decode_to_host(message.payload)
        if isinstance(need, Need) and not need.missing:
            with self._changed:
                self._complete.add(self._topics.parse_device(message.topic).device_id)
                self._changed.notify_all()

    def wait(self, devices: set[str]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._complete >= devices)
            self._complete.clear()


def connected(broker: str, hear: Callable[..., None], topic: str) -> mqtt.Client:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    ready = threading.Event()
    client.on_message = hear
    client.on_subscribe = lambda *_: ready.set()
    url = urlsplit(broker)
    client.connect(url.hostname or "", url.port or 1883)
    client.subscribe(topic, 1)
    client.loop_start()
    ready.wait()
    return client


@contextmanager
def fleet(folder: Path, agents: int) -> Iterator[tuple[Client, list[str]]]:
    """A controller with its embedded broker, and agents, all in processes of their own."""
    keys.init(folder / "keys")
    with Crew(folder) as crew:
        serve = [sys.executable, "-m", "edgepress_host.cli", "--data-dir", str(folder), "serve"]
        crew.first_line("controller", crew.start("controller", serve))
        running = find(folder)
        assert running is not None
        client = Client(running)
        health = client.health()
        names = [f"board-{number}" for number in range(agents)]
        for name in names:
            trust = ["--broker", health.broker, "--trust", health.public_key_file, "--serve", "off"]
            run = [sys.executable, "-m", "edgepress_agent", "run", "--id", name, "--state-dir", str(folder / name)]
            crew.start(name, [*run, *trust])
        client.follow(lambda: {view.id for view in client.devices() if view.online} >= set(names), tick_s=1.0)
        yield client, names


def by_edgepress(client: Client, watch: Stopwatch, path: Path, names: list[str]) -> float:
    """From the request that opens the trial to the last board's word that it lacks nothing of the file."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    client.upload(path, sha256)
    manifest = client.add_manifest(views.ManifestIn(sha256[:8], "onnx", sha256, TENSOR, TENSOR))
    started = time.perf_counter()
    client.queue_trials(views.TrialsIn((manifest,), devices=f"id={','.join(names)}"))
    watch.wait(set(names))
    seconds = time.perf_counter() - started
    # The file is no model: the trials end by themselves, and the next round starts on a quiet machine.
    client.follow(lambda: not client.trials(state="open"), tick_s=1.0)
    return seconds


def by_one_message(broker: str, folder: Path, data: bytes, names: list[str]) -> float:
    done = threading.Semaphore(0)

    def hear(name: str, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        store(folder / f"{name}.message", message.payload)
        done.release()

    clients = [connected(broker, partial(hear, name), "benchmark/file") for name in names]
    sender = connected(broker, lambda *_: None, "benchmark/none")
    started = time.perf_counter()
    sender.publish("benchmark/file", data, qos=1)
    for _ in names:
        done.acquire()
    seconds = time.perf_counter() - started
    for client in (*clients, sender):
        client.disconnect()
        client.loop_stop()
    return seconds


def by_http(url: str, folder: Path, names: list[str]) -> float:
    def download(name: str) -> None:
        with urllib.request.urlopen(url) as answer:
            store(folder / f"{name}.http", answer.read())

    started = time.perf_counter()
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(download, names))
    return time.perf_counter() - started


def store(path: Path, data: bytes) -> None:
    hashlib.sha256(data).digest()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def measure(size: int, rounds: int, agents: int, advance: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds by way, in rounds that take every way in turn, each round with a file of its own."""
    found: dict[str, list[float]] = {EDGEPRESS: [], MESSAGE: [], HTTP: []}
    if size > MESSAGE_MB * 1e6:
        del found[MESSAGE]
    with tempfile.TemporaryDirectory(prefix="edgepress-bench-") as temporary:
        folder = Path(temporary)
        web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=temporary))
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with fleet(folder / "fleet", agents) as (client, names):
            broker = client.health().broker
            watch = Stopwatch(broker)
            for number in range(rounds):
                data = os.urandom(size)
                path = folder / f"file-{number}.onnx"
                path.write_bytes(data)
                url = f"http://127.0.0.1:{web.server_port}/{path.name}"
                ways = {
                    EDGEPRESS: lambda path=path: by_edgepress(client, watch, path, names),
                    MESSAGE: lambda data=data: by_one_message(broker, folder, data, names),
                    HTTP: lambda url=url: by_http(url, folder, names),
                }
                for way, seconds in found.items():
                    seconds.append(ways[way]())
                advance()
        web.shutdown()
    return found


class Quiet(SimpleHTTPRequestHandler):
    """Without a log line per request."""

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=5.0, help="size of the file, in megabytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    size = int(options.mb * 1e6)
    print(f"{options.mb:g} MB of random bytes, {options.rounds} interleaved rounds, {os.cpu_count()} cores\n")
    print("| boards | way | speed, HTTP = 1 | delivered MB/s | spread |\n| --- | --- | --- | --- | --- |")
    with Progress(transient=True) as progress:
        task = progress.add_task("pushing", total=len(options.agents) * options.rounds)
        for agents in options.agents:
            found = measure(size, options.rounds, agents, lambda: progress.advance(task))
            base = statistics.median(found[HTTP])
            for way, seconds in found.items():
                middle = statistics.median(seconds)
                spread = (max(seconds) - min(seconds)) / middle
                speed, rate = base / middle, agents * size / 1e6 / middle
                progress.console.print(f"| {agents} | {way} | {speed:.2f} | {rate:.0f} | {spread:.0%} |", markup=False)


if __name__ == "__main__":
    main()
