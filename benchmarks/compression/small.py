"""ResNet-8 and DS-CNN in int8 against the quantizers' plain defaults: `python benchmarks/compression/small.py`.

Same model, same calibration samples, same runtime, latencies interleaved in one process. The recipes are beside this
file; their choices were made on validate, and the test split is read once for each file.
"""

from __future__ import annotations

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
from edgepress_host.compress import compress  # noqa: E402
from edgepress_host.press.data import Data  # noqa: E402
from edgepress_host.press.loading import resolve_callable  # noqa: E402

CALIBRATION = 200
TITLES = {
    "original": "fp32",
    "int8": "edgepress, static int8",
    "qat": "edgepress, QAT int8",
    "small": "edgepress, pruned + distilled + int8",
}
RUNTIMES = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}


class Row(msgspec.Struct, frozen=True):
    """One file: its accuracy on test, its size, and its latency against fp32."""

    title: str
    format: str
    accuracy: float
    size: int
    timed: timing.Timed


def measure(name: str, format_: str) -> list[Row]:
    """Compress one net, quantize it by the peer, and time all files of one format in turns."""
    chosen = recipe.parse((HERE / "recipes" / f"{name}.toml").read_text())
    out = nets.folder() / "small" / name
    made = compress(chosen, out)
    data = Data(resolve_callable(chosen.data.source, key="data.source"), key=name)
    title, quantize = peers.DEFAULTS[format_]
    files: list[tuple[str, bytes, float]] = []
    for key, shown in TITLES.items():
        one = next(v for v in made.variants if (v.name, v.format) == (key, format_))
        if one.file is None or one.test_accuracy is None or one.kept_steps < len(one.steps):
            raise SystemExit(f"{name}, {key}.{format_}: {one.verdict}: {one.reason}")
        files.append((shown, (out / one.file).read_bytes(), one.test_accuracy))
        if key == "original":
            content = quantize(files[0][1], data.split("calibrate").x[:CALIBRATION])
            files.append((title, content, evaluate.accuracy(format_, content, data.test(), evaluate.top1)))
    sample: np.ndarray = data.split("calibrate").x[:1]
    timed = timing.interleaved([(format_, content) for _, content, _ in files], sample)
    return [
        Row(shown, format_, score, len(content), one) for (shown, content, score), one in zip(files, timed, strict=True)
    ]


@click.command()
@click.option("--nets", "names", default="resnet8,dscnn", show_default=True)
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def main(names: str, *, write: bool) -> None:
    """Print the table."""
    lines = []
    for name in names.split(","):
        for format_, runtime in RUNTIMES.items():
            rows = measure(name, format_)
            lines += [
                [
                    f"{name}, {runtime}: {row.title}",
                    f"{100 * row.accuracy:.2f}",
                    f"{row.size / 1000:.0f}",
                    f"{row.timed.faster:.2f} × ({row.timed.low:.2f}–{row.timed.high:.2f})",
                ]
                for row in rows
            ]
    text = page.table(["file", "test accuracy, %", "kB", "faster than fp32 (10th–90th percentile)"], lines)
    print(text)
    if write:
        page.write("small", text)


if __name__ == "__main__":
    main()
