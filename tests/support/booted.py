"""A system of its own on this machine, which systemd boots: this one's files, seen through an overlay, and our package.

Nothing of it is written to this machine's disk, and it ends with its first process. It shares the network, so that a
broker here is reached from there, and the kernel: units of this machine are left out, for they would set it up anew.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_CGROUPS = Path("/sys/fs/cgroup")
_BOOT = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
root=$1/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
if [ -e /sys/fs/cgroup/cgroup.controllers ]
then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
for folder in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$root/$folder"; done
for node in null zero full random urandom tty
do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/shm" "$root/run/lock"
mount -t tmpfs tmpfs "$root/dev/shm"
echo mounted
rm -rf "$root"/lib/systemd/system/*.wants "$root"/etc/systemd/system/*.wants
mkdir "$root/lib/systemd/system/sysinit.target.wants"
ln -s ../systemd-journald.service "$root/lib/systemd/system/sysinit.target.wants/"
cp "$2" "$root/run/agent.deb"
chroot "$root" dpkg -i /run/agent.deb
cp "$3" "$root/run/host.pub"
chroot "$root" edgepress-agent install --broker "$4" --id "$5" --trust /run/host.pub
exec env -i container=edgepress PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    chroot "$root" /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
"""


class Booted:
    """The running system: its first process, as this machine numbers it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        spaces = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root")
        command = ["nsenter", "--target", str(self._pid), *spaces, "--wd", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def said(self, *words: object) -> str:
        """Run a command that must succeed; returns what it printed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def of_service(self, name: str) -> str:
        """What systemd says of one property of the agent's service."""
        return self.said("systemctl", "show", "--property", name, "--value", "edgepress-agent").strip()


@contextlib.contextmanager
def booted(folder: Path, deb: Path, trust: Path, broker: str, device: str) -> Iterator[Booted]:
    """Boot a system that the package is installed in, and end it; skips the test where that cannot be done here."""
    before = _groups()
    spaces = ("--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup")
    command = ["unshare", *spaces, "sh", "-c", _BOOT, "sh", *map(str, (folder, deb, trust, broker, device))]
    log = folder.parent / "boot.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield Booted(_first(process, log))
    finally:
        _end(process)
        for group in sorted(_groups() - before, reverse=True):
            with contextlib.suppress(OSError):
                group.rmdir()
        print(f"== boot\n{log.read_text()}")


def _first(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until systemd is the first process of its name space."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
            return int(children[0])
        if process.poll() is not None:
            if "mounted" not in log.read_text():
                pytest.skip(f"no system can be booted beside this one: {log.read_text().strip()[-200:]}")
            break
        time.sleep(0.05)
    raise AssertionError(f"it did not boot: {log.read_text()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    try:
        # All of its processes have ended by then, so that their groups can go.
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _groups() -> set[Path]:
    """Control groups that systemd may make: those of its own hierarchy."""
    base = _CGROUPS if (_CGROUPS / "cgroup.controllers").exists() else _CGROUPS / "systemd"
    return {Path(folder) for folder, _, _ in os.walk(base)}


def missing() -> str:
    """What this machine lacks to boot a system with Debian's package; empty where nothing."""
    if os.geteuid() != 0:
        return "needs root, to boot a system of its own"
    programs = ("unshare", "nsenter", "chroot", "dpkg", "dpkg-deb", "/lib/systemd/systemd", "/usr/bin/python3.11")
    lacking = [program for program in programs if shutil.which(program) is None]
    return f"needs {', '.join(lacking)}" if lacking else ""
