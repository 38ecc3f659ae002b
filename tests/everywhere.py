"""Run every test here, and those of protocol and agent on every other Python >= 3.10 and with tflite-runtime.

Boards carry the Python of their system (3.10 on JetPack 6), so the agent must run on all of them; the oldest and the
newest that are here stand for those between, the newest with the tests where it may differ, unless
EDGEPRESS_EVERY_PYTHON is set. Each interpreter gets a virtual environment of its own (.venv-3.10, …), with the agent
and the test tools alone; `make` has made the one with tflite-runtime and numpy 1. Two runs go on at a time; the output
of the one that is here and of neither compression nor the agent is shown as it comes, that of the others when it ends,
where it failed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TFLITE = "tflite-runtime"
MINORS = (10, 11, 12, 13, 14)
TESTS = ("tests/protocol", "tests/device_agent")
DAEMON = tuple(f"tests/device_agent/{folder}" for folder in ("core", "daemon", "serving"))
"""About half of the agent's tests, by time."""

NEWEST_TESTS = ("tests/protocol", *DAEMON)
"""Where a newer standard library shows first; all of it where EDGEPRESS_EVERY_PYTHON is set."""

COMPRESSION = "tests/host/compress"
AGENT = "tests/device_agent"
NONE_CHOSEN = 5
"""Exit status of pytest where its arguments leave no test."""

TFLITE_TESTS = tuple(f"tests/device_agent/{folder}" for folder in ("measure", "runtimes", "serving"))
"""What the agent's core is tested with are ONNX files."""


def interpreters() -> dict[str, Path]:
    """Version ("3.10") to a program that really is that version, this one's left out."""
    found = {}
    for minor in MINORS:
        version = f"3.{minor}"
        candidates = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
        for program in filter(None, candidates):
            if minor != sys.version_info.minor and says(program, version):
                found[version] = Path(program)
                break
    if os.environ.get("EDGEPRESS_EVERY_PYTHON"):
        return found
    ends = list(found)[:1] + list(found)[1:][-1:]
    return {version: found[version] for version in ends}


def others() -> list[tuple[str, Path, Sequence[str]]]:
    """Version, program and tests of each other interpreter."""
    found = list(interpreters().items())
    last = len(found) - 1
    short = last > 0 and not os.environ.get("EDGEPRESS_EVERY_PYTHON")
    return [
        (version, program, NEWEST_TESTS if short and number == last else TESTS)
        for number, (version, program) in enumerate(found)
    ]


def says(program: str | Path, version: str) -> bool:
    """A pyenv shim stands on the PATH for versions that are not active, and fails when it is called."""
    asked = subprocess.run(
        [program, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() == version


def prepared(version: str, program: Path) -> Path:
    """The interpreter's environment, made anew when pyproject.toml changed."""
    venv = ROOT / f".venv-{version}"
    stamp, wanted = venv / "ready", hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([program, "-m", "venv", venv], check=True)
        pip = [venv / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--editable", f"{ROOT}[agent,test]"], check=True)
        stamp.write_text(wanted)
    return venv / "bin/python"


def ran(name: str, python: Callable[[], Path], arguments: Sequence[str], *, shown: bool) -> tuple[str, int, str]:
    command = [python(), "-m", "pytest", *arguments]
    output = None if shown else subprocess.PIPE
    done = subprocess.run(command, check=False, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True)
    return name, done.returncode, done.stdout or ""


def main() -> int:
    here = Path(sys.executable)
    apart = "-q", "-p", "no:cacheprovider"
    without = [f"--ignore={folder}" for folder in (COMPRESSION, AGENT)]
    measuring = (AGENT, *(f"--ignore={folder}" for folder in DAEMON))
    jobs = [
        partial(ran, "compression, this Python", lambda: here, (*apart, COMPRESSION, *sys.argv[1:]), shown=False),
        partial(ran, "all else, this Python", lambda: here, (*without, *sys.argv[1:]), shown=True),
        *(
            partial(ran, f"Python {version}", partial(prepared, version, program), (*apart, *tests), shown=False)
            for version, program, tests in others()
        ),
        partial(ran, "the daemon, this Python", lambda: here, (*apart, *DAEMON, *sys.argv[1:]), shown=False),
        partial(
            ran, "the rest of the agent, this Python", lambda: here, (*apart, *measuring, *sys.argv[1:]), shown=False
        ),
        partial(ran, TFLITE, lambda: ROOT / ".venv-tflite/bin/python", (*apart, *TFLITE_TESTS), shown=False),
    ]
    failed = False
    # Two at a time: the longest first, so that they end together on a machine of two cores.
    with ThreadPoolExecutor(2) as pool:
        for done in as_completed([pool.submit(job) for job in jobs]):
            name, code, output = done.result()
            failed |= code not in (0, NONE_CHOSEN)
            last = output.strip().splitlines()[-1] if output.strip() else f"exit status {code}"
            print(f"== {name}: {last}", flush=True)
            if code not in (0, NONE_CHOSEN):
                print(output, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
