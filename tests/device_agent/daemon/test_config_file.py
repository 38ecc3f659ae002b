"""`edgepress-agent run --config FILE`: every option of the command line, and one line for a mistake."""

import subprocess
import sys

import pytest
from edgepress_agent.cli.config_file import options_of, read_config
from edgepress_agent.cli.run import run
from edgepress_protocol.errors import UsageError
from edgepress_protocol.signing import PrivateKey

EVERYTHING = """\
broker = "mqtts://broker.lan:8883"
id = "pi-1"
fleet = "attic"
state_dir = "/var/lib/edgepress"
trust = "host.pub"
root = "/"
serve = "unix:/run/edgepress/serve.sock"
measure_lock = "/run/edgepress/measure.lock"
runtime = ["onnxruntime"]
username = "pi"
password_file = "password"
ca = "ca.pem"
connect_timeout = 5
keepalive = 20
reconnect_max = 60.5
log_level = "warning"
"""


def agent(*arguments):
    command = [sys.executable, "-m", "edgepress_agent", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "agent.toml"

    def write(text):
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_every_option_of_the_command_line_can_stand_in_the_file(config, tmp_path):
    values = read_config(config(EVERYTHING), run)
    assert {line.split(" ")[0] for line in EVERYTHING.splitlines()} == set(options_of(run))
    assert values["device_id"] == "pi-1"
    assert values["connect_timeout"] == 5.0
    assert values["runtime"] == ["onnxruntime"]
    assert values["trust"] == str(tmp_path / "host.pub"), "a relative path is one from the file's folder"
    assert values["state_dir"] == "/var/lib/edgepress"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("brokr = 'mqtt://x'", "unknown key 'brokr'; did you mean 'broker'?"),
        ("zzz = 1", "unknown key 'zzz'; known are broker, ca, connect_timeout, fleet, id,"),
        ("password = 'hunter2'", "unknown key 'password'; write the password alone into a file"),
        ("config = 'other.toml'", "unknown key 'config'"),
        ("keepalive = '15'", "keepalive: expected a whole number, got '15'"),
        ("keepalive = true", "keepalive: expected a whole number, got True"),
        ("keepalive = 1", "keepalive: 1 is not in the range 2<=x<=3600"),
        ("reconnect_max = 'soon'", "reconnect_max: expected a number, got 'soon'"),
        ("runtime = 'onnxruntime'", "runtime: expected a list of strings, got 'onnxruntime'"),
        ("id = 7", "id: expected a string, got 7"),
        ("log_level = 'loud'", "log_level: 'loud' is not one of"),
        ("[agent]\nid = 'x'", "unknown key 'agent'"),
        ("id = ", "not a TOML file"),
        ("\x00", "not a TOML file"),
    ],
)
def test_a_mistake_in_the_file_names_the_key_and_the_right_one(config, text, line):
    with pytest.raises(UsageError) as refused:
        read_config(config(text), run)
    assert line in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.toml: No such file"):
        read_config(tmp_path / "nowhere.toml", run)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a TOML file"):
        read_config(tmp_path / "binary", run)


def test_the_command_line_wins_over_the_file_and_the_file_over_what_is_by_default(config, tmp_path):
    (tmp_path / "host.pub").write_text(PrivateKey.generate("host").public.to_text())
    path = config('broker = "mqtt://127.0.0.1:1"\nid = "pi"\nstate_dir = "state"\ntrust = "host.pub"\nserve = "off"\n')
    done = agent("--config", path, "--broker", "mqtt://127.0.0.1:2", "--connect-timeout", "0.3")
    assert done.returncode == 1, done.stderr
    assert "broker mqtt://127.0.0.1:2: " in done.stderr
    assert (tmp_path / "state" / "lock").exists()
    missing = agent("--config", config('id = "pi"\n'))
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "Missing option '--broker'" in missing.stderr
