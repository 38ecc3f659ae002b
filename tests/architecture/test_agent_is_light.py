"""The agent's parent process runs on a board's little memory: no torch, no numpy, nothing of the host."""

import subprocess
import sys

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "numpy", "edgepress_host", "edgepress_models"}:
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Blocked())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_daemon_is_imported_with_torch_numpy_and_the_host_blocked() -> None:
    run(
        "import edgepress_agent.daemon, edgepress_agent.cli, edgepress_agent.board.probe, edgepress_agent.serving.serve"
    )


def test_the_daemon_runs_with_them_blocked(tmp_path) -> None:
    """It gets as far as a broker that is not there, and says so in one line."""
    key = "edgepress-ed25519-public MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA= test\\n"
    code = f"""
from pathlib import Path
Path({str(tmp_path)!r}, "key.pub").write_text("{key}")
sys.argv = ["edgepress-agent", "run", "--broker", "mqtt://127.0.0.1:1", "--id", "pi", "--connect-timeout", "0.3",
    "--state-dir", {str(tmp_path / "state")!r}, "--trust", {str(tmp_path / "key.pub")!r}, "--serve", "127.0.0.1:0"]
from edgepress_agent.cli import main
try:
    main()
except SystemExit as end:
    print("ended with", end.code)
"""
    assert "ended with 1" in run(code)


def test_the_blocker_blocks() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED + "import numpy"], capture_output=True, check=False)
    assert done.returncode != 0
