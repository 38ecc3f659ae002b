"""What confinement costs: latency of one model in confined and in free processes, interleaved pair by pair.

python benchmarks/guards.py [--write] [--pairs 150] [--window-s 0.15] [MODEL.manifest.json …]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from statistics import median, quantiles

import msgspec
from compression import page
from edgepress_agent.measure.pipe import Open, Opened, Timed, TimeWindows, Warm, WarmUp
from edgepress_agent.measure.worker import Worker
from edgepress_protocol.manifest import Manifest

MODELS = Path(__file__).parents[1] / "tests/fixtures/models"
DEFAULT = [MODELS / "float.manifest.json", MODELS / "tiny.manifest.json"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=150)
    parser.add_argument("--window-s", type=float, default=0.15)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("manifests", nargs="*", type=Path, default=DEFAULT)
    given = parser.parse_args()
    rows = []
    for path in given.manifests:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        model = path.with_name(f"{path.name.partition('.')[0]}.{manifest.format}").resolve()
        rows.append(asyncio.run(compare(manifest, model, given.pairs, given.window_s)))
    head = [
        "model",
        "free p50, ms",
        "confined p50, ms",
        "confined / free",
        "90 % of pairs",
        "free / free",
        "90 % of pairs",
    ]
    text = f"{page.table(head, rows)}\n\n{given.pairs} rounds of {given.window_s:g} s each. {page.machine()}."
    if given.write:
        page.write("guards", text)
    print(text)


async def compare(manifest: Manifest, model: Path, pairs: int, window_s: float) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        async with (
            Worker(work, confined=False) as free,
            Worker(work) as confined,
            Worker(work, confined=False) as control,
        ):
            children = (free, confined, control)
            for child in children:
                await child.ask(Open(manifest, str(model)), Opened)
                await child.ask(WarmUp(20, 0.5), Warm)
            rounds = []
            for number in range(pairs):
                # Each starts as often as the others: what comes first in a round is not always the same.
                order = [(number + i) % 3 for i in range(3)]
                timed = {i: await children[i].ask(TimeWindows(1, window_s), Timed) for i in order}
                rounds.append([timed[i].windows[0].p50_ms for i in range(3)])
    ratios = [confined_ms / free_ms for free_ms, confined_ms, _ in rounds]
    controls = [control_ms / free_ms for free_ms, _, control_ms in rounds]
    free_ms, confined_ms, _ = (median(column) for column in zip(*rounds, strict=True))
    name = f"{manifest.variant}, {manifest.format}"
    return [name, f"{free_ms:.5f}", f"{confined_ms:.5f}", *shown(ratios), *shown(controls)]


def shown(ratios: list[float]) -> list[str]:
    cuts = quantiles(ratios, n=20)
    return [f"{median(ratios):.3f}", f"{cuts[0]:.3f} to {cuts[-1]:.3f}"]


if __name__ == "__main__":
    main()
