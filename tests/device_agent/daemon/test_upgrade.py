"""`edgepress-agent upgrade`: the service changes to another agent that holds its own against this one, or stays."""

import subprocess
import sys
import zipfile

import msgspec
import pytest
from daemon_lab import agent, needs_systemd
from edgepress_agent.board import probe
from edgepress_agent.install import plan
from edgepress_agent.install.upgrade import environment_beside, program_of, why_not
from edgepress_protocol.errors import Unavailable, UsageError
from edgepress_protocol.measurement import Device, Runtime


@pytest.fixture
def device(tmp_path):
    found = probe.inventory(tmp_path, device_id="probe", state_dir=tmp_path)
    both = (Runtime("onnxruntime", "1", "onnx"), Runtime("ai-edge-litert", "2", "tflite"))
    return msgspec.structs.replace(found, agent_version="1.0", speaks=(1, 2), runtimes=both)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, ""),
        ({"speaks": (2, 3)}, ""),
        ({"speaks": (3, 4)}, "it speaks protocol 3 to 4, the agent here 1 to 2"),
        ({"speaks": (0, 0)}, "it speaks protocol 0 to 0"),
        ({"runtimes": (Runtime("tflite-runtime", "2.14", "tflite"),)}, "it has no runtime for onnx"),
    ],
)
def test_what_an_agent_must_have_to_take_anothers_place(device, changed, line):
    said = why_not(device, msgspec.structs.replace(device, **changed))
    assert said == line if not line else line in said


@pytest.fixture
def root(tmp_path):
    """A system with the service, as `install` makes it of this agent."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    done = agent("install", "--root", root, "--program", f"{sys.executable} -m edgepress_agent")
    assert done.returncode == 0, done.stderr
    return root


def other(tmp_path, device: Device | None, installs: str = "exec {python} -m edgepress_agent"):
    """Another edition: what it says of itself is given, and what it installs is what this one would."""
    script = tmp_path / "other-agent"
    text = msgspec.json.encode(device).decode() if device else "not an agent"
    (tmp_path / "device.json").write_text(text)
    installing = installs.format(python=sys.executable)
    script.write_text(f'#!/bin/sh\n[ "$1" = probe ] && exec cat {tmp_path}/device.json\n{installing} "$@"\n')
    script.chmod(0o755)
    return script


@needs_systemd
def test_the_unit_starts_the_other_agent_afterwards(root, tmp_path, device):
    program = other(tmp_path, msgspec.structs.replace(device, agent_version="9.9"))
    done = agent("upgrade", "--root", root, "--program", program)
    assert done.returncode == 0, done.stderr
    assert "9.9" in done.stdout
    assert program_of(root / plan.UNIT.relative_to("/")) == str(program)


@needs_systemd
def test_an_agent_that_is_none_lacks_a_runtime_or_does_not_start_leaves_the_old_one(root, tmp_path, device):
    unit = root / plan.UNIT.relative_to("/")
    before = unit.read_text()
    broken = agent("upgrade", "--root", root, "--program", other(tmp_path, None))
    assert (broken.returncode, "not an agent that starts here" in broken.stderr) == (2, True), broken.stderr
    nothing = agent("upgrade", "--root", root, "--program", tmp_path / "nowhere")
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1), nothing.stderr
    assert unit.read_text() == before

    spoils = f"echo spoilt > {unit}; echo 'error: it did not become ready' >&2; exit 1; :"
    failed = agent("upgrade", "--root", root, "--program", other(tmp_path, device, spoils))
    assert failed.returncode == 1
    assert "it did not become ready; the service is back at" in failed.stderr
    assert unit.read_text() == before


def test_without_a_service_it_is_one_line(tmp_path):
    done = agent("upgrade", "--root", tmp_path, "--program", "edgepress-agent")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "run that first" in done.stderr


@pytest.mark.parametrize("given", [(), ("--to", "a.whl", "--program", "b")])
def test_what_to_upgrade_to_is_said_by_its_owner(tmp_path, given):
    done = agent("upgrade", "--root", tmp_path, *given)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected one of --to WHEEL" in done.stderr


def wheel(folder, name, code="", scripts=""):
    """A package that pip installs without a network."""
    info = f"{name}-9.9.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": scripts,
        f"{info}/RECORD": "",
    }
    path = folder / f"{name}-9.9-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in files.items():
            archive.writestr(place, text)
    return path


@pytest.fixture
def environment(tmp_path):
    """Where the agent here is installed, and how it is started."""
    (tmp_path / "agent/bin").mkdir(parents=True)
    (tmp_path / "agent/pyvenv.cfg").write_text("include-system-site-packages = false\n")
    return f"{tmp_path}/agent/bin/edgepress-agent"


def test_another_edition_is_installed_beside_the_old_one_with_its_runtimes(environment, tmp_path):
    code = "import stand_in_runtime\ndef main(): print('edition', stand_in_runtime.SAYS)\n"
    edition = wheel(tmp_path, "stand_in", code, "[console_scripts]\nedgepress-agent = stand_in:main\n")
    runtime = wheel(tmp_path, "stand_in_runtime", "SAYS = 9.9")
    said = []
    program = environment_beside(environment, str(edition), [str(runtime)], said.append)
    assert program == f"{tmp_path}/agent-2/bin/edgepress-agent"
    assert said == [f"installing {edition} into {tmp_path}/agent-2"]
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "edition 9.9\n"
    assert list((tmp_path / "agent/bin").iterdir()) == [], "the old environment is left as it was"

    with pytest.raises(Unavailable, match="nowhere-9"):
        environment_beside(program, str(tmp_path / "nowhere-9-py3-none-any.whl"), [], said.append)
    assert not (tmp_path / "agent-3").exists()


def test_an_agent_outside_of_an_environment_is_told_the_other_way(tmp_path):
    with pytest.raises(UsageError, match=r"is no virtual environment: install .* and give --program"):
        environment_beside(f"{tmp_path}/bin/edgepress-agent", "edgepress==9.9", [], lambda _: None)
