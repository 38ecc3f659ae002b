"""The agent's command line as a process, and what the tests of its service need of the machine."""

import os
import shutil
import subprocess
import sys

import pytest

needs_systemd = pytest.mark.skipif(
    shutil.which("systemctl") is None or shutil.which("systemd-sysusers") is None or os.geteuid() != 0,
    reason="needs systemd's tools, and root to give files to a group",
)


def agent(*arguments):
    command = [sys.executable, "-m", "edgepress_agent", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
