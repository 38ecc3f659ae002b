"""What keeps the idle daemon small does what the heavier libraries would have done."""

import importlib.metadata
import subprocess
import sys

import pytest
from edgepress_agent import installed
from edgepress_agent.board.load import Load

HEAVY = ("click", "email", "http.client", "importlib.metadata", "numpy", "psutil", "urllib.request", "zipfile")


def test_the_daemon_carries_none_of_the_heavy_modules_and_whoever_needs_them_gets_the_real_ones():
    code = f"""
import sys
import edgepress_agent.lean, edgepress_agent.daemon
print([name for name in {HEAVY!r} if name in sys.modules])
import urllib.request
print(urllib.request.urlopen.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "urllib.request"]


def test_versions_and_entry_points_are_those_that_importlib_tells():
    known = {each.metadata["Name"] for each in importlib.metadata.distributions() if each.metadata["Name"]}
    assert len(known) > 10
    assert {name: installed.version(name) for name in known} == {
        name: importlib.metadata.version(name) for name in known
    }
    assert installed.version("no-such-distribution") is None
    scripts = {point.name: point.value for point in importlib.metadata.entry_points(group="console_scripts")}
    found = installed.entry_points("console_scripts")
    assert found.keys() == scripts.keys()
    assert found["edgepress-agent"] == scripts["edgepress-agent"]


def test_an_entry_point_of_a_distribution_that_comes_first_on_the_path_wins(tmp_path, monkeypatch):
    for place, target in (("a", "first:it"), ("b", "second:it")):
        folder = tmp_path / place / "Some_Thing-1.2.dist-info"
        folder.mkdir(parents=True)
        (folder / "entry_points.txt").write_text(f"[other]\nx = y\n# a = b\n[edgepress.test]\nit = {target} [extra]\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "gone"), str(tmp_path / "b")])
    assert installed.entry_points("edgepress.test") == {"it": "first:it"}
    assert installed.version("some.thing") == "1.2"


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [
        ("cpu  100 0 100 800 0 0 0 0 0 0\n", "cpu  150 0 150 900 0 0 0 0 0 0\n", 50.0),
        ("cpu  100 0 100 800 0 0 0 0 0 0\n", "cpu  100 0 100 800 100 0 0 0 0 0\n", 0.0),  # waiting for a disk is idle
        ("cpu  100 0 100 800 0\n", "cpu  100 0 100 800 0\n", None),
        ("cpu  100 0 100 800 0\n", "nonsense", None),
        ("", "", None),
    ],
)
def test_load_between_two_looks(tmp_path, before, after, percent):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(before)
    load = Load(tmp_path)
    (tmp_path / "proc/stat").write_text(after)
    assert load.percent() == percent


def test_without_a_proc_the_load_stays_blank(tmp_path):
    assert Load(tmp_path).percent() is None
