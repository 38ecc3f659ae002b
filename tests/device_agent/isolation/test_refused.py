"""What a model's process must not do, it is refused: each for real, in a real child, with the real kernel's guards."""

from __future__ import annotations

import asyncio
import platform
import socket
from pathlib import Path

import psutil
import pytest
from edgepress_agent.isolation import landlock
from edgepress_agent.isolation.syscalls import ARCHITECTURES
from edgepress_agent.measure import check
from edgepress_protocol.messages import Failed
from measure_lab import Lab

needs_seccomp = pytest.mark.skipif(platform.machine() not in ARCHITECTURES, reason="no filter for this processor")
pytestmark = pytest.mark.usefixtures("misbehaving_runtime")


@pytest.fixture
def needs_landlock():
    try:
        landlock.version()
    except OSError as error:
        pytest.skip(f"this kernel has no Landlock: {error.strerror}")


def tried(lab: Lab, behaviour: str) -> str:
    """Have a child try it; returns what came of it."""
    manifest, model = lab.misbehaving(behaviour)
    outcome = asyncio.run(check.golden(manifest, model, None, timeout_s=240, work_dir=lab.folder / "work"))
    assert isinstance(outcome, Failed)
    assert outcome.kind == "error", outcome
    return outcome.detail.removeprefix("RuntimeError: ")


@needs_seccomp
def test_processes_are_refused(lab: Lab):
    # One alone, first: a bomb is never tried where this fails, and stops itself at the first that starts.
    assert tried(lab, "fork") == "refused: EPERM"
    assert tried(lab, "fork_bomb") == "refused: 1000 processes"
    assert psutil.Process().children(recursive=True) == []


@needs_seccomp
@pytest.mark.parametrize("act", ["exec", "listen", "kill_parent"])
def test_programs_sockets_and_signals_are_refused(lab: Lab, act):
    assert tried(lab, act) == "refused: EPERM"


@needs_seccomp
def test_no_one_is_reached(lab: Lab, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        assert tried(lab, f"connect {tcp.getsockname()[1]}") == "refused: EPERM"
        assert tried(lab, f"connect_unix {tmp_path / 'socket'}") == "refused: EPERM"


@pytest.mark.usefixtures("needs_landlock")
def test_other_files_are_out_of_sight_and_its_own_are_read_only(lab: Lab, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of the agent")
    assert tried(lab, f"read {secret}") == "refused: EACCES"
    assert tried(lab, f"write {secret}") == "refused: EACCES"
    assert tried(lab, f"write {lab.folder / 'model.misbehaving'}") == "refused: EACCES"
    assert tried(lab, f"write {tmp_path / 'new'}") == "refused: EACCES"
    assert tried(lab, "look_into_parent") in ("refused: EACCES", "refused: EPERM")
    assert secret.read_text() == "of the agent"
    assert not (tmp_path / "new").exists()


@needs_seccomp
@pytest.mark.parametrize("kind", ["shm", "sem", "msg"])
def test_nothing_is_made_that_would_stay(lab: Lab, kind):
    """Memory and queues of System V outlive the process that made them."""
    assert tried(lab, f"stay {kind}") == "refused: EPERM"


@needs_seccomp
def test_a_file_cannot_be_given_other_rights(lab: Lab):
    assert tried(lab, f"chmod {lab.folder / 'model.misbehaving'}") == "refused: EPERM"


def test_secrets_of_the_agents_environment_are_not_handed_on(lab: Lab, monkeypatch):
    monkeypatch.setenv("EDGEPRESS_PASSWORD", "hush")
    monkeypatch.setenv("github_token", "hush")
    assert tried(lab, "secrets") == "refused: []"


def test_threads_and_a_folder_of_its_own_are_allowed_and_nothing_is_left_behind(lab: Lab):
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    said = tried(lab, "scratch")
    assert said.startswith(f"ALLOWED: behind in {lab.folder / 'work' / 'child-'}")
    assert list((lab.folder / "work").iterdir()) == []
    assert psutil.Process().children(recursive=True) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_no_file_grows_without_end(lab: Lab):
    assert tried(lab, "fill_disk") == "refused: EFBIG"
    assert list((lab.folder / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [("crash", "crash"), ("abort", "memory"), ("eat", "memory"), ("exit", "crash"), ("flood", None)],
)
def test_what_ends_a_child_is_an_outcome_that_leaves_nothing(lab: Lab, behaviour, kind):
    manifest, model = lab.misbehaving(behaviour)
    outcome = asyncio.run(check.golden(manifest, model, None, timeout_s=240, work_dir=lab.folder / "work"))
    assert (None if outcome is None else outcome.kind) == kind
    assert list((lab.folder / "work").iterdir()) == []
    assert psutil.Process().children(recursive=True) == []


def test_an_endless_loop_ends_with_its_time(lab: Lab):
    manifest, model = lab.misbehaving("hang")
    outcome = asyncio.run(check.golden(manifest, model, None, timeout_s=5, work_dir=lab.folder / "work"))
    assert outcome == Failed("timeout", "not loaded and checked after 5 s, and stopped")
    assert psutil.Process().children(recursive=True) == []
    assert not list(Path(lab.folder / "work").glob("*"))
