"""Low rank on a net of dense layers: `python benchmarks/compression/low_rank.py`.

LeNet-300-100 on MNIST, in both runtimes. Choices were made on validate; the test split is read once for each file.
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
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def main(*, write: bool) -> None:
    """Print the table."""
    done = pressing.pressed((HERE / "recipes" / "low_rank.toml").read_text(), nets.folder() / "low_rank")
    rows = [row for format_ in ("onnx", "tflite") for row in pressing.rows(done, format_)]
    text = page.table(pressing.HEAD, rows)
    print(text)
    if write:
        page.write("low-rank", text)


if __name__ == "__main__":
    main()
