"""Whether the agent's figures can be trusted: its latency against bare loops, its energy against powers that are known.

`python benchmarks/profiler.py [--pairs 96] [--starts 8] [--window-s 0.5] [--simulations 1000] [--write] [FILE …]`.
Without files it takes ResNet-8 of the zoo, in both formats. A process keeps a level of its own for as long as it lives,
so that all three are started anew in between. `--write` puts the tables into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "device_agent" / "measure"))

import meter_lab  # noqa: E402
from compression.page import machine, table, write  # noqa: E402
from edgepress_agent.measure import apart, local, noise  # noqa: E402
from edgepress_agent.measure.pipe import Timed, TimeWindows  # noqa: E402
from edgepress_agent.measure.worker import Worker  # noqa: E402
from edgepress_protocol.messages import ProfileOptions  # noqa: E402

BARE = Path(__file__).with_name("bare_loop.py")
LATENCY_GOAL, COVERAGE_GOAL = 0.01, 0.93
STRETCH_S = 2.0
BOARDS = {
    "nothing in the way": meter_lab.QUIET,
    "drift": meter_lab.DRIFTING,
    "bursts": meter_lab.BURSTING,
    "drift and bursts": meter_lab.RESTLESS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--starts", type=int, default=8, help="how often the processes are started anew")
    parser.add_argument("--window-s", type=float, default=0.5)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        latency = loops(
            asked.files or list(made(Path(folder))), Path(folder), asked.pairs, asked.starts, asked.window_s
        )
    print(latency, flush=True)
    energy = coverage(asked.simulations)
    print(energy)
    if asked.write:
        write("profiler-latency", latency)
        write("profiler-energy", energy)


def made(folder: Path) -> Iterator[Path]:
    """Write ResNet-8 in both formats."""
    import numpy as np
    from edgepress_host import exporters
    from edgepress_models import resnet8

    example = np.zeros((2, 1, 28, 28), np.float32)
    for kind in ("onnx", "tflite"):
        path = folder / f"resnet8.{kind}"
        path.write_bytes(exporters.get(kind).export(resnet8.pretrained(), example))
        yield path


def loops(files: list[Path], folder: Path, pairs: int, starts: int, window_s: float) -> str:
    """Return the table of the agent's p50 against that of a bare loop, each window beside one of the other."""
    rows = []
    for path in files:
        each = max(1, pairs // starts)
        found = [asyncio.run(interleaved(path, folder / "work", each, window_s)) for _ in range(starts)]
        against, control = (noise.of_ratios([r for one in found for r in one[i]], window_s) for i in (0, 1))
        bare_ms = median(ms for one in found for ms in one[2])
        rows.append(
            [
                f"{path.name}, {'session.run' if path.suffix == '.onnx' else 'invoke'}",
                f"{bare_ms:.4f}",
                *figures(against),
                *figures(control),
                "yes" if abs(against.median - 1) <= LATENCY_GOAL else "no",
            ]
        )
        print(rows[-1], file=sys.stderr)
    head = ["model, bare loop", "bare p50, ms", "agent / bare", "95 %", "single pairs"]
    head += ["agent / agent", "95 %", "single pairs", f"within {LATENCY_GOAL:.0%}"]
    return f"{table(head, rows)}\n\n{pairs} pairs of {window_s:g} s, in {starts} starts. {machine()}."


def figures(floor: noise.Floor) -> list[str]:
    interval = f"{floor.median_low:.3f} to {floor.median_high:.3f}"
    return [f"{floor.median:.4f}", interval, f"{floor.low:.3f} to {floor.high:.3f}"]


async def interleaved(
    path: Path, work_dir: Path, pairs: int, window_s: float
) -> tuple[list[float], list[float], list[float]]:
    """Time windows of the agent, of a bare loop, and of a second agent, in turn; the order turns with each pair.

    Returns the ratios of agent and bare loop, those of the two agents, and the bare loop's p50 in ms.
    """
    options = ProfileOptions()
    job = await local.job_of(path, options, work_dir)
    against, control, bare_ms = [], [], []
    with ExitStack() as stack:
        bare = stack.enter_context(bare_loop(path))
        async with Worker(work_dir / "a") as one, Worker(work_dir / "b") as other:
            for child in (one, other):
                await apart.warm(child, job.open(), options)
            await asyncio.to_thread(bare_p50_ms, bare, options.warmup_s)

            async def p50_ms(who: str) -> float:
                if who == "bare":
                    return await asyncio.to_thread(bare_p50_ms, bare, window_s)
                timed = await (one if who == "one" else other).ask(TimeWindows(1, window_s), Timed)
                return timed.windows[0].p50_ms

            names = ["one", "bare", "other"]
            for number in range(pairs):
                turned = names[number % 3 :] + names[: number % 3]
                took = {who: await p50_ms(who) for who in (turned if number % 2 else reversed(turned))}
                against.append(took["one"] / took["bare"])
                control.append(took["one"] / took["other"])
                bare_ms.append(took["bare"])
    return against, control, bare_ms


@contextmanager
def bare_loop(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the loop that knows nothing of edgepress, in a process of its own."""
    with subprocess.Popen(
        [sys.executable, str(BARE), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def bare_p50_ms(process: subprocess.Popen[str], seconds: float) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    print(seconds, file=process.stdin, flush=True)
    return float(process.stdout.readline()) / 1e6


def coverage(simulations: int) -> str:
    """Return the table of how often the energy's interval holds the truth."""
    rows = []
    for name, board in BOARDS.items():
        held, widths, errors, blank = 0, [], [], 0
        for seed in range(simulations):
            said, truth_mj = meter_lab.simulate(board, STRETCH_S, seed)
            held += said.low_mj <= truth_mj <= said.high_mj
            widths.append((said.high_mj - said.low_mj) / 2 / truth_mj)
            errors.append((said.high_mj + said.low_mj) / 2 / truth_mj - 1)
            blank += said.mj_per_inference is None
        share = held / simulations
        kept = "yes" if share >= COVERAGE_GOAL else "no"
        bias = f"{sum(errors) / simulations:+.2%}"
        rows.append([name, f"{share:.1%}", bias, f"{median(widths):.2%}", str(blank), kept])
        print(rows[-1], file=sys.stderr)
    head = ["the board's power", "interval holds the truth", "mean error", "half width, median", "below resolution"]
    text = table([*head, f"at least {COVERAGE_GOAL:.0%}"], rows)
    return f"{text}\n\n{simulations:,} simulations each, six pairs of {STRETCH_S:g} s, 25 readings a second at most."


if __name__ == "__main__":
    main()
