"""What an idle agent costs a board: memory, processor, disk, and the time until it is connected.

`python benchmarks/agent.py [--starts 5] [--idle-s 120] [--write]` starts the real daemon against a real broker with
TLS, as the systemd unit would (watchdog and all), waits, and then gives it a trial. `--write` puts the table into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "device_agent"))

from compression.page import machine, table, write  # noqa: E402
from conftest import Broker, Host, Model, trial  # noqa: E402
from edgepress_protocol.signing import PrivateKey  # noqa: E402
from edgepress_protocol.topics import Topics  # noqa: E402

WAIT_S = 60.0
GOAL_MIB, GOAL_PERCENT, GOAL_CONNECTED_S = 32.0, 0.2, 2.0


@dataclass(frozen=True)
class Cost:
    """Of one process, from /proc: resident and proportional memory, processor time so far, bytes sent to disks."""

    rss_mib: float
    pss_mib: float
    cpu_s: float
    written_bytes: int
    numpy: bool


def cost(pid: int) -> Cost:
    process = Path("/proc") / str(pid)
    rollup = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
    io = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
    # Nanoseconds on a processor, of each thread: the clock ticks of `stat` are too coarse for what is near nothing.
    ns = sum(int((task / "schedstat").read_text().split()[0]) for task in (process / "task").iterdir())
    return Cost(
        rss_mib=int(rollup["Rss"].split()[0]) / 1024,
        pss_mib=int(rollup["Pss"].split()[0]) / 1024,
        cpu_s=ns / 1e9,
        written_bytes=int(io["write_bytes"]),
        numpy="numpy" in (process / "maps").read_text(),
    )


@contextmanager
def systemd(folder: Path) -> Iterator[dict[str, str]]:
    """systemd's end of the notifications, for the agent to speak to as it would on a board."""
    path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        reading = asyncio.get_running_loop()
        listening.setblocking(False)
        reading.add_reader(listening, listening.recv, 4096)
        yield {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "30000000"}
        reading.remove_reader(listening)


def certificate(folder: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        raise SystemExit("openssl is not installed: no certificate to measure TLS with")
    key, pem = folder / "tls.key", folder / "tls.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*make, "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True)
    return key, pem


class Agent:
    """The daemon, started as its unit starts it."""

    def __init__(self, folder: Path, broker: Broker, ca: Path, trust: Path) -> None:
        self._command = [sys.executable, "-m", "edgepress_agent", "run", "--id", "pi", "--trust", str(trust)]
        self._command += ["--broker", f"mqtts://localhost:{broker.port}", "--ca", str(ca)]
        self.state_dir = folder / "state"
        self._command += ["--state-dir", str(self.state_dir)]

    @contextmanager
    def running(self, environment: dict[str, str]) -> Iterator[int]:
        log = subprocess.DEVNULL
        # As it is installed: byte code that is there already.
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with subprocess.Popen(self._command, stderr=log, env={**kept, **environment}) as process:
            try:
                yield process.pid
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(WAIT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise


@asynccontextmanager
async def host_over_tls(broker: Broker, ca: Path, key: PrivateKey) -> AsyncIterator[Host]:
    import ssl

    import aiomqtt

    topics = Topics("default")
    context = ssl.create_default_context(cafile=ca)
    version = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client("localhost", broker.port, tls_context=context, protocol=version) as client:
        host = Host(client, key, topics)
        await client.subscribe([(topics.every_device(leaf), 1) for leaf in ("up", "state", "need", "report", "tm")])
        listening = asyncio.create_task(host.listen())
        try:
            yield host
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def measured(folder: Path, starts: int, idle_s: float) -> list[tuple[str, str, str]]:
    key = PrivateKey.generate("bench")
    (folder / "host.pub").write_text(key.public.to_text())
    tls_key, ca = certificate(folder)
    broker = Broker(folder, f'[v5.1.tls]\ncertpath = "{ca}"\nkeypath = "{tls_key}"\n')
    broker.start()
    agent = Agent(folder, broker, ca, folder / "host.pub")
    try:
        with systemd(folder) as environment:
            async with host_over_tls(broker, ca, key) as host:
                connected_s = [await until_connected(agent, environment, host) for _ in range(starts + 1)][1:]
                with agent.running(environment) as pid:
                    await host.want()
                    await host.until(lambda: host.telemetry and host.states[-1].generation == 1, WAIT_S)
                    at_rest, idle = await while_idle(pid, idle_s, agent.state_dir)
                    model = Model(key)
                    await host.want(trials=(trial(model),), manifests=host.offer(model))
                    await host.until(lambda: host.reports, WAIT_S)
                    await host.want()
                    await host.until(lambda: host.states[-1].waiting_reports == 0, WAIT_S)
                    after = cost(pid)
    finally:
        broker.kill()
    percent = 100 * (idle.cpu_s - at_rest.cpu_s) / idle_s
    return [
        (
            "connected after its start, median (longest)",
            f"≤ {GOAL_CONNECTED_S:g} s",
            f"{statistics.median(connected_s):.2f} s ({max(connected_s):.2f} s) of {starts}",
        ),
        ("memory while idle, RSS (PSS)", f"≤ {GOAL_MIB:g} MiB", f"{idle.rss_mib:.1f} MiB ({idle.pss_mib:.1f} MiB)"),
        ("memory after a trial, RSS (PSS)", "", f"{after.rss_mib:.1f} MiB ({after.pss_mib:.1f} MiB)"),
        (f"processor over {idle_s:g} s idle, of one core", f"≤ {GOAL_PERCENT:g} %", f"{percent:.3f} %"),
        ("written to disks while idle", "0 bytes", f"{idle.written_bytes - at_rest.written_bytes} bytes"),
        ("numpy in the process", "no", "yes" if after.numpy else "no"),
    ]


async def until_connected(agent: Agent, environment: dict[str, str], host: Host) -> float:
    host.presence.clear()
    began = time.monotonic()
    with agent.running(environment):
        await host.until(lambda: any(said.online for said in host.presence), WAIT_S)
        took_s = time.monotonic() - began
    await host.until(lambda: not host.presence[-1].online, WAIT_S)
    return took_s


async def while_idle(pid: int, idle_s: float, state_dir: Path) -> tuple[Cost, Cost]:
    changed = state_of(state_dir)
    before = cost(pid)
    await asyncio.sleep(idle_s)
    after = cost(pid)
    if state_of(state_dir) != changed:
        raise SystemExit(f"{state_dir} changed while the agent was idle")
    return before, after


def state_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--idle-s", type=float, default=120.0)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measured(Path(folder), options.starts, options.idle_s))
    text = (
        f"{table(('idle agent, over TLS', 'goal', 'measured'), rows)}\n\n{machine()}; Python {sys.version.split()[0]}."
    )
    print(text)
    if options.write:
        write("agent", text)


if __name__ == "__main__":
    main()
