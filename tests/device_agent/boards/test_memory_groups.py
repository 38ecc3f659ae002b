"""How much memory the agent may use, with control groups of either version and without any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from boards_lab import probed, tree
from edgepress_agent.board import memory
from edgepress_protocol.errors import Unavailable

GIB = 1 << 30
MEMINFO = {"proc/meminfo": f"MemTotal:       {8 << 20} kB\nMemFree:  {2 << 20} kB\nMemAvailable:   {4 << 20} kB"}
SERVICE = "system.slice/edgepress-agent.service"
V2 = {"proc/self/cgroup": f"0::/{SERVICE}"}
V1 = {"proc/self/cgroup": f"9:name=systemd:/{SERVICE}\n4:cpu,memory:/{SERVICE}\n0::/"}


@pytest.mark.parametrize(
    ("files", "limit_bytes"),
    [
        ({**V2, f"sys/fs/cgroup/{SERVICE}/memory.max": GIB}, GIB),
        (
            {**V2, f"sys/fs/cgroup/{SERVICE}/memory.max": "max", "sys/fs/cgroup/system.slice/memory.max": 2 * GIB},
            2 * GIB,
        ),
        ({**V2, f"sys/fs/cgroup/{SERVICE}/memory.max": "max"}, None),
        ({**V2, f"sys/fs/cgroup/{SERVICE}/memory.max": 64 * GIB}, None),
        ({**V1, f"sys/fs/cgroup/memory/{SERVICE}/memory.limit_in_bytes": GIB}, GIB),
        ({**V1, f"sys/fs/cgroup/memory/{SERVICE}/memory.limit_in_bytes": 9223372036854771712}, None),
        ({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": GIB}, GIB),
    ],
)
def test_the_narrowest_limit_from_here_upwards_counts(
    tmp_path: Path, files: dict[str, object], limit_bytes: int | None
) -> None:
    seen = memory.read(tree(tmp_path, {**MEMINFO, **files}))
    assert seen == memory.Memory(8 * GIB, 4 * GIB, limit_bytes, grouped=True)
    told = json.loads(probed(tmp_path, "--json"))["memory"]
    assert told == {"total_bytes": 8 * GIB, "available_bytes": 4 * GIB, "limit_bytes": limit_bytes, "grouped": True}


@pytest.mark.parametrize("files", [{}, V2, V1, {"proc/self/cgroup": ""}])
def test_raspberry_pi_os_boots_without_memory_groups(tmp_path: Path, files: dict[str, object]) -> None:
    """`cgroup_disable=memory`: the groups are there, and their files of memory are not."""
    root = tree(tmp_path, {**MEMINFO, **files, f"sys/fs/cgroup/{SERVICE}/pids.max": "max"})
    assert memory.read(root) == memory.Memory(8 * GIB, 4 * GIB, None, grouped=False)
    assert "memory     8.0 GiB, 4.0 GiB available, no memory control group" in probed(root)


def test_a_group_that_leads_outside_is_not_followed(tmp_path: Path) -> None:
    """In a container the path can be one of the host's, seen from elsewhere."""
    root = tree(tmp_path / "root", {**MEMINFO, "proc/self/cgroup": "0::/../../../elsewhere"})
    tree(tmp_path, {"elsewhere/memory.max": 1})
    assert memory.read(root).limit_bytes is None


def test_a_limit_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    root = tree(tmp_path, {**MEMINFO, **V2, f"sys/fs/cgroup/{SERVICE}/memory.max": "plenty"})
    with pytest.raises(Unavailable, match="expected a number of bytes or max, found 'plenty'"):
        memory.read(root)


def test_memory_in_use_is_what_could_not_be_had_at_once(tmp_path: Path) -> None:
    assert memory.used_bytes(tmp_path) is None
    assert memory.used_bytes(tree(tmp_path, MEMINFO)) == 4 * GIB


def test_this_machine_is_read() -> None:
    seen = memory.read(Path("/"))
    assert seen.total_bytes is not None
    assert seen.available_bytes is not None
    assert 0 < seen.available_bytes <= seen.total_bytes
