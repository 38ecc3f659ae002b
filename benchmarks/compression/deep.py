"""Deep Compression's table on the same networks: `python benchmarks/compression/deep.py [--seeds 0,1,2]`.

LeNet-300-100 and LeNet-5 on MNIST: each seed trains its own baseline, then prunes, shares weights and codes them, by
the recipe beside this file. Choices were made on validate; the test split is read once for each file. Sizes are of
the container that travels to boards, the whole ONNX file in it, against the weights of the baseline as float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import nets  # noqa: E402 - found only now that the path is set
import page  # noqa: E402
import pressing  # noqa: E402
from edgepress_host.variants import VariantResult  # noqa: E402

PAPER = {
    "lenet300": ("LeNet-300-100", 1.64, 1.58, 1070, 27, 12, 32, 40),
    "lenet5_caffe": ("LeNet-5", 0.80, 0.74, 1720, 44, 12, 33, 39),
}
"""Name, error before and after (%), kB before and after, ratio after pruning / sharing / coding.

Source: Han, Mao, Dally, "Deep Compression", ICLR 2016, tables 1, 2 and 3.
"""


class Run(msgspec.Struct, frozen=True):
    """One seed: errors in percent, sizes in bytes."""

    seed: int
    error_before: float
    error_after: float
    before_bytes: int
    pruned_bytes: int
    packed_bytes: int
    """Shared weights as the paper packs them before its last stage, by `packed`."""

    coded_bytes: int
    left: int


def measure(name: str, seed: int) -> Run:
    """Compress one net from one seed; what was done before comes from the cache."""
    folder = nets.folder() / "deep" / f"{name}-{seed}"
    text = (HERE / "recipes" / f"{name}.toml").read_text().replace("SEED", str(seed))
    made = pressing.pressed(text, folder).made
    original = next(one for one in made.variants if one.name == made.baseline)
    deep = next(one for one in made.variants if one.name == "deep")
    pruned, shared = (step.measured for step in deep.steps)
    assert pruned is not None
    assert shared is not None
    assert original.params is not None
    return Run(
        seed=seed,
        error_before=_error(original),
        error_after=_error(deep),
        before_bytes=4 * original.params,
        pruned_bytes=pruned.wire_bytes,
        packed_bytes=packed((folder / str(deep.file)).read_bytes()),
        coded_bytes=shared.wire_bytes,
        left=shared.nonzero_params,
    )


def packed(content: bytes) -> int:
    """Size of an ONNX file's weights in the paper's form (section 2 and 3), without entropy coding.

    Each weight that is left takes its place in the table of shared values and its distance to the one before, in 8
    bits for convolutions and 5 for dense layers; a longer distance takes a filler. Tables and biases are float32.
    """
    bits = 0
    for tensor in onnx.load_from_string(content).graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32:
            continue
        if array.ndim < 2:
            bits += 32 * array.size
            continue
        gap_bits = 8 if array.ndim > 2 else 5
        places = np.flatnonzero(array)
        gaps = np.diff(places, prepend=-1)
        entries = len(places) + int(((gaps - 1) // 2**gap_bits).sum())
        values = len(np.unique(array))
        bits += entries * (gap_bits + (values - 1).bit_length()) + 32 * values
    return bits // 8


def _error(result: VariantResult) -> float:
    assert result.test_accuracy is not None
    return 100 * (1 - result.test_accuracy)


def rows(name: str, runs: list[Run]) -> list[list[str]]:
    """Return the paper's row, one per seed, and the worst."""
    title, before, after, kb_before, kb_after, *ratios = PAPER[name]
    paper = [f"{title}, paper", f"{before:.2f}", f"{after:.2f}", f"{kb_before:,}", f"{kb_after}", ""]
    found = [
        [
            f"{title}, edgepress, seed {run.seed}",
            f"{run.error_before:.2f}",
            f"{run.error_after:.2f}",
            f"{run.before_bytes / 1000:,.0f}",
            f"{run.coded_bytes / 1000:.1f}",
            f"{run.left:,}",
            *(f"{run.before_bytes / size:.0f} ×" for size in (run.pruned_bytes, run.packed_bytes, run.coded_bytes)),
        ]
        for run in runs
    ]
    worst = [f"**{title}, edgepress, worst of {len(runs)}**", "", f"**{max(run.error_after for run in runs):.2f}**"]
    ratio = min(run.before_bytes / run.coded_bytes for run in runs)
    return [[*paper, *(f"{some} ×" for some in ratios)], *found, [*worst, *[""] * 5, f"**{ratio:.0f} ×**"]]


HEAD = [
    "network",
    "error before, %",
    "error after, %",
    "kB before",
    "kB after",
    "weights left",
    "pruned",
    "and shared",
    "and coded",
]


@click.command()
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--nets", "names", default=",".join(PAPER), show_default=True)
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def main(seeds: str, names: str, *, write: bool) -> None:
    """Print the table."""
    found = []
    for name in names.split(","):
        found += rows(name, [measure(name, int(seed)) for seed in seeds.split(",")])
    text = page.table(HEAD, found)
    print(text)
    if write:
        page.write("deep", text)


if __name__ == "__main__":
    main()
