"""The controller that a command starts for itself, finds, shares, or is refused."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from typing import Any

import msgspec


def test_where_no_controller_runs_one_does_for_the_command(shell: Any) -> None:
    done = shell.run("devices", "--json")
    assert msgspec.json.decode(done.stdout) == {"devices": []}
    assert "started one for this command" in done.stderr
    told = shell.run("devices").stderr
    assert "start `edgepress serve`" in told
    assert "mqtt://" not in told, "the address of a broker that ends with this command"
    assert not (shell.data_dir / "controller.json").exists()
    assert oct((shell.data_dir / "keys" / "edgepress.key").stat().st_mode)[-3:] == "600"


def test_the_controller_of_a_command_that_is_killed_goes_with_it(shell: Any) -> None:
    script = (
        "import sys; from pathlib import Path; from edgepress_host.client.transient import transient_controller\n"
        "with transient_controller(Path(sys.argv[1]), print) as running:\n"
        "    print('pid', running.pid, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(shell.data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = next(int(line.split()[1]) for line in process.stdout if line.startswith("pid "))
        watched = os.pidfd_open(pid)
        process.kill()
        ended, _, _ = select.select([watched], [], [], 15)
        os.close(watched)
    assert ended


def test_a_controller_file_left_by_a_crash_is_passed_over(shell: Any) -> None:
    shell.run("keys", "init")
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale = {"url": "http://127.0.0.1:9", "token_file": "/nowhere", "pid": ended.pid}
    (shell.data_dir / "controller.json").write_bytes(msgspec.json.encode(stale))
    assert shell.json("trials") == {"trials": []}


def left_over(shell: Any, url: str) -> None:
    """The file of a controller that was killed, whose process id is another program's by now."""
    shell.run("keys", "init")
    token = shell.data_dir / "token"
    token.write_text("x")
    token.chmod(0o600)
    running = {"url": url, "token_file": str(token), "pid": os.getpid()}
    (shell.data_dir / "controller.json").write_bytes(msgspec.json.encode(running))


def test_a_controller_that_does_not_answer_is_one_line(shell: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        left_over(shell, f"http://127.0.0.1:{server.getsockname()[1]}")

        def hang_up() -> None:
            for _ in range(2):
                server.accept()[0].close()

        answering = threading.Thread(target=hang_up)
        answering.start()
        assert "does not answer" in shell.error("devices", expect=1)
        answering.join()


def test_a_process_id_that_is_another_programs_by_now_is_no_controller(shell: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    left_over(shell, url)
    assert shell.json("devices") == {"devices": []}


def test_two_commands_at_once_share_one_controller(shell: Any) -> None:
    both = [
        subprocess.Popen(shell.command("devices", "--json"), env=shell.environment, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert [msgspec.json.decode(out) for out, _ in answers] == [{"devices": []}] * 2


def test_a_command_that_started_a_controller_ends_after_those_that_use_it(shell: Any) -> None:
    script = (
        "import sys; from pathlib import Path; from edgepress_host.client.client import connect\n"
        "with connect(Path(sys.argv[1]), lambda line: print(line, flush=True)) as client:\n"
        "    print('in', flush=True); sys.stdin.readline(); print(client.devices(), flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(shell.data_dir)]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
        assert process.stdout is not None
        assert "in\n" in iter(process.stdout.readline, "")
        return process

    with start() as starter, start() as user:
        assert starter.stdin is not None
        assert starter.stdout is not None
        starter.stdin.write("\n")
        starter.stdin.flush()
        assert any("waiting for it to end" in line for line in starter.stdout)
        assert user.communicate("\n", timeout=30)[0] == "()\n"
        assert starter.wait(30) == user.returncode == 0
