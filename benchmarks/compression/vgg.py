"""An over-parameterised VGG-16-BN made small and fast: `python benchmarks/compression/vgg.py`.

Its baseline trains 20 epochs first, about two minutes each on one core with AVX512-BF16, and goes on where it was
stopped. Choices were made on validate; the test split is read once for each file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import nets  # noqa: E402 - found only now that the path is set
import page  # noqa: E402
import pressing  # noqa: E402


@click.command()
@click.option("--seed", default=0, show_default=True)
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def main(seed: int, *, write: bool) -> None:
    """Print the table."""
    text = (HERE / "recipes" / "vgg16.toml").read_text().replace("SEED", str(seed))
    done = pressing.pressed(text, nets.folder() / "vgg" / str(seed))
    table = page.table(pressing.HEAD, pressing.rows(done, "onnx"))
    print(table)
    if write:
        page.write("vgg", table)


if __name__ == "__main__":
    main()
