"""A user's mistake is one line and exit status 2."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from edgepress_protocol.signing import PrivateKey

AGENT = [sys.executable, "-m", "edgepress_agent"]


def agent(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, **environment}
    return subprocess.run([*AGENT, *arguments], capture_output=True, text=True, timeout=60, env=everything, check=False)


@pytest.fixture
def given(tmp_path, trust):
    def command(**changed):
        options = {
            "--broker": "mqtt://127.0.0.1:1",
            "--id": "pi",
            "--state-dir": str(tmp_path / "state"),
            "--trust": str(trust),
            "--connect-timeout": "0.3",
            "--serve": "off",
        } | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        return [*AGENT, "run", *(word for pair in options.items() if pair[1] is not None for word in pair)]

    def run(**changed):
        return agent(*command(**changed)[len(AGENT) :])

    run.command = command
    return run


def one_line(done: subprocess.CompletedProcess[str], status: int = 2) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == status, done.stderr
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    if status == 2:
        assert done.stderr.strip() == lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"trust": None}, "Missing option '--trust'"),
        ({"trust": "nowhere.pub"}, "--trust nowhere.pub: No such file"),
        ({"broker": "http://pi:hunter2@example"}, "expected mqtt://"),
        ({"broker": "mqtt://host:99999"}, "expected mqtt://"),
        ({"broker": "host"}, "expected mqtt://"),
        ({"id": "a/b"}, "use 1 to 64 letters"),
        ({"fleet": "#"}, "use 1 to 64 letters"),
        ({"serve": "nonsense"}, "expected HOST:PORT, unix:PATH or off"),
        ({"serve": "127.0.0.1:\u00b2"}, "expected HOST:PORT, unix:PATH or off"),
        ({"serve": "unix:/" + "x" * 200}, "more than 107 bytes"),
        ({"ca": "ca.pem"}, "--ca is for mqtts://"),
        ({"broker": "mqtts://host", "ca": "nowhere.pem"}, "--ca nowhere.pem: no such file"),
        ({"password_file": "nowhere"}, "--password-file nowhere: no such file"),
        ({"password_file": "."}, "--password-file .: Is a directory"),
        ({"state_dir": "/proc/nowhere"}, "cannot be written"),
        ({"reconnect_max": "inf"}, "0.2<=x<=86400"),
        ({"state_dir": "st\udcff"}, "an option has a character that is no text"),
        ({"root": "nowhere"}, "Directory 'nowhere' does not exist"),
    ],
)
def test_a_mistake_is_one_line(given, changed, line):
    said = one_line(given(**changed))
    assert line in said
    assert "hunter2" not in said, "a password is never printed"


def test_modules_come_from_where_it_is_installed_and_never_from_where_it_is_started(given, tmp_path):
    """The command becomes the daemon in another interpreter, which must not look into the folder that it starts in."""
    for name in ("asyncio", "edgepress_agent", "linecache", "ssl"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from here')")
    program = Path(sys.executable).with_name("edgepress-agent")
    command = [program, *given.command()[len(AGENT) :]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert "broker mqtt://127.0.0.1:1: " in one_line(done, 1)


def test_a_private_key_is_not_a_public_one(given, tmp_path):
    (tmp_path / "wrong").write_text(PrivateKey.generate("x").to_text())
    assert "not a public key" in one_line(given(trust=str(tmp_path / "wrong")))


def test_an_unreachable_broker_is_one_line_and_status_1(given):
    said = one_line(given(), status=1)
    assert "broker mqtt://127.0.0.1:1: " in said
    assert "refused" in said
    assert "gave up after 0.3 s" in said


def connects(given, **options) -> bool:
    """Whether it gets as far as being connected, and then is stopped."""
    command = given.command(connect_timeout="5", **options)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "connected to" in line:
                process.terminate()
        return process.wait(20) == 0


def test_a_password_by_url_file_or_environment_and_a_wrong_one_is_one_line(given, guarded, tmp_path, monkeypatch):
    port = guarded('[v5.1.connections.auth]\npi = "hunter2"\n').port
    assert connects(given, broker=f"mqtt://pi:hunter2@127.0.0.1:{port}")
    (tmp_path / "password").write_text("hunter2\n")
    login = {"broker": f"mqtt://127.0.0.1:{port}", "username": "pi"}
    assert connects(given, **login, password_file=str(tmp_path / "password"))
    monkeypatch.setenv("EDGEPRESS_PASSWORD", "hunter2")
    assert connects(given, **login)
    said = one_line(given(broker=f"mqtt://pi:wrong@127.0.0.1:{port}", connect_timeout="1"), status=1)
    assert "closed the connection without an answer; check the password" in said
    assert "wrong" not in said


def test_the_longest_password_goes_through_and_a_longer_one_is_refused(given, tmp_path):
    (tmp_path / "password").write_text("x" * 65_535)
    login = {"username": "pi", "password_file": str(tmp_path / "password")}
    assert "broker mqtt://127.0.0.1:1: " in one_line(given(**login), 1)
    (tmp_path / "password").write_text("x" * 65_536)
    assert "MQTT takes 65,535 bytes at most" in one_line(given(**login))


def test_tls_with_its_own_authority_and_never_without(given, guarded, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate to test with")
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    port = guarded(f'[v5.1.tls]\ncertpath = "{certificate}"\nkeypath = "{key}"\n').port
    assert connects(given, broker=f"mqtts://localhost:{port}", ca=str(certificate))
    said = one_line(given(broker=f"mqtts://localhost:{port}", connect_timeout="1"), status=1)
    assert "certificate verify failed" in said
    said = one_line(given(broker=f"mqtt://localhost:{port}", connect_timeout="1"), status=1)
    assert "mqtt:// or mqtts://" in said


_AUTHORITY = """\
[ca]
default_ca = own
[own]
database = {0}/index
serial = {0}/serial
new_certs_dir = {0}
default_md = sha256
policy = any
x509_extensions = own_ca
[any]
commonName = supplied
[own_ca]
basicConstraints = critical, CA:TRUE
subjectKeyIdentifier = hash
subjectAltName = DNS:localhost
"""


@pytest.mark.parametrize(
    ("days", "words"), [(("20990101", "21000101"), "is not yet valid"), (("20010101", "20020101"), "has expired")]
)
def test_a_certificate_of_another_time_names_the_clock_of_this_board(given, guarded, tmp_path, days, words):
    """A board without a clock that survives a power cut sees good certificates so, until its clock is set."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate to test with")
    (tmp_path / "ca.cnf").write_text(_AUTHORITY.format(tmp_path))
    (tmp_path / "index").write_text("")
    (tmp_path / "serial").write_text("01\n")
    key, asked, certificate = (tmp_path / f"tls.{part}" for part in ("key", "csr", "pem"))
    make = ["openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", key]
    subprocess.run([*make, "-out", asked], check=True, capture_output=True)
    first, last = (f"{day}000000Z" for day in days)
    sign = ["openssl", "ca", "-batch", "-selfsign", "-config", tmp_path / "ca.cnf", "-keyfile", key, "-in", asked]
    dated = ["-startdate", first, "-enddate", last, "-notext", "-out", certificate]
    subprocess.run([*sign, *dated], check=True, capture_output=True)
    port = guarded(f'[v5.1.tls]\ncertpath = "{certificate}"\nkeypath = "{key}"\n').port
    said = one_line(given(broker=f"mqtts://localhost:{port}", ca=str(certificate), connect_timeout="1"), status=1)
    assert words in said
    assert f"; the clock of this board says {time.strftime('%Y-%m-%d', time.gmtime())}" in said


def test_a_second_agent_in_the_same_folder_is_refused(agent_running, given):
    said = one_line(given(state_dir=str(agent_running.state_dir)))
    assert f"another agent (process {agent_running.process.pid}) runs in it" in said


def test_a_state_folder_belongs_to_one_device(agent_running, given):
    agent_running.stop()
    said = one_line(given(state_dir=str(agent_running.state_dir), id="other"))
    assert "holds the state of device 'pi'" in said


@pytest.fixture
def agent_running(scene):
    import asyncio

    async def story():
        async with scene.host() as host:
            scene.agent.start()
            await host.want(generation=1)
            await host.until(lambda: host.states and host.states[-1].generation == 1)

    asyncio.run(story())
    return scene.agent


def test_a_hanging_broker_does_not_hold_the_stop_up(tmp_path, trust):
    """It accepts the connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        accepted = threading.Event()
        connections = []

        def accept():
            connections.append(silent.accept()[0])
            accepted.set()

        threading.Thread(target=accept, daemon=True).start()
        broker = f"mqtt://127.0.0.1:{silent.getsockname()[1]}"
        command = [*AGENT, "run", "--broker", broker, "--id", "pi", "--trust", str(trust), "--serve", "off"]
        process = subprocess.Popen([*command, "--state-dir", str(tmp_path / "pi")], stderr=subprocess.DEVNULL)
        assert accepted.wait(30)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 2.5
        connections[0].close()


def test_a_full_disk_shows_before_the_transfer_and_is_recovered_from(scene):
    """A limit on the size of files stands for the disk: posix_fallocate fails as it does there."""
    import asyncio

    async def story():
        model = scene.model(600_000, chunk_bytes=65536)
        async with scene.host() as host:
            scene.agent.start()
            await host.until(lambda: host.states)
            pid = scene.agent.process.pid
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            manifests = host.offer(model)
            await host.want(deployment=scene.deployment(model, 1), manifests=manifests)
            await host.until(lambda: (s := host.states[-1].deployment) and s.phase == "failed")
            assert host.states[-1].deployment.reason.startswith("disk full: no room for ")
            assert not any(wire == model.manifest.model.wire.sha256 for wire, _ in host.sent)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await host.want(deployment=scene.deployment(model, 2), manifests=manifests)
            await host.until(
                lambda: (s := host.states[-1].deployment) and s.phase in {"active", "failed"} and s.reason[:4] != "disk"
            )

    asyncio.run(story())


def test_an_agent_starts_on_a_full_disk(given, tmp_path):
    """What is active must be served again after a power failure, whatever fills the disk."""
    limit = "import os, resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (0, -1)); os.execv(sys.argv[1], sys.argv[1:])"
    (tmp_path / "state").mkdir()
    command = [sys.executable, "-c", limit, *given.command()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert one_line(done, 1).startswith("error: broker mqtt://127.0.0.1:1")


def test_probe_and_version_speak(tmp_path):
    device = json.loads(agent("probe", "--json").stdout)
    assert device["board"]["cores"] >= 1
    assert agent("probe").stdout.strip()
    assert agent("version").stdout.startswith("edgepress-agent ")
    assert agent("--version").stdout == f"edgepress-agent, version {version('edgepress')}\n"


def test_without_a_command_it_is_its_help():
    done = agent()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == agent("--help").stdout


def test_shell_completion_is_there():
    done = agent(_EDGEPRESS_AGENT_COMPLETE="bash_source")
    assert "_edgepress_agent_completion" in done.stdout
