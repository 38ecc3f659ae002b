"""ResNet-8 and DS-CNN in int8 against the quantizers' plain defaults: `python benchmarks/compression/small.py`.

Same model, same calibration samples, same runtime, latencies interleaved in one process. The recipes are beside this
file; their choices were made on validate, and the test split is read once for each file.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click
import msgspec
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import nets  # noqa: E402 - found only now that the path is set
import page  # noqa: E402
import peers  # noqa: E402
import timing  # noqa: E402
from edgepress_host import evaluate, recipe  # noqa: E402
from edgepress_host.cli._progress import drawn  # noqa: E402
from edgepress_host.compress import compress  # noqa: E402
from edgepress_host.press.data import Data, Samples  # noqa: E402
from edgepress_host.press.loading import resolve_callable  # noqa: E402

CALIBRATION = 1000
ORIGINAL, INT8, QAT, SMALL = "original", "int8", "qat", "small"
TITLES = {
    ORIGINAL: "fp32",
    INT8: "edgepress, static int8",
    QAT: "edgepress, QAT int8",
    SMALL: "edgepress, pruned + distilled + int8",
}
NAMES = {INT8: (INT8, f"{INT8}-whole")}
"""Static int8 is another recipe for each format."""

RUNTIMES = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}
HEAD = [
    "file",
    "test accuracy, %",
    "points against the default (95 %)",
    "kB",
    "faster than fp32 (10th–90th percentile)",
    "than the default",
    "than static int8",
]


class Row(msgspec.Struct, frozen=True):
    """One file: which test samples it gets right, (N,) bool, its size, and its latency."""

    title: str
    right: np.ndarray
    size: int
    timed: timing.Timed

    @property
    def accuracy(self) -> float:
        """Share of the test samples that it gets right."""
        return float(self.right.mean())

    def points_against(self, other: Row) -> str:
        """Difference in accuracy on the same samples, in points, with its 95 % interval (paired, normal)."""
        each = self.right.astype(float) - other.right.astype(float)
        half = 1.96 * each.std(ddof=1) / math.sqrt(len(each))
        return f"{100 * each.mean():+.2f} ({100 * (each.mean() - half):+.2f} to {100 * (each.mean() + half):+.2f})"


def measure(name: str, format_: str) -> list[list[str]]:
    """Compress one net, quantize it by the peer, time all files of one format in turns, and return their rows."""
    chosen = recipe.parse((HERE / "recipes" / f"{name}.toml").read_text())
    out = nets.folder() / "small" / name
    with drawn(quietly=False) as progress:
        made = compress(chosen, out, progress=progress)
    data = Data(resolve_callable(chosen.data.source, key="data.source"), key=name)
    title, quantize = peers.DEFAULTS[format_]
    files: dict[str, bytes] = {}
    for key, shown in TITLES.items():
        one = next(v for v in made.variants if v.name in NAMES.get(key, (key,)) and v.format == format_)
        if one.file is None or one.kept_steps < len(one.steps):
            raise SystemExit(f"{name}, {key}.{format_}: {one.verdict}: {one.reason}")
        files[shown] = (out / one.file).read_bytes()
        if key == ORIGINAL:
            files[title] = quantize(files[shown], data.split("calibrate").x[:CALIBRATION])
    test, sample = data.test(), data.split("calibrate").x[:1]
    timed = timing.interleaved([(format_, content) for content in files.values()], sample)
    found = {
        shown: Row(shown, right(format_, content, test), len(content), took)
        for (shown, content), took in zip(files.items(), timed, strict=True)
    }
    fp32, default, int8 = found[TITLES[ORIGINAL]], found[title], found[TITLES[INT8]]
    return [
        [
            f"{name}, {RUNTIMES[format_]}: {row.title}",
            f"{100 * row.accuracy:.2f}",
            "" if row is fp32 or row is default else row.points_against(default),
            f"{row.size / 1000:.0f}",
            row.timed.faster(fp32.timed),
            "" if row is fp32 or row is default else row.timed.faster(default.timed),
            row.timed.faster(int8.timed) if row.title == TITLES[SMALL] else "",
        ]
        for row in found.values()
    ]


def right(format_: str, content: bytes, samples: Samples) -> np.ndarray:
    """Tell for each sample whether the file gets its class right."""
    outputs = np.concatenate([outputs[0] for outputs in evaluate.predict(format_, content, samples.x)])
    hit: np.ndarray = outputs.argmax(axis=-1) == samples.y
    return hit


@click.command()
@click.option("--nets", "names", default="resnet8,dscnn", show_default=True)
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def main(names: str, *, write: bool) -> None:
    """Print the table."""
    rows = [row for name in names.split(",") for format_ in RUNTIMES for row in measure(name, format_)]
    text = f"{page.table(HEAD, rows)}\n\n{page.machine()}."
    print(text)
    if write:
        page.write("small", text)


if __name__ == "__main__":
    main()
