"""The recipe of every family, in full, on two networks: `python benchmarks/compression/everything.py`.

`everything.toml` as it ships, and the same steps on the LeNet-5 of Deep Compression; both formats, every file measured.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))

import nets
import page
from edgepress_host import recipe
from edgepress_host.compress import compress
from edgepress_host.variants import VariantResult

RECIPE = Path(str(resources.files("edgepress_models") / "recipes" / "everything.toml"))
NETS = {
    "ResNet-8": {},
    "LeNet-5": {
        "model.source": "edgepress_models.lenet5_caffe:pretrained",
        "data.source": "edgepress_models.mnist:load",
        "data.augment": "edgepress_models.augment:shift",
    },
}


def row(net: str, one: VariantResult) -> list[str]:
    """Return one file's figures, or why there is none."""
    steps = " → ".join(step.technique for step in one.steps)
    if one.test_accuracy is None or one.file_bytes is None or one.wire_bytes is None:
        return [f"{net}: {one.name}.{one.format}", steps, "", "", "", f"{one.verdict}: {one.reason}"]
    sizes = [f"{one.file_bytes / 1000:,.1f}", f"{one.wire_bytes / 1000:,.1f}"]
    return [f"{net}: {one.name}.{one.format}", steps, f"{100 * one.test_accuracy:.2f}", *sizes, one.verdict]


@click.command()
@click.option("--nets", "names", default=",".join(NETS), show_default=True)
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def main(names: str, *, write: bool) -> None:
    """Print the table."""
    rows = []
    for name in names.split(","):
        made = compress(recipe.load(RECIPE, NETS[name]), nets.folder() / "everything" / name.lower())
        rows += [row(name, one) for one in made.variants]
    text = page.table(["file", "steps", "test accuracy, %", "kB", "kB packed", "verdict"], rows)
    print(text)
    if write:
        page.write("everything", text)


if __name__ == "__main__":
    main()
