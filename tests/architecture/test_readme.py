"""What the README tells a reader to type works, in the order in which it stands there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(<!-- slow -->\n)?```sh\n(.*?)```", re.DOTALL)


def commands() -> str:
    """All blocks marked `sh`, as one script; those marked as slow excepted."""
    blocks = [text for slow, text in BLOCK.findall(README) if not slow]
    assert len(blocks) >= 3, "the tour is gone"
    return "\n".join(blocks)


@pytest.mark.slow
def test_the_tour_works_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for name in ("EDGEPRESS_HOME", "EDGEPRESS_BROKER"):
        environment.pop(name, None)
    tour = subprocess.Popen(
        ["bash", "-mexuo", "pipefail", "-c", commands()],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = tour.communicate(timeout=280)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            subprocess.run(["pkill", f"-{number.value}", "-s", str(tour.pid)], check=False)
    assert tour.returncode == 0, said
    assert (tmp_path / "runs" / "tour" / "report.html").stat().st_size > 10_000
    assert "int8:" in said


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.relative_to(ROOT)}: {link}"


def test_every_target_of_the_makefile_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z0-9-]+)", README))
    assert {"demo", "test"} <= named <= targets
