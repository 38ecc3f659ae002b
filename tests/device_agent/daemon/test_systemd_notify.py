"""The agent tells its supervisor what systemd expects of a service of Type=notify, over a real socket."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from edgepress_agent.notify import supervisor
from edgepress_protocol.signing import PrivateKey

WAIT_S = 30


@pytest.fixture(params=["file", "abstract"])
def systemd(request, tmp_path):
    """systemd's end of NOTIFY_SOCKET, with the name by which a service is told of it."""
    name = f"\0edgepress-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name)
        listening.settimeout(WAIT_S)
        yield listening, name.replace("\0", "@")


def started(tmp_path, **environment):
    (tmp_path / "host.pub").write_text(PrivateKey.generate("host").public.to_text())
    command = [sys.executable, "-m", "edgepress_agent", "run", "--broker", "mqtt://127.0.0.1:1", "--id", "pi"]
    command += ["--state-dir", str(tmp_path / "state"), "--trust", str(tmp_path / "host.pub"), "--serve", "off"]
    return subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)


def test_ready_then_the_watchdog_then_what_goes_wrong_and_stopping(systemd, tmp_path):
    listening, name = systemd
    process = started(tmp_path, NOTIFY_SOCKET=name, WATCHDOG_USEC="400000")
    try:
        said = []
        while said.count("WATCHDOG=1") < 4 or not any(line.startswith("STATUS=") for line in said):
            said.append(listening.recv(4096).decode())
        assert said[0] == "READY=1", said
        assert [line for line in said if line.startswith("STATUS=broker mqtt://127.0.0.1:1: ")]
        process.send_signal(signal.SIGTERM)
        while said[-1] != "STOPPING=1":
            said.append(listening.recv(4096).decode())
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_loop_that_hangs_is_silent(systemd, tmp_path):
    """What makes systemd start it again: a stopped process stands for a loop that does not turn."""
    listening, name = systemd
    process = started(tmp_path, NOTIFY_SOCKET=name, WATCHDOG_USEC="400000")
    try:
        while listening.recv(4096) != b"WATCHDOG=1":
            pass
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED)
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                listening.recv(4096)  # what was said before it stopped
        listening.settimeout(1.0)
        with pytest.raises(TimeoutError):
            listening.recv(4096)
    finally:
        process.kill()
        process.wait()


def test_what_the_agent_starts_does_not_speak_for_it_and_another_process_watchdog_is_not_pinged():
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1", "HOME": "/"}
    assert supervisor(environment).watchdog_s is None
    assert environment == {"HOME": "/"}


def test_a_supervisor_that_is_gone_is_no_trouble(tmp_path):
    supervisor({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "nonsense"}).ready()
    supervisor({}).status("nobody listens")


def test_a_supervisor_that_does_not_read_holds_nothing_up(systemd):
    _, name = systemd
    said = supervisor({"NOTIFY_SOCKET": name})
    for number in range(10_000):  # more than any queue of datagrams takes
        said.status(f"line {number}")
