"""Before it is activated, a model is loaded and checked against its golden vectors."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import msgspec
import pytest
from edgepress_agent.measure import check
from edgepress_protocol.manifest import Manifest, digest
from edgepress_protocol.messages import Failed
from measure_lab import FIXTURES, MODELS, Lab, Variant

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["tiny", "float", "int8"])
def test_a_right_model_passes_its_check(lab: Lab, name):
    variant = Variant(name)
    for golden in (variant.golden, None):
        done = check.golden(variant.manifest, variant.model, golden, timeout_s=30, work_dir=lab.folder / "work")
        assert asyncio.run(done) is None


def test_a_model_that_hangs_does_not_pass_its_check(lab: Lab, misbehaving_runtime):
    manifest, model = lab.misbehaving("hang")
    outcome = asyncio.run(check.golden(manifest, model, None, timeout_s=1, work_dir=lab.folder / "work"))
    assert outcome == Failed("timeout", "not loaded and checked after 1 s, and stopped")


def test_a_file_that_tflite_runtime_runs_wrongly_is_refused_by_its_golden_vectors(tmp_path):
    """LiteRT runs this dynamic-range file rightly; tflite-runtime 2.14 returns other numbers, and no error."""
    python = ROOT / ".venv-tflite/bin/python"
    if not python.exists():
        pytest.skip("no .venv-tflite with tflite-runtime beside the sources")
    program = (
        "import asyncio, sys, msgspec; from pathlib import Path; from edgepress_agent.measure import check\n"
        "from edgepress_protocol.manifest import Manifest\n"
        "for name in ('float', 'dynamic'):\n"
        "    folder, work = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "    manifest = msgspec.json.decode((folder / f'{name}.manifest.json').read_bytes(), type=Manifest)\n"
        "    model, golden = folder / f'{name}.tflite', folder / f'{name}.golden.safetensors'\n"
        "    print(asyncio.run(check.golden(manifest, model, golden, timeout_s=60, work_dir=work)))\n"
    )
    run = [str(python), "-c", program, str(MODELS), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    right, wrong = done.stdout.splitlines()
    assert right == "None"
    assert "kind='golden'" in wrong
    assert "output.0 is off by" in wrong


def test_the_same_file_is_right_on_litert(lab: Lab):
    variant = Variant("dynamic")
    done = check.golden(variant.manifest, variant.model, variant.golden, timeout_s=30, work_dir=lab.folder / "work")
    if "litert" in installed_tflite():
        assert asyncio.run(done) is None
    else:
        assert asyncio.run(done).kind == "golden"


def installed_tflite() -> str:
    from edgepress_agent import runtimes

    return runtimes.get("tflite")[0].name


def test_the_committed_files_are_what_their_manifests_say():
    for path in sorted(MODELS.glob("*.manifest.json")):
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        name = path.name.partition(".")[0]
        # The wire form may differ from one zstd to the next; the files may not.
        assert digest((MODELS / f"{name}.{manifest.format}").read_bytes()) == manifest.model.sha256
        if manifest.golden is not None:
            assert digest((MODELS / f"{name}.golden.safetensors").read_bytes()) == manifest.golden.blob.sha256
    assert (FIXTURES / "make_models.py").exists()
