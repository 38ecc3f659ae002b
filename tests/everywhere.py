"""Run every test here, and those of protocol and agent on every other Python >= 3.10 and with tflite-runtime.

Boards carry the Python of their system (3.10 on JetPack 6), so the agent must run on all of them. Each interpreter
gets a virtual environment of its own (.venv-3.10, …), with the agent and the test tools alone; `make` has made the one
with tflite-runtime and numpy 1. They run beside the tests of this environment, whose output is shown as it comes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TFLITE = "tflite-runtime"
MINORS = (10, 11, 12, 13, 14)
TESTS = ("tests/protocol", "tests/device_agent")
TFLITE_TESTS = ("tests/device_agent/measure",)  # what the agent's core is tested with are ONNX files


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
    return found


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


def elsewhere(name: str, python: Callable[[], Path]) -> tuple[str, int, str]:
    tests = TFLITE_TESTS if name == TFLITE else TESTS
    command = [python(), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, check=False, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return name, done.returncode, done.stdout


def main() -> int:
    others = {f"Python {version}": partial(prepared, version, program) for version, program in interpreters().items()}
    others[TFLITE] = lambda: ROOT / ".venv-tflite" / "bin" / "python"
    with ThreadPoolExecutor(1) as pool:
        ended = pool.map(lambda pair: elsewhere(*pair), others.items())
        failed = subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], check=False, cwd=ROOT).returncode != 0
        for name, code, output in ended:
            failed |= code != 0
            print(f"== {name}: {output.strip().splitlines()[-1]}", flush=True)
            if code:
                print(output)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
