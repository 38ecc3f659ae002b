"""Helpers of these tests: a lab that profiles tiny committed models in real child processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from edgepress_agent import runtimes
from edgepress_agent.measure.job import Job
from edgepress_agent.measure.profile import profile
from edgepress_protocol.manifest import Manifest, TensorSpec, digest
from edgepress_protocol.messages import EvaluationSet, ProfileOptions, Trial, encode
from edgepress_protocol.transfer import describe

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODELS = FIXTURES / "models"
QUICK = ProfileOptions(windows=3, window_s=0.05, warmup_runs=4, warmup_s=0.02, timeout_s=240)
BOARDS = ("agx-orin", "battery", "nano", "orin-nano", "pi3bplus", "pi4", "pi4_ina226", "pi5", "x86-rapl")


def needs_format(artifact_format: str) -> None:
    if all(runtime.format != artifact_format for runtime in runtimes.installed()):
        pytest.skip(f"no runtime for {artifact_format} is installed here")


class Variant:
    """A committed model with its manifest and golden vectors."""

    def __init__(self, name: str) -> None:
        self.manifest = msgspec.json.decode((MODELS / f"{name}.manifest.json").read_bytes(), type=Manifest)
        needs_format(self.manifest.format)
        self.model = MODELS / f"{name}.{self.manifest.format}"
        self.golden = MODELS / f"{name}.golden.safetensors"


class Lab:
    """Profiles anything in a folder of its own, and keeps the phases that it heard of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = folder / "measure.lock"
        self.phases: list[tuple[str, str]] = []
        self.on_phase = lambda phase, detail: None

    def misbehaving(self, behaviour: str) -> tuple[Manifest, Path]:
        model = self.folder / "model.misbehaving"
        model.write_text(behaviour)
        tensors = (TensorSpec("x", "float32", (None, 1)),), (TensorSpec("y", "float32", (None, 1)),)
        return Manifest(behaviour.split()[0], "misbehaving", describe(behaviour.encode())[0], *tensors), model

    def job(self, manifest, model, options=QUICK, golden=None, evaluation=None, metric="top1") -> Job:
        wanted = None
        if evaluation is not None:
            wanted = EvaluationSet(describe(evaluation.read_bytes())[0], samples=8, metric=metric)
        trial = Trial("0" * 32, digest(encode(manifest)), wanted, options)
        return Job(trial, manifest, model, evaluation, golden, self.folder / "work")

    async def profile_async(self, job: Job, root: Path = Path("/")):
        def hear(phase: str, detail: str) -> None:
            self.phases.append((phase, detail))
            self.on_phase(phase, detail)

        return await profile(job, root=root, lock=self.lock, on_phase=hear)

    def profile(self, manifest, model, options=QUICK, *, root: Path = Path("/"), **files):
        return asyncio.run(self.profile_async(self.job(manifest, model, options, **files), root))

    def profile_variant(self, name: str, options=QUICK, **files):
        variant = Variant(name)
        return self.profile(variant.manifest, variant.model, options, golden=variant.golden, **files)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def misbehaving_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the test runtime as a user would: on the path of the agent and of its children."""
    plugin = str(FIXTURES / "plugin")
    monkeypatch.syspath_prepend(plugin)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [plugin, os.environ.get("PYTHONPATH", "")])))
    runtimes.every.cache_clear()
    yield
    runtimes.every.cache_clear()


def gone(pid: int) -> bool:
    """Whether a process has ended, or is a corpse that its new parent has not buried yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def wait_for(condition, seconds=20.0):
    """Return as soon as a condition holds that no event tells of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
