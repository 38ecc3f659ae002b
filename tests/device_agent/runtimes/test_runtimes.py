"""The contract of a runtime, held by every one that is found, those of users' packages included."""

from __future__ import annotations

import subprocess
import sys

import pytest
from edgepress_agent import runtimes
from edgepress_agent.measure.needs import meets
from edgepress_protocol.measurement import Runtime
from measure_lab import Variant

NAMES = {"onnx": ["tiny"], "openvino": ["tiny"], "tflite": ["float", "dynamic", "int8", "dense"]}


def test_every_file_is_found_under_its_own_name():
    assert set(runtimes.every()) == {"onnx", "openvino", "tflite"}


def test_an_entry_point_adds_a_runtime(misbehaving_runtime):
    assert runtimes.get("misbehaving")[0] == Runtime("misbehaving", "1.0", "misbehaving")


@pytest.mark.parametrize("module_name", sorted(runtimes.every()))
def test_a_runtime_keeps_the_contract(module_name, tmp_path):
    import numpy as np
    from safetensors.numpy import load_file

    assert module_name in NAMES, "give the new runtime a committed model, and name it here"
    module = runtimes.every()[module_name]
    runtime = module.available()
    if runtime is None:
        pytest.skip(f"{module_name} is not installed here")
    for name in NAMES[module_name]:
        variant = Variant(name)
        assert runtime.format == variant.manifest.format
        assert runtime.version
        module.prepare()
        model = module.load(variant.model, 1)
        assert [spec.dtype for spec in model.inputs] == [spec.dtype for spec in variant.manifest.inputs]
        assert [spec.name for spec in model.outputs] == [spec.name for spec in variant.manifest.outputs]
        said, found = variant.manifest.inputs[0].quantization, model.inputs[0].quantization
        assert (said is None) == (found is None)
        sample = load_file(variant.golden)["input.0"][:1]
        first, second = model.run([sample]), model.run([sample])
        assert len(first) == len(model.outputs)
        # An array that the runtime goes on writing to would change under its caller.
        kept = [each.copy() for each in first]
        model.run([np.zeros_like(sample)])
        assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))

        broken = tmp_path / "broken"
        broken.write_bytes(b"nothing that a runtime could read")
        with pytest.raises(Exception, match=r"."):
            module.load(broken, 1)


@pytest.mark.parametrize(
    ("need", "met"),
    [
        ("onnxruntime", True),
        ("onnxruntime>=1.9", True),
        ("ONNXRuntime >= 1.23.2", True),
        ("onnxruntime>=1.24", False),
        ("tflite-runtime", False),
        ("onnxruntime<2", False),
        ("", False),
    ],
)
def test_needs(need, met):
    assert meets(Runtime("onnxruntime", "1.23.2", "onnx"), need) is met


def test_the_agent_needs_no_numpy():
    program = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.partition('.')[0] in ('numpy', 'torch', 'edgepress_host'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from pathlib import Path\n"
        "from edgepress_agent.board import describe, probe, telemetry\n"
        "from edgepress_agent.measure import check, profile\n"
        "from edgepress_agent.serving import serve\n"
        "print(describe.as_text(probe.see(Path('/'), device_id='pi', state_dir=Path('/'))))\n"
        "telemetry.read(Path('/'), None)\n"
        "assert not {'onnxruntime', 'ai_edge_litert', 'tflite_runtime'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
