"""`edgepress-agent status` and `logs`: how this board's agent stands, with or without systemd."""

import asyncio
import json
import os
import subprocess
import sys

import pytest


def asked(*arguments, **environment):
    command = [sys.executable, "-m", "edgepress_agent", *map(str, arguments)]
    everything = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=everything)


@pytest.fixture
def config(tmp_path, scene):
    path = tmp_path / "agent.toml"
    path.write_text(f'broker = "mqtt://pi:hunter2@127.0.0.1:{scene.broker.port}"\nid = "pi"\nstate_dir = "pi"\n')
    return path


def test_it_says_what_runs_and_what_is_active(scene, config):
    pytest.importorskip("onnxruntime")

    async def story():
        model = scene.model()
        async with scene.host() as host:
            scene.agent.start()
            await host.want(deployment=scene.deployment(model), manifests=host.offer(model))
            await host.until(lambda: host.states and host.states[-1].active)

    asyncio.run(story())
    running = json.loads(asked("status", "--config", config, "--json").stdout)
    assert running["pid"] == scene.agent.process.pid
    assert (running["active"], running["previous"], running["generation"]) == ("tiny-0", None, 1)
    assert running["files_bytes"] > 0
    scene.agent.stop()
    said = asked("status", "--config", config)
    assert said.returncode == 0, said.stderr
    shown = dict(line.split(None, 1) for line in said.stdout.splitlines())
    assert shown["agent"] == "not running"
    assert shown["active"] == "tiny-0"
    assert shown["broker"] == f"mqtt://127.0.0.1:{scene.broker.port}"
    assert "hunter2" not in said.stdout


def test_an_agent_that_was_never_started_and_a_config_that_lacks_something(config, tmp_path):
    never = asked("status", "--config", config)
    assert (never.returncode, "has not been started" in never.stderr) == (2, True)
    config.write_text('id = "pi"\n')
    lacks = asked("status", "--config", config)
    assert (lacks.returncode, "no broker, state_dir in it" in lacks.stderr) == (2, True)


def test_logs_without_a_journal_is_one_line():
    done = asked("logs", PATH="/nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "journalctl is not there" in done.stderr


def stand_in(folder, name, code):
    """A program of systemd's, which writes down how it was called."""
    script = folder / name
    script.write_text(f'#!/bin/sh\necho "$0" "$@" >> {folder}/called\n{code}\n')
    script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_it_says_what_systemd_says_of_the_service(tmp_path, scene, config):
    scene.agent.start()

    async def story():
        async with scene.host() as host:
            await host.until(lambda: host.states)

    asyncio.run(story())
    said = "LoadState=loaded\nActiveState=active\nSubState=running\nStatusText=connected to mqtt://b"
    path = stand_in(tmp_path, "systemctl", f"printf '{said}\n'")
    shown = json.loads(asked("status", "--config", config, "--json", **path).stdout)
    assert (shown["service"], shown["said"]) == ("active (running)", "connected to mqtt://b")
    assert " show edgepress-agent " in (tmp_path / "called").read_text()
    path = stand_in(tmp_path, "systemctl", "echo LoadState=not-found")
    assert json.loads(asked("status", "--config", config, "--json", **path).stdout)["service"] is None


def test_logs_are_those_of_the_service(tmp_path):
    path = stand_in(tmp_path, "journalctl", "echo 2026-01-01 a line")
    done = asked("logs", "--lines", "7", "--follow", **path)
    assert (done.returncode, done.stdout) == (0, "2026-01-01 a line\n")
    called = (tmp_path / "called").read_text().split()[1:]
    assert called == ["--unit=edgepress-agent", "--lines=7", "--output=short-iso", "--follow"]
    assert asked("logs", **path).returncode == 0
    assert "--no-pager" in (tmp_path / "called").read_text()
