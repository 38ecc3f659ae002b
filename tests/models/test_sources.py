from __future__ import annotations

import dataclasses
import gzip
import hashlib
import logging
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from edgepress_models import fashion_mnist, sources
from edgepress_models.sources import DataMissing, Gzip, Places, Unusable
from hypothesis import given
from hypothesis import strategies as st

CONTENT = random.Random(0).randbytes(1_500)
MEMBER = Gzip("member.gz", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
PACKED = gzip.compress(CONTENT)
UNREACHABLE = "http://127.0.0.1:1/"
ADVICE = fashion_mnist.places({}).advice


def places_in(cache: Path, root: Path, *urls: str) -> Places:
    package = dataclasses.replace(fashion_mnist.DEBIAN, root=root)
    return Places("Fashion-MNIST", cache, urls, ADVICE, package)


def put(folder: Path, packed: bytes = PACKED) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MEMBER.name).write_bytes(packed)
    return folder


def test_the_cache_comes_before_debian_and_debian_before_the_home(tmp_path: Path, home: tuple[Path, str]) -> None:
    served, url = home
    places = places_in(tmp_path / "cache", tmp_path / "debian", url)
    put(served)
    put(tmp_path / "debian" / fashion_mnist.DEBIAN.folder)
    assert sources.where(MEMBER, places) == str(tmp_path / "debian" / fashion_mnist.DEBIAN.folder / MEMBER.name)
    put(places.cache)
    assert sources.where(MEMBER, places) == str(places.cache / MEMBER.name)


def test_a_download_is_checked_and_kept(tmp_path: Path, home: tuple[Path, str]) -> None:
    served, url = home
    put(served)
    places = places_in(tmp_path / "cache", tmp_path / "debian", url)
    assert sources.where(MEMBER, places) == url + MEMBER.name
    (served / MEMBER.name).unlink()
    assert sources.read(MEMBER, places) == CONTENT
    assert [path.name for path in places.cache.iterdir()] == [MEMBER.name]


def test_a_mirror_takes_over_from_one_that_does_not_answer(tmp_path: Path, home: tuple[Path, str]) -> None:
    served, url = home
    put(served)
    places = Places("MNIST", tmp_path / "cache", (UNREACHABLE, url), "fetch it")
    assert sources.where(MEMBER, places) == url + MEMBER.name
    assert sources.read(MEMBER, places) == CONTENT


def test_an_altered_download_is_refused_and_leaves_nothing(tmp_path: Path, home: tuple[Path, str]) -> None:
    served, url = home
    put(served, gzip.compress(CONTENT[:-1] + b"!"))
    places = places_in(tmp_path / "cache", tmp_path / "debian", url)
    with pytest.raises(DataMissing, match=f"download failed: expected {len(CONTENT)} bytes with SHA-256"):
        sources.read(MEMBER, places)
    assert not places.cache.exists()


def test_a_damaged_cache_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "debian" / fashion_mnist.DEBIAN.folder)
    places = places_in(put(tmp_path / "cache", PACKED[:40]), tmp_path / "debian", UNREACHABLE)
    with caplog.at_level(logging.WARNING):
        assert sources.read(MEMBER, places) == CONTENT
    assert str(places.cache / MEMBER.name) in caplog.text


def test_where_no_place_works_one_line_says_what_to_install(nowhere: Path) -> None:
    places = places_in(nowhere, nowhere, UNREACHABLE)
    with pytest.raises(DataMissing) as caught:
        sources.read(MEMBER, places)
    line = str(caught.value)
    assert "\n" not in line
    assert f"not in {nowhere}" in line
    assert "download failed" in line
    assert "`apt-get install dataset-fashion-mnist`" in line
    assert "`python -m edgepress_models.fashion_mnist fetch`" in line


@pytest.mark.parametrize("command", ["where", "fetch"])
def test_the_command_ends_with_one_line_and_status_1(
    command: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = places_in(nowhere, nowhere, UNREACHABLE)
    monkeypatch.setattr(fashion_mnist, "places", lambda environment: empty)
    monkeypatch.setenv("PATH", "")
    done = CliRunner().invoke(fashion_mnist.main, [command])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "Fashion-MNIST" in done.stderr
    assert done.stderr.count("error: ") == 1


def test_fetch_without_apt_downloads_every_file(tmp_path: Path, home: tuple[Path, str]) -> None:
    served, url = home
    for member in fashion_mnist.MEMBERS:
        shutil.copy(sources.where(member, places_in(tmp_path / "none", Path("/"), UNREACHABLE)), served)
    places = places_in(tmp_path / "cache", tmp_path / "debian", url)
    assert sources.fetch(fashion_mnist.MEMBERS, places, tools=lambda name: None) == places.cache
    assert {path.name for path in places.cache.iterdir()} == {member.name for member in fashion_mnist.MEMBERS}
    # A second fetch finds all in the cache, and needs neither apt nor the home.
    nothing_else = places_in(places.cache, tmp_path / "debian", UNREACHABLE)
    sources.fetch(fashion_mnist.MEMBERS, nothing_else, tools=lambda name: None)


def test_fetch_through_apt_needs_no_root(tmp_path: Path, nowhere: Path) -> None:
    apt_get = shutil.which("apt-get")
    asked = apt_get and subprocess.run(
        [apt_get, "download", "--print-uris", fashion_mnist.DEBIAN.name], cwd=tmp_path, capture_output=True, check=False
    )
    if not asked or asked.returncode != 0:
        pytest.skip("apt-get is not here, or knows no package dataset-fashion-mnist")
    places = places_in(tmp_path / "cache", nowhere, UNREACHABLE)
    sources.fetch(fashion_mnist.MEMBERS, places)
    assert {Path(sources.where(member, places)).parent for member in fashion_mnist.MEMBERS} == {places.cache}


def test_the_configured_folder_replaces_the_usual_one() -> None:
    assert fashion_mnist.places({"EDGEPRESS_DATA": "/data"}).cache == Path("/data/fashion-mnist")
    assert fashion_mnist.places({}).cache == Path("~/.cache/edgepress/fashion-mnist").expanduser()


@given(st.binary(max_size=200))
def test_bytes_that_are_not_the_file_are_refused(packed: bytes) -> None:
    with pytest.raises(Unusable):
        MEMBER.unpack(packed)


def test_a_gzip_bomb_is_not_unpacked_beyond_the_known_length() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(Unusable, match=f"got {len(CONTENT) + 1} with"):
        MEMBER.unpack(bomb)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    places = places_in(tmp_path / "file" / "cache", Path("/"), UNREACHABLE)
    with pytest.raises(DataMissing, match=r"cannot be fetched: package: .*; download: ") as caught:
        sources.fetch(fashion_mnist.MEMBERS, places)
    assert "\n" not in str(caught.value)
