"""The Debian package: what is in it, and what it does to a system. Without runtimes, which change nothing here."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="a package for bookworm is built with its Python 3.11"),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling: the dev extra"),
]


@pytest.fixture(scope="module", params=["amd64", "arm64"])
def package(request, tmp_path_factory):
    """The package for a processor, unpacked."""
    folder = tmp_path_factory.mktemp(request.param)
    spec = importlib.util.spec_from_file_location("build_deb", ROOT / "deploy/deb/build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    made = build.build(request.param, folder, extras="")
    subprocess.run(["dpkg-deb", "--raw-extract", str(made), str(folder / "tree")], check=True)
    listed = subprocess.run(["dpkg-deb", "--contents", str(made)], check=True, capture_output=True, text=True).stdout
    return request.param, folder / "tree", listed


def test_it_holds_the_agent_in_an_environment_of_its_own_and_nothing_of_the_host(package):
    arch, tree, listed = package
    control = (tree / "DEBIAN/control").read_text()
    assert f"Architecture: {arch}\n" in control
    assert re.search(r"^Version: \d", control, re.MULTILINE)
    assert len(re.search(r"^Description: (.*)", control, re.MULTILINE)[1]) < 80
    site = tree / "opt/edgepress/lib/python3.11/site-packages"
    names = {path.name for path in site.iterdir()}
    assert {"edgepress_agent", "edgepress_protocol", "msgspec", "nacl"} <= names
    assert not names & {"edgepress_host", "edgepress_models", "torch", "numpy", "bin"}
    assert (tree / "opt/edgepress/bin/python").readlink() == Path("/usr/bin/python3.11")
    assert (tree / "usr/bin/edgepress-agent").readlink() == Path("/opt/edgepress/bin/edgepress-agent")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[arch]
    libraries = {path.name for path in site.rglob("*.so") if "-linux-gnu" in path.name}
    assert libraries
    assert all(machine in name for name in libraries), "for the board's processor, whatever machine builds it"
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    assert not [line for line in listed.splitlines() if line[0] != "l" and line[8] == "w"], "world-writable"


def test_its_byte_code_is_there_and_names_no_build_folder(package):
    _, tree, _ = package
    (code,) = (tree / "opt/edgepress").rglob("edgepress_agent/__pycache__/daemon.cpython-311.pyc")
    data = code.read_bytes()
    assert b"/opt/edgepress/lib/python3.11/site-packages/edgepress_agent/daemon.py" in data
    assert b"/tmp/" not in data
    source = code.parents[1] / "daemon.py"
    assert int.from_bytes(data[8:12], "little") == int(source.stat().st_mtime), "it is compiled again at every start"


def test_its_scripts_are_sound_and_its_sums_right(package):
    _, tree, _ = package
    for name in ("postinst", "prerm", "postrm"):
        script = tree / "DEBIAN" / name
        assert script.stat().st_mode & 0o111
        subprocess.run(["sh", "-n", str(script)], check=True)
        assert "set -e" in script.read_text()
    done = subprocess.run(["md5sum", "--quiet", "-c", "DEBIAN/md5sums"], cwd=tree, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_agent_in_it_starts_from_where_it_will_lie(package):
    arch, tree, _ = package
    if arch != "amd64" or not Path("/usr/bin/python3.11").exists():
        pytest.skip("runs on amd64 with Debian's Python 3.11")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from edgepress_agent.cli import main; main()"
    site = tree / "opt/edgepress/lib/python3.11/site-packages"
    command = ["/usr/bin/python3.11", "-I", "-S", "-c", code, str(site), "version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("edgepress-agent "), done.stderr


IN_A_SYSTEM = """
set -e
mount -t tmpfs tmpfs $1
mkdir $1/upper $1/work $1/root
mount -t overlay overlay -o lowerdir=/,upperdir=$1/upper,workdir=$1/work $1/root
cp $2 $1/root/agent.deb
for step in \
    'dpkg -i /agent.deb' 'edgepress-agent version' 'id -un edgepress' 'systemctl is-enabled edgepress-agent' \
    'dpkg -i /agent.deb' \
    'dpkg -r edgepress-agent' 'test ! -e /etc/systemd/system/edgepress-agent.service' 'test -d /etc/edgepress' \
    'dpkg -P edgepress-agent' 'test ! -e /etc/edgepress' 'test ! -e /opt/edgepress/bin'
do
    echo "== $step"
    chroot $1/root $step
done
"""
"""In a copy of this system that nobody else sees, and that goes with its last process."""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, to mount and to install")
def test_it_installs_again_and_goes_without_a_trace(package, tmp_path):
    arch, tree, _ = package
    here = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    needs = re.search(r"^Depends: (.*)", (tree / "DEBIAN/control").read_text(), re.MULTILINE)[1]
    names = [need.split()[0] for need in needs.split(", ")]
    known = subprocess.run(["dpkg", "-s", *names], capture_output=True, check=False)
    if arch != here or known.returncode != 0:
        pytest.skip(f"installs where {', '.join(names)} are, on {arch}")
    (deb,) = tree.parent.glob("edgepress-agent_*.deb")
    command = ["unshare", "--mount", "sh", "-c", IN_A_SYSTEM, "sh", str(tmp_path), str(deb)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "mount" in done.stderr and "==" not in done.stdout:
        pytest.skip(f"no overlay can be mounted here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(zip(*[iter(re.split(r"^== (.*)\n", done.stdout, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert said["edgepress-agent version"].startswith("edgepress-agent ")
    assert (said["id -un edgepress"], said["systemctl is-enabled edgepress-agent"]) == ("edgepress\n", "enabled\n")
    assert "unchanged /etc/systemd/system/edgepress-agent.service" in said["dpkg -i /agent.deb"], "the second time"
