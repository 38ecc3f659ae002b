"""The guards themselves: which are on is said, a kernel without them is no error, and the filter is right."""

from __future__ import annotations

import asyncio
import errno
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from edgepress_agent.isolation import seccomp, sight, syscalls
from edgepress_agent.isolation.landlock import LIST
from edgepress_agent.measure.pipe import Confine, Open, Opened
from edgepress_agent.measure.worker import NICE, Worker
from edgepress_agent.serving.serve import Server
from edgepress_protocol.errors import Unavailable
from measure_lab import Lab, Variant

ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
OWN, OTHER = 4711, 4712
THREAD, PROCESS = 0x3D0F00, 17


def judge(
    machine: str, name: str, argument: int = 0, *, unix_sockets: bool = False, audit: int | None = None, table: int = 0
) -> int:
    """Run the filter as the kernel would, on one call, whose number may be of another table."""
    architecture = syscalls.ARCHITECTURES[machine]
    record = {0: architecture.numbers[name] | table, 4: audit or architecture.audit, 16: argument & 0xFFFFFFFF}
    program = seccomp.build(machine, OWN, unix_sockets=unix_sockets)
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x20:
            accumulator = record[operand]
        elif code == 0x06:
            return operand
        else:
            tests = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}
            at += if_true if tests[code] else if_false


@pytest.mark.parametrize("machine", sorted(syscalls.ARCHITECTURES))
def test_the_filter_refuses_what_it_should_on_every_processor(machine):
    numbers = syscalls.ARCHITECTURES[machine].numbers
    for name in syscalls.REFUSED:
        if name in numbers:
            assert judge(machine, name) == REFUSE, name
    assert {judge(machine, name) for name in syscalls.ABSENT} == {ABSENT}
    assert judge(machine, "clone", THREAD) == ALLOW
    assert judge(machine, "clone", PROCESS) == REFUSE
    assert {judge(machine, name, OWN) for name in ("kill", "tgkill", "prlimit64")} == {ALLOW}
    assert {judge(machine, name, OTHER) for name in ("kill", "tgkill", "prlimit64")} == {REFUSE}
    assert judge(machine, "kill", -1) == REFUSE
    assert judge(machine, "prlimit64", 0) == ALLOW
    assert [judge(machine, "socket", family) for family in (1, 2, 10)] == [REFUSE] * 3
    assert [judge(machine, "socket", family, unix_sockets=True) for family in (1, 2, 10)] == [ALLOW, REFUSE, REFUSE]
    assert judge(machine, "clone", THREAD, audit=0x40000003) == REFUSE
    assert judge(machine, "clone", THREAD, table=0x40000000) == ABSENT, "x32 has a second number for every call"


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_the_numbers_are_the_kernels(machine, header):
    if not Path(header).exists():
        pytest.skip(f"no {header} here")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    ours = syscalls.ARCHITECTURES[machine].numbers
    known = {name: int(found[name]) for name in ours if name in found}
    assert len(known) > 60
    assert {name: ours[name] for name in known} == known


def test_a_kernel_without_guards_is_told_in_a_line_each(tmp_path):
    program = (
        "import errno, os, platform, sys\n"
        "from edgepress_agent.isolation import confine, landlock\n"
        "from edgepress_agent.measure.pipe import Confine\n"
        "def without(): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
        "landlock.version, platform.machine = without, lambda: 'armv7l'\n"
        "print(confine.confine(Confine((), sys.argv[1])).off)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    lines = ("landlock: Function not implemented", "seccomp: no table of system calls for armv7l")
    assert done.stdout.strip() == str(lines)


def test_a_child_says_what_confines_it_and_the_kernel_agrees(tmp_path):
    variant = Variant("tiny")

    async def look() -> tuple[Worker, Opened, dict[str, str], dict[str, object]]:
        async with Worker(tmp_path / "work") as child:
            question = Open(variant.manifest, str(variant.model), memory_limit_bytes=1 << 30)
            opened = await child.ask(question, Opened)
            (process,) = psutil.Process().children()
            own = Path(f"/proc/{process.pid}")
            kernels = {
                "nice": process.nice(),
                "address space": process.rlimit(psutil.RLIMIT_AS)[0],
                "size": process.memory_info().vms,
                "first to go": (own / "oom_score_adj").read_text().strip(),
                "group": (own / "autogroup").read_text() if (own / "autogroup").exists() else f"nice {NICE}",
            }
            return child, opened, status(process.pid), kernels

    child, opened, seen, kernels = asyncio.run(look())
    assert kernels["nice"] == NICE
    assert kernels["group"].strip().endswith(f"nice {NICE}")
    assert kernels["first to go"] == "1000"
    assert 1 << 30 < kernels["address space"] < (1 << 30) + kernels["size"], "above what the empty runtime has"
    assert f"nice {NICE}" in child.guards.on
    assert "no-new-privileges" in child.guards.on
    assert seen["NoNewPrivs"] == "1"
    assert int(seen["CapEff"], 16) & ~0b100 == 0
    if platform.machine() in syscalls.ARCHITECTURES:
        assert "seccomp" in child.guards.on
        assert seen["Seccomp"] == "2"
    assert opened.limits == ("address-space",)


def test_a_measurement_says_what_confined_it(lab: Lab):
    result = lab.profile_variant("tiny").measurement
    assert {"no-new-privileges", "no-capabilities", "address-space"} <= set(result.guards)
    assert result.providers == ("cpu",)


def test_the_nodes_of_a_gpu_are_seen_where_one_is_asked_for(tmp_path):
    nodes = ("nvmap", "nvhost-gpu", "nvgpu/igpu0/ctrl", "host1x-fence", "dma_heap/system", "dri/renderD128", "nvidia0")
    for node in (*nodes, "mmcblk0", "mem"):
        (tmp_path / node).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / node).touch()

    def seen(*, gpu: bool) -> set[str]:
        allowed = sight.paths(Confine((), "/scratch", gpu=gpu), dev=tmp_path)
        return {str(each.path.relative_to(tmp_path)) for each in allowed if each.path.is_relative_to(tmp_path)}

    assert seen(gpu=True) - seen(gpu=False) == {*nodes, "shm", "nvgpu", "nvgpu/igpu0", "dma_heap", "dri"}
    listed = {each.path.name for each in sight.paths(Confine((), "/s", gpu=True), dev=tmp_path) if each.rights == LIST}
    assert listed == {"nvgpu", "igpu0", "dma_heap", "dri"}, "to be listed, and no more"
    assert seen(gpu=False) == {"null", "zero", "full", "random", "urandom"}


# ---- the process that serves


def test_the_serving_process_is_confined_and_still_answers(lab: Lab):
    from serve_lab import RIGHT, asked, serve

    async def story(server: Server):
        (process,) = psutil.Process().children()
        code, _ = await asked(server, "POST", "/v2/models/active/infer", RIGHT)
        return code, status(process.pid), process.nice(), process.rlimit(psutil.RLIMIT_AS)[0]

    code, seen, nice, address_space = serve(lab.folder / "work", story)
    assert code == 200
    assert seen["NoNewPrivs"] == "1"
    assert nice == psutil.Process().nice()
    assert address_space != psutil.RLIM_INFINITY
    if platform.machine() in syscalls.ARCHITECTURES:
        assert seen["Seccomp"] == "2"
    assert psutil.Process().children() == []
    assert list((lab.folder / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("crash", "SIGSEGV"),
        ("abort", "memory"),
        ("eat", "no more after"),
        ("raise_", "no kernel"),
        ("fork", "refused: EPERM"),
    ],
)
def test_a_model_that_cannot_serve_is_one_line(lab: Lab, misbehaving_runtime, behaviour, said):
    from serve_lab import serve

    manifest, model = lab.misbehaving(behaviour)

    async def story(server: Server):
        with pytest.raises(Unavailable, match=said):
            await server.swap(manifest, model)

    serve(lab.folder / "work", story, name=None)
    assert psutil.Process().children() == []
    assert list((lab.folder / "work").iterdir()) == []


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
