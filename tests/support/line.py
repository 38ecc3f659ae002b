"""A whole fleet on this machine: a real controller with its broker, and real agents, driven by commands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import psutil
import pytest
from edgepress_host.cli import main
from edgepress_protocol.version import SPOKEN
from started import speaking


class Shell:
    """Runs `edgepress` on one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.environment = {**os.environ, "EDGEPRESS_HOME": str(data_dir), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        self.environment.pop("EDGEPRESS_BROKER", None)

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "edgepress_host.cli", *map(str, arguments)]

    def run(self, *arguments: object, expect: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Go through `main` in this process, which saves each test the start of an interpreter."""
        words = [str(argument) for argument in arguments]
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            contextlib.chdir(cwd or Path.cwd()),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as left,
        ):
            main(words)
        assert left.value.code == expect, (out.getvalue(), err.getvalue())
        return subprocess.CompletedProcess(words, expect, out.getvalue(), err.getvalue())

    def json(self, *arguments: object, expect: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", expect=expect).stdout)

    def error(self, *arguments: object, expect: int = 2) -> str:
        """The one line of a command that fails."""
        lines = self.run(*arguments, expect=expect).stderr.strip().splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], lines
        return lines[-1].removeprefix("error: ")


class Line(Shell):
    """A controller and agents around one data directory."""

    def __init__(self, data_dir: Path, *serve: object, speaks: tuple[int, int] = SPOKEN) -> None:
        super().__init__(data_dir)
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.run("keys", "init")
        command = [sys.executable, "-m", "edgepress_host.cli", "serve", *map(str, serve)]
        environment = self.environment | speaking(data_dir.parent / "host-edition", speaks)
        with (data_dir.parent / "controller.log").open("ab") as log:
            self.controller = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log)
        assert self.controller.stdout is not None
        assert self.controller.stdout.readline()
        self.broker = self._broker()

    def _broker(self) -> str:
        import httpx

        running = msgspec.json.decode((self.data_dir / "controller.json").read_bytes())
        broker: str = httpx.get(f"{running['url']}/v1/health", trust_env=False).json()["broker"]
        return broker

    def start_agent(
        self,
        name: str,
        *more: object,
        python: Path = Path(sys.executable),
        trust: Path | None = None,
        speaks: tuple[int, int] = SPOKEN,
    ) -> None:
        given = {
            "broker": self.broker,
            "state-dir": self.data_dir.parent / name,
            "trust": trust or self.data_dir / "keys" / "edgepress.pub",
            "measure-lock": self.data_dir.parent / "measure.lock",
            "reconnect-max": 2,
        }
        options = [word for option, value in given.items() for word in (f"--{option}", str(value))]
        command = [python, "-m", "edgepress_agent", "run", "--id", name, *options]
        environment = self.environment | speaking(self.data_dir.parent / f"{name}-edition", speaks)
        with (self.data_dir.parent / f"{name}.log").open("ab") as log:
            self.agents[name] = subprocess.Popen(
                [*map(str, command), *map(str, more)], env=environment, stdout=log, stderr=log
            )

    def kill_agent(self, name: str) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        process = self.agents.pop(name)
        process.kill()
        process.wait(10)

    def kill_broker(self) -> None:
        """SIGKILL the embedded broker; it forgets everything, and the controller starts another."""
        (broker,) = [
            child
            for child in psutil.Process(self.controller.pid).children()
            if "edgepress_host.server.broker_process" in child.cmdline()
        ]
        broker.kill()

    def stop_agent(self, name: str) -> None:
        process = self.agents.pop(name)
        process.terminate()
        process.wait(10)

    def wait_for(self, **presence: bool) -> None:
        """Wait until devices are online, or offline, by the controller's own long poll."""
        from edgepress_host.client.client import connect

        def seen() -> bool:
            online = {view.id: view.online for view in client.devices()}
            return all(online.get(name.replace("_", "-")) == wanted for name, wanted in presence.items())

        with connect(self.data_dir, print) as client:
            client.follow(seen, tick_s=5.0)

    def stop(self) -> None:
        for name in list(self.agents):
            self.stop_agent(name)
        self.controller.send_signal(signal.SIGTERM)
        self.controller.wait(15)
        assert self.controller.stdout is not None
        self.controller.stdout.close()
