"""Make a 64-bit Arm userland below build/arm64 in which the agent runs on this machine, under qemu.

`python tests/arm64/userland.py [FOLDER]`. Nothing is installed and no root is needed: the Debian packages of qemu, of
Python for arm64 and of what it needs are fetched from this system's own package sources and unpacked, the wheels for
aarch64 come by pip, and edgepress itself goes in as the wheel that a board would install. What is there already stays.
Where one of it cannot be had, the reason is written beside it and the tests are skipped with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(sys.argv[1]) if __name__ == "__main__" and len(sys.argv) > 1 else ROOT / "build" / "arm64"
WHY_NOT = HOME / "why-not"
PYTHON = HOME / "python"
"""Starts the Arm interpreter; `sys.executable` is this file, so that children are started in the same way."""

_QEMU, _ARM_ROOT, _SITE, _READY = HOME / "qemu", HOME / "root", HOME / "site", HOME / "ready"
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_QEMU_NAMES = ("qemu-aarch64-static", "qemu-aarch64")
_BOARD = "pi4"
_PROCESSOR = ("proc/cpuinfo", *(f"sys/devices/system/cpu/{name}" for name in ("online", "possible", "present")))
_CPU = "cortex-a72"
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
_GLIBC = range(17, 37)
_WHEEL_PLATFORMS = [*(f"manylinux_2_{minor}_aarch64" for minor in _GLIBC), "manylinux2014_aarch64"]

_WRAPPER = """\
#!/bin/sh
PYTHONPATH='{site}' PYTHONNOUSERSITE=1 exec '{qemu}' -cpu {cpu} -L '{root}' -0 '{wrapper}' '{root}{python}' "$@"
"""


class NotHereError(Exception):
    """Something that cannot be had on this machine; the text says what."""


def prepare() -> None:
    """Make what is missing, in the order in which it is needed.

    Raises:
        NotHereError: this machine has no such packages, or no way to them.
    """
    HOME.mkdir(parents=True, exist_ok=True)
    WHY_NOT.unlink(missing_ok=True)
    if missing := [program for program in ("apt-get", "dpkg", "dpkg-deb") if shutil.which(program) is None]:
        raise NotHereError(f"no {', '.join(missing)} here to fetch qemu and an arm64 system with")
    qemu = _qemu()
    version = _arm_root()
    wanted = _requirements()
    if not _READY.exists() or _READY.read_text() != wanted:
        _say("fetching the wheels for aarch64")
        shutil.rmtree(_SITE, ignore_errors=True)
        _run(*_PIP, "install", "--target", _SITE, *_for_arm(version), *wanted.splitlines())
        _READY.write_text(wanted)
    _install_edgepress()
    PYTHON.write_text(
        _WRAPPER.format(
            site=_SITE, qemu=qemu, cpu=_CPU, root=_ARM_ROOT, wrapper=PYTHON, python=f"/usr/bin/python{version}"
        )
    )
    PYTHON.chmod(0o755)
    machine = _run(PYTHON, "-c", "import platform; print(platform.machine())").strip()
    if machine != "aarch64":
        raise NotHereError(f"qemu answers that it is {machine}")


def _qemu() -> Path:
    installed = next((Path(path) for name in _QEMU_NAMES if (path := shutil.which(name))), None)
    if installed is not None or _QEMU.exists():
        return installed or _QEMU
    _say("fetching qemu")
    folder = HOME / "qemu-packages"
    _unpack_packages(folder, _run("dpkg", "--print-architecture").strip(), ("qemu-user-static",), only="qemu-user")
    unpacked = next((path for name in _QEMU_NAMES if (path := folder / "usr/bin" / name).is_file()), None)
    if unpacked is None:
        raise NotHereError(f"this system's qemu-user-static holds no {' or '.join(_QEMU_NAMES)}")
    unpacked.rename(_QEMU)
    shutil.rmtree(folder)
    return _QEMU


def _arm_root() -> str:
    """Return the Python version ("3.11") of a root that has the packages, and a Pi's processor to look at."""
    if not list((_ARM_ROOT / "usr/bin").glob("python3.*")):
        _say("fetching a small arm64 system")
        _unpack_packages(_ARM_ROOT, "arm64", _PACKAGES)
    # Without these the libraries would look at this machine's processor, and crash at start.
    with tarfile.open(ROOT / "tests/fixtures/boards/trees.tar.gz") as trees:
        for member in trees:
            path = member.name.removeprefix("./").removeprefix(f"{_BOARD}/")
            if path in _PROCESSOR and (content := trees.extractfile(member)) is not None:
                (_ARM_ROOT / path).parent.mkdir(parents=True, exist_ok=True)
                (_ARM_ROOT / path).write_bytes(content.read())
    found = sorted(path.name.removeprefix("python") for path in (_ARM_ROOT / "usr/bin").glob("python3.[0-9]*"))
    if not found:
        raise NotHereError("the arm64 packages of this system hold no Python")
    return found[0]


def _unpack_packages(target: Path, architecture: str, packages: Sequence[str], only: str = "") -> None:
    """Fetch packages with all that they need, and unpack those that begin with `only`; nothing is installed."""
    state = HOME / f"apt-{architecture}"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state / "state",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    _run(*apt, "update")
    _run(*apt, "install", "--yes", "--download-only", *packages)
    wanted = sorted((state / "cache/archives").glob(f"{only}*.deb"))
    if not wanted:
        raise NotHereError(f"no {architecture} packages {', '.join(packages)} in this system's package sources")
    target.mkdir(parents=True, exist_ok=True)
    for archive in wanted:
        _run("dpkg-deb", "--extract", archive, target)
    shutil.rmtree(state)


def _requirements() -> str:
    """What `edgepress[agent]` needs, one a line, from pyproject.toml itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return "\n".join([*project["dependencies"], *extras["onnx"], *extras["litert"]])


def _install_edgepress() -> None:
    """Build the wheel of this working tree, and put it in place of the last one; here a failure is one of ours."""
    wheels = HOME / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    subprocess.run([*_PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT], check=True)
    (wheel,) = wheels.glob("edgepress-*.whl")
    subprocess.run([*_PIP, "install", "--no-deps", "--upgrade", "--target", _SITE, wheel], check=True)


def _for_arm(version: str) -> list[str]:
    platforms = [word for each in _WHEEL_PLATFORMS for word in ("--platform", each)]
    return ["--only-binary=:all:", "--implementation", "cp", "--python-version", version, *platforms]


def _run(*words: str | Path) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise NotHereError(
            f"{Path(words[0]).name} {_verb(words)}: {' '.join(last) or f'exit status {done.returncode}'}"
        )
    return done.stdout


def _verb(words: Sequence[str | Path]) -> str:
    return next((str(word) for word in words if word in {"update", "install", "--extract", "--print-architecture"}), "")


def _say(line: str) -> None:
    print(f"Arm userland: {line}", flush=True)


if __name__ == "__main__":
    try:
        prepare()
    except NotHereError as missing:
        WHY_NOT.write_text(str(missing))
        _say(f"cannot be made here, so its tests are skipped: {missing}")
