"""`edgepress-agent install` on a system below another root, as an image is made; systemd's own tools judge the unit."""

import shutil
import stat
import subprocess

import pytest
from daemon_lab import agent, needs_systemd
from edgepress_agent.install import facts as board
from edgepress_agent.install import plan
from edgepress_agent.install.unit import unit
from edgepress_protocol.signing import PrivateKey

GROUPS = "root:x:0:\nvideo:x:44:\nrender:x:106:\n"


@pytest.fixture
def root(tmp_path):
    """A system of a Jetson with JetPack 6: no group i2c, a GPU behind several nodes."""
    root = tmp_path / "root"
    for node in ("null", "nvmap", "nvhost-ctrl", "nvgpu/igpu0/ctrl", "dri/renderD128"):
        (root / "dev" / node).parent.mkdir(parents=True, exist_ok=True)
        (root / "dev" / node).touch()
    (root / "etc").mkdir()
    (root / "etc/group").write_text(GROUPS)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/hostname").write_text("jetson 1.local\n")
    return root


@pytest.fixture
def trust(tmp_path):
    path = tmp_path / "host.pub"
    path.write_text(PrivateKey.generate("host").public.to_text())
    return path


def facts(root, program="/opt/edgepress/bin/edgepress-agent"):
    return board.facts(root, program, config=plan.CONFIG, unit=plan.UNIT)


def lines(root, **more):
    return unit(facts(root, **more), plan.CONFIG).splitlines()


def test_the_unit_names_the_groups_and_devices_that_are_there_and_no_others(root):
    said = lines(root)
    assert "SupplementaryGroups=render video" in said
    assert [line for line in said if line.startswith("DeviceAllow")] == [
        "DeviceAllow=/dev/nvhost-ctrl rw",
        "DeviceAllow=/dev/nvmap rw",
        "DeviceAllow=/dev/nvgpu/igpu0/ctrl rw",
        "DeviceAllow=/dev/dri/renderD128 rw",
    ]
    assert "DevicePolicy=closed" in said
    (root / "dev/i2c-1").touch()
    assert "SupplementaryGroups=render video" in lines(root), (
        "a group that is missing would keep the unit from starting"
    )
    (root / "etc/group").write_text(GROUPS + "i2c:x:111:\n")
    assert "SupplementaryGroups=i2c render video" in lines(root)


RELIED_ON = """
Type=notify
NotifyAccess=main
WatchdogSec=30
Restart=always
RestartSec=5
StartLimitIntervalSec=0
OOMPolicy=continue
TimeoutStopSec=10
ExecStart=/opt/edgepress/bin/edgepress-agent run --config /etc/edgepress/agent.toml
ConditionPathExists=/etc/edgepress/agent.toml
WantedBy=multi-user.target
User=edgepress
Group=edgepress
StateDirectory=edgepress
StateDirectoryMode=0700
RuntimeDirectory=edgepress
RuntimeDirectoryMode=0755
WorkingDirectory=/var/lib/edgepress
UMask=0027
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
PrivateTmp=yes
PrivateIPC=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
"""
"""Each of these lines keeps a board working, or a stranger out."""


def test_the_service_is_watched_hardened_and_nobodys_but_its_own(root):
    said = lines(root)
    assert [line for line in RELIED_ON.split("\n") if line not in said] == []


def test_a_board_without_any_of_them_and_an_image_without_dev(root):
    shutil.rmtree(root / "dev")
    image = "\n".join(lines(root))
    assert "DeviceAllow" not in image
    assert "DevicePolicy" not in image, "what cannot be seen must not be shut out"
    assert "SupplementaryGroups=render video" in image
    (root / "dev").mkdir()
    (root / "dev/null").touch()
    assert "SupplementaryGroups" not in "\n".join(lines(root))
    assert "DevicePolicy=closed" in lines(root)


def test_an_agent_in_a_home_folder_is_not_hidden_from_its_own_service(root):
    assert "ProtectHome=yes" in lines(root)
    assert "ProtectHome=read-only" in lines(root, program="/home/pi/venv/bin/edgepress-agent")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(root, tmp_path):
    path = tmp_path / "edgepress-agent.service"
    path.write_text(unit(facts(root, "/bin/true"), plan.CONFIG))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "edgepress-agent" in line]
    assert (done.returncode, ours) == (0, []), done.stderr
    offline = ["systemd-analyze", "security", "--offline=yes", "--threshold=21", str(path)]
    judged = subprocess.run(offline, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout[-2000:]


@needs_systemd
def test_install_makes_user_folders_configuration_and_unit_and_says_so(root, trust):
    (root / "sys/class/powercap/intel-rapl:0").mkdir(parents=True)
    broker = "mqtts://pi:hunter2@broker.lan"
    asked = ("--root", root, "--broker", broker, "--trust", trust, "--program", "/opt/edgepress/bin/edgepress-agent")
    done = agent("install", *asked)
    assert done.returncode == 0, done.stderr
    assert [line.split(" ")[:2] for line in done.stdout.splitlines()] == [
        ["wrote", "/etc/sysusers.d/edgepress.conf"],
        ["ran", "systemd-sysusers"],
        ["made", "/etc/edgepress"],
        ["wrote", "/etc/edgepress/host.pub"],
        ["wrote", "/etc/edgepress/agent.toml"],
        ["wrote", "/etc/systemd/system/edgepress-agent.service"],
        ["wrote", "/etc/udev/rules.d/70-edgepress-rapl.rules"],
        ["ran", "systemctl"],
    ]
    assert "hunter2" not in done.stdout + done.stderr
    config = root / "etc/edgepress/agent.toml"
    assert config.read_text().splitlines()[1:] == [
        'broker = "mqtts://pi:hunter2@broker.lan"',
        'id = "jetson-1-local"',
        'state_dir = "/var/lib/edgepress"',
        'trust = "/etc/edgepress/host.pub"',
        'serve = "unix:/run/edgepress/serve.sock"',
    ]
    group = board.group_id(root, "edgepress")
    assert (stat.S_IMODE(config.stat().st_mode), config.stat().st_gid) == (0o640, group), "a password may stand there"
    assert "edgepress:" in (root / "etc/passwd").read_text()
    wanted = root / "etc/systemd/system/multi-user.target.wants/edgepress-agent.service"
    assert str(wanted.readlink()) == "/etc/systemd/system/edgepress-agent.service"


@needs_systemd
def test_what_the_broker_wants_is_copied_for_the_service_alone(root, trust, tmp_path):
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    broker = ("--broker", "mqtts://broker.lan", "--username", "pi", "--trust", trust)
    files = ("--password-file", tmp_path / "secret", "--ca", tmp_path / "ca.crt")
    done = agent("install", "--root", root, "--program", "/opt/edgepress/bin/edgepress-agent", *broker, *files)
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    password, authority = root / "etc/edgepress/broker-password", root / "etc/edgepress/ca.pem"
    assert (password.read_text(), stat.S_IMODE(password.stat().st_mode)) == ("hunter2\n", 0o640)
    assert password.stat().st_gid == board.group_id(root, "edgepress")
    assert (authority.read_text(), stat.S_IMODE(authority.stat().st_mode)) == ((tmp_path / "ca.crt").read_text(), 0o644)
    config = (root / "etc/edgepress/agent.toml").read_text()
    password.chmod(0o644)
    (root / "etc/edgepress/agent.toml").unlink()
    again = agent("install", "--root", root, "--program", "/opt/edgepress/bin/edgepress-agent", *broker, *files)
    assert "wrote /etc/edgepress/broker-password" in again.stdout, "anybody could have read it"
    assert stat.S_IMODE(password.stat().st_mode) == 0o640
    assert 'password_file = "/etc/edgepress/broker-password"\n' in config
    assert 'ca = "/etc/edgepress/ca.pem"\n' in config
    assert agent("uninstall", "--root", root, "--purge").returncode == 0
    assert not password.exists()


@needs_systemd
def test_install_twice_changes_nothing_and_uninstall_takes_away_what_it_made(root, trust):
    before = {path for path in root.rglob("*") if path.is_file() and "passwd" not in path.name}
    program = ("--root", root, "--program", "/opt/edgepress/bin/edgepress-agent")
    assert agent("install", *program, "--broker", "mqtt://b", "--trust", trust).returncode == 0
    config = root / "etc/edgepress/agent.toml"
    config.write_text(config.read_text() + 'log_level = "debug"\n')
    again = agent("install", *program)
    assert again.returncode == 0, again.stderr
    assert not [line for line in again.stdout.splitlines() if line.startswith(("wrote", "made"))]
    assert "debug" in config.read_text(), "what the user has edited is kept"
    changed = agent("install", *program, "--broker", "mqtt://other", "--trust", trust)
    assert (changed.returncode, "is there already: edit it" in changed.stderr) == (2, True)

    assert agent("uninstall", "--root", root).returncode == 0
    assert config.exists()
    assert not (root / "etc/systemd/system/edgepress-agent.service").exists()
    purged = agent("uninstall", "--root", root, "--purge")
    assert purged.returncode == 0, purged.stderr
    left = {path for path in root.rglob("*") if path.is_file() or path.is_symlink()} - before
    accounts = {
        root / "etc" / f"{name}{mark}" for name in ("passwd", "group", "shadow", "gshadow") for mark in ("", "-")
    }
    assert left <= accounts | {root / "etc/.pwd.lock"}


def test_a_dry_run_touches_nothing_and_shows_no_password(root, trust):
    before = sorted(root.rglob("*"))
    done = agent("install", "--root", root, "--dry-run", "--broker", "mqtt://pi:hunter2@b", "--trust", trust)
    assert done.returncode == 0, done.stderr
    assert "would write /etc/edgepress/agent.toml" in done.stdout
    assert "hunter2" not in done.stdout
    assert sorted(root.rglob("*")) == before
    assert agent("uninstall", "--root", root, "--dry-run", "--purge").returncode == 0
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (("--broker", "mqtt://b"), "--trust missing"),
        (("--id", "pi"), "--broker and --trust missing"),
        (("--broker", "http://b", "--trust", "TRUST"), "expected mqtt://"),
        (("--broker", "mqtt://b", "--trust", "nowhere.pub"), "--trust nowhere.pub: No such file"),
        (("--broker", "mqtt://b", "--trust", "TRUST", "--id", "a/b"), "--id"),
        (("--broker", "mqtt://b", "--trust", "TRUST", "--password-file", "none"), "--password-file none: No such file"),
        (("--broker", "mqtt://b", "--trust", "TRUST", "--fleet", "#"), "--fleet"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_installed(root, trust, asked, line):
    before = sorted(root.rglob("*"))
    done = agent("install", "--root", root, *(str(trust) if word == "TRUST" else word for word in asked))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert line in done.stderr
    assert sorted(root.rglob("*")) == before


def test_a_configuration_that_would_not_start_is_found_at_the_installation(root):
    (root / "etc/edgepress").mkdir()
    (root / "etc/edgepress/agent.toml").write_text("brokr = 'mqtt://b'\n")
    done = agent("install", "--root", root, "--dry-run")
    assert done.returncode == 2
    assert "unknown key 'brokr'; did you mean 'broker'?" in done.stderr


def test_an_agent_that_the_service_could_not_start_is_refused(tmp_path):
    closed = tmp_path / "closed"
    (closed / "bin").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(board.UsageError, match="other users cannot enter"):
        board.check_reachable(f"{closed}/bin/edgepress-agent run")
