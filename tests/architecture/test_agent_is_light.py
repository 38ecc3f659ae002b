"""The agent's parent process runs on a board's little memory: no torch, no numpy, nothing of the host."""

import subprocess
import sys
from pathlib import Path

from started import at_start

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "numpy", "edgepress_host", "edgepress_models"}:
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Blocked())
"""


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the blocker, which the interpreter that the daemon becomes has, too."""
    blocked = at_start(folder / "blocker", BLOCKED)
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=blocked, check=False)


def test_the_daemon_is_imported_with_torch_numpy_and_the_host_blocked(tmp_path) -> None:
    modules = ["daemon", "cli", "lean", "board.probe", "serving.serve"]
    code = f"import {', '.join(f'edgepress_agent.{module}' for module in modules)}"
    done = run("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_daemon_runs_with_them_blocked(tmp_path) -> None:
    """It gets as far as a broker that is not there, and says so in one line."""
    key = tmp_path / "key.pub"
    key.write_text("edgepress-ed25519-public MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA= test\n")
    asked = ["--broker", "mqtt://127.0.0.1:1", "--id", "pi", "--connect-timeout", "0.3", "--serve", "127.0.0.1:0"]
    places = ["--state-dir", str(tmp_path / "state"), "--trust", str(key)]
    done = run("-m", "edgepress_agent", "run", *asked, *places, folder=tmp_path)
    assert done.returncode == 1
    assert "error: broker mqtt://127.0.0.1:1: " in done.stderr
    assert "must not be imported here" not in done.stderr


def test_the_blocker_blocks(tmp_path) -> None:
    done = run("-c", "import numpy", folder=tmp_path)
    assert "numpy must not be imported here" in done.stderr
