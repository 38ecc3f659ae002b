"""What is installed here, what is missing, and what to do about it. Each check is one small function."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec
from edgepress_protocol.errors import EdgepressError

from edgepress_host import units

State = Literal["ok", "optional", "missing"]
LOW_DISK_BYTES = 2 * 1000**3
LOW_SHM_BYTES = 64 * 1000**2
DATA_S = 120.0

PARTS: tuple[tuple[str, str, tuple[str, ...], bool], ...] = (
    ("compress", "host", ("torch", "onnx", "onnxscript", "torch-pruning", "numpy"), True),
    ("ONNX Runtime", "onnx", ("onnxruntime",), True),
    ("controller", "server", ("fastapi", "uvicorn", "sqlalchemy", "httpx", "jinja2", "rich"), True),
    ("embedded broker", "server", ("iotcore",), False),
    ("LiteRT", "litert", ("ai-edge-litert",), False),
    ("TFLite export", "tflite", ("litert-torch", "ai-edge-quantizer"), False),
)
"""What a part of edgepress is called, the extra that installs it, its packages, and whether the line needs it."""


class Check(msgspec.Struct, frozen=True):
    """One thing looked at: `missing` stops the main line, `optional` stops only what it names."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(data_dir: Path) -> tuple[Check, ...]:
    """Look at everything; changes nothing."""
    return (
        python(sys.version_info[:3]),
        *(packages(name, extra, names, needed) for name, extra, names, needed in PARTS),
        data_set(),
        key(data_dir),
        controller(data_dir),
        disk(data_dir),
        shared_memory(Path("/dev/shm")),  # noqa: S108 - looked at, never written
        processors(),
    )


def installed_version(package: str) -> str | None:
    """Version of an installed package; None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def python(found: tuple[int, ...]) -> Check:
    """Check the interpreter."""
    text = ".".join(map(str, found))
    if found < (3, 11):
        return Check("Python", "missing", text, "the host needs Python 3.11 or newer")
    return Check("Python", "ok", text)


def packages(
    name: str,
    extra: str,
    wanted: Iterable[str],
    needed: bool,
    installed: Callable[[str], str | None] = installed_version,
) -> Check:
    """Check the packages of one part, without importing them."""
    found = {package: installed(package) for package in wanted}
    absent = [package for package, at in found.items() if at is None]
    if not absent:
        return Check(name, "ok", ", ".join(f"{package} {at}" for package, at in found.items()))
    remedy = f"pip install 'edgepress[{extra}]'"
    return Check(name, "missing" if needed else "optional", f"not installed: {', '.join(absent)}", remedy)


def data_set() -> Check:
    """Check that the demo's data set is found, by asking the package that reads it."""
    asked = [sys.executable, "-m", "edgepress_models.fashion_mnist", "where"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=DATA_S, check=False)
    except subprocess.TimeoutExpired:
        return Check("data set", "optional", f"no answer within {DATA_S:.0f} s", "look at your network, then run again")
    lines = (answer.stdout if answer.returncode == 0 else answer.stderr).strip().splitlines()
    if answer.returncode == 0:
        return Check("data set", "ok", f"Fashion-MNIST, {lines[0]}" if lines else "Fashion-MNIST")
    line = lines[-1].removeprefix("error: ") if lines else "no answer"
    return Check("data set", "optional", "Fashion-MNIST is not here", f"for the demo: {line}")


def key(data_dir: Path) -> Check:
    """Check the key pair that signs what devices are told."""
    from edgepress_host import keys

    directory = data_dir / "keys"
    if not (directory / keys.PRIVATE_NAME).exists():
        return Check("key", "optional", f"none in {directory}", "edgepress keys init")
    try:
        return Check("key", "ok", f"{keys.load(directory).name!r} in {directory}")
    except EdgepressError as error:
        return Check("key", "missing", str(error), "mend it, or move the folder away and run `edgepress keys init`")


def controller(data_dir: Path) -> Check:
    """Check whether a controller runs on this data directory, and answers."""
    try:
        from edgepress_host.client.client import Client, find

        running = find(data_dir)
        if running is None:
            return Check(
                "running", "optional", "no controller", "edgepress serve (commands start one when they need it)"
            )
        client = Client(running)
        try:
            health = client.health()
        finally:
            client.close()
    except ImportError as error:
        return Check(
            "running", "optional", f"cannot ask: {error.name} is not installed", "pip install 'edgepress[server]'"
        )
    except EdgepressError as error:
        return Check("running", "missing", str(error), "stop it and start it again: edgepress serve")
    if not health.broker_connected:
        return Check("running", "missing", f"{running.url}, without its broker {health.broker}", "start the broker")
    return Check("running", "ok", f"{running.url}, process {health.pid}, broker {health.broker}")


def disk(data_dir: Path) -> Check:
    """Check the free space where the data goes."""
    place = next(folder for folder in (data_dir, *data_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return Check("disk", "missing", f"{place} cannot be written", "choose another place with --data-dir")
    if free < LOW_DISK_BYTES:
        return Check("disk", "optional", f"{units.size(free)} free at {place}", "a fleet's models may need more")
    return Check("disk", "ok", f"{units.size(free)} free at {place}")


def shared_memory(place: Path) -> Check:
    """Check /dev/shm: torch's data loaders and some runtimes need it."""
    if not place.is_dir():
        return Check("shared memory", "optional", f"no {place}", "mount a tmpfs there (containers: --shm-size 256m)")
    total = shutil.disk_usage(place).total
    if total < LOW_SHM_BYTES:
        return Check("shared memory", "optional", f"{units.size(total)} at {place}", "containers: --shm-size 256m")
    return Check("shared memory", "ok", f"{units.size(total)} at {place}")


def processors() -> Check:
    """Say how many processors this process may use."""
    usable = len(os.sched_getaffinity(0))
    return Check("processors", "ok", f"{usable} usable of {os.cpu_count()}")
