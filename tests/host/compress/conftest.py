from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ZOO = HERE / "zoo"
sys.path.insert(0, str(ZOO))

# One thread: other tests run beside these, and sums come in the same order.
torch.set_num_threads(1)

from compress_recipes import BOTH  # noqa: E402 - found only now that the path is set


class Made:
    """A finished run: where it is, what it says, which splits were read (in order), and what was reported."""

    def __init__(self, folder, variants, reads, doing):
        self.folder = folder
        self.variants = variants
        self.reads = reads
        self.doing = doing

    def __getitem__(self, name):
        variant, _, format_ = name.rpartition(".")
        return next(v for v in self.variants.variants if (v.name, v.format) == (variant, format_))

    def content(self, name):
        return (self.folder / self[name].file).read_bytes()


@pytest.fixture(scope="session")
def press():
    """Compress by a recipe's text in this process."""
    from edgepress_host.compress import compress
    from edgepress_host.recipe import parse

    def call(text, folder, *, beside=Path()):
        log = folder.parent / f"{folder.name}.reads"
        log.write_text("")
        os.environ["ZOO_LOG"] = str(log)
        doing = []
        try:
            made = compress(parse(text, folder=beside), folder, progress=lambda now: doing.append(now.doing))
        finally:
            del os.environ["ZOO_LOG"]
        return Made(folder, made, log.read_text().split(), doing)

    return call


@pytest.fixture(scope="session")
def made(press, tmp_path_factory):
    """One run over both formats, shared by the tests that look at its outcome."""
    return press(BOTH, tmp_path_factory.mktemp("made") / "out")


@pytest.fixture(scope="session")
def originals(made):
    """Bytes of the uncompressed model by format."""
    return {name: made.content(f"original.{name}") for name in ("onnx", "tflite")}


@pytest.fixture(scope="session")
def bench():
    """What a step may use, over the zoo's data."""
    import compress_zoo
    from edgepress_host import evaluate
    from edgepress_host.press.data import Data
    from edgepress_host.technique import Workbench

    data = Data(compress_zoo.load, key="compress_zoo:load")
    notes = []
    return Workbench(
        original=compress_zoo.build,
        split=data.split,
        seed=0,
        say=lambda _: None,
        metric=evaluate.top1,
        augment=None,
        note=notes.append,
    )


@pytest.fixture
def edgepress(tmp_path, command, environment):
    """Run `edgepress …` as a user does, in a folder of his own, with the zoo importable."""

    def call(*arguments):
        return subprocess.run(
            command(*arguments), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    return call


@pytest.fixture
def command():
    """Arguments that start `edgepress …`."""
    return lambda *arguments: [sys.executable, "-m", "edgepress_host.cli", *map(str, arguments)]


@pytest.fixture
def environment():
    """Environment of a process of ours, with the zoo importable."""
    paths = [str(ZOO), *(path for path in sys.path if path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
