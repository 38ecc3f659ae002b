"""The runtime's process, started and ended by the agent, confined by `isolation.start`, which calls `main` here.

A model that crashes, hangs or eats memory takes down this process, never the agent. It answers the questions of
`pipe` one after another.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

import msgspec
from edgepress_protocol.errors import Rejected

from edgepress_agent import runtimes
from edgepress_agent.measure import measuring, process, samples, tensors
from edgepress_agent.measure.pipe import (
    Answer,
    CheckGolden,
    Evaluate,
    Evaluated,
    GoldenChecked,
    Look,
    Open,
    Opened,
    Question,
    Seen,
    TimedLayers,
    TimeLayers,
    TimePaced,
    TimeWindows,
    Trouble,
    Warm,
    WarmUp,
    Work,
    on_gpu,
    pack,
    receive,
)
from edgepress_agent.measure.steps import Steps
from edgepress_agent.runtimes._state import Inspects, RunsOn, TakesProviders
from edgepress_agent.runtimes._timing import Repeats, TellsLayers

if TYPE_CHECKING:
    from edgepress_protocol.measurement import Runtime

    from edgepress_agent.runtimes import Array, Model, RuntimeModule

_NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Cannot allocate memory", "out of memory")


@dataclass(frozen=True)
class Opening:
    """An opened model: what was asked, the model, one input (in the file's order), what it gave, what it weighed."""

    asked: Open
    bound: tensors.Bound
    inputs: list[Array]
    outputs: list[Array]
    baseline: process.Baseline
    peak_bytes: int

    def timed(self) -> Callable[[], object]:
        """Return what runs once on the timing input: of a runtime that can hold its inputs, nothing but the runtime."""
        model = self.bound.model
        return model.repeat(self.inputs) if isinstance(model, Repeats) else partial(model.run, self.inputs)


def main() -> None:
    """Answer questions until the agent closes the pipe."""
    questions = msgspec.msgpack.Decoder(Question)
    opening: Opening | None = None
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        while (data := receive(connection)) is not None:
            question = questions.decode(data)
            answer: Answer
            try:
                if isinstance(question, Look):
                    answer = look(question)
                elif isinstance(question, Open):
                    opening, answer = open_model(question)
                else:
                    assert opening is not None, "the first question is Open"
                    answer = reply(opening, question)
            except BaseException as error:  # noqa: BLE001 - a runtime raises anything; all of it is an answer
                answer = trouble(error)
            connection.sendall(pack(answer))


def look(asked: Look) -> Seen:
    """Load a model for its tensors alone."""
    path = Path(asked.model)
    _, module = begin(asked.format, asked.runtime, path)
    model = module.load(path, 1)
    return Seen(model.inputs, model.outputs)


def begin(artifact_format: str, name: str, path: Path) -> tuple[Runtime, RuntimeModule]:
    """Import a runtime, and let it refuse a file before it loads it.

    Raises:
        Unsupported: there is no such runtime here.
        Rejected: the file must not be loaded.
    """
    runtime, module = runtimes.get(artifact_format, name)
    module.prepare()
    if isinstance(module, Inspects):
        module.inspect(path)
    return runtime, module


def open_model(asked: Open) -> tuple[Opening, Opened]:
    """Import the runtime, load the model above its baseline, and run it once."""
    path, gpu = Path(asked.model), on_gpu(asked.providers)
    runtime, module = begin(asked.manifest.format, asked.runtime, path)
    # A GPU's driver reserves more address space than any board has memory.
    limit = None if gpu else asked.memory_limit_bytes or process.allowance_bytes(path, asked.threads)
    baseline = process.begin_memory(limit)
    started = perf_counter_ns()
    model = load(module, path, asked.threads, asked.providers)
    loaded = perf_counter_ns()
    bound = tensors.bind(model, asked.manifest, asked.batch)
    inputs = bound.arrange(timing_inputs(asked, bound))
    ready = perf_counter_ns()
    outputs = model.run(inputs)
    ran = perf_counter_ns()
    opening = Opening(asked, bound, inputs, bound.restore(outputs), baseline, process.peak_bytes())
    providers = model.providers if isinstance(model, RunsOn) else ("cpu",)
    return opening, Opened(
        runtime,
        (loaded - started) / 1e6,
        (ran - ready) / 1e6,
        bound.batch,
        providers,
        limits=("address-space",) if limit is not None else (),
    )


def load(module: RuntimeModule, path: Path, threads: int, providers: tuple[str, ...]) -> Model:
    """Load a model where it was asked for, as far as its runtime knows of other places than the CPU."""
    if providers and isinstance(module, TakesProviders):
        return module.load_on(path, threads, providers)
    return module.load(path, threads)


def timing_inputs(asked: Open, bound: tensors.Bound) -> list[Array]:
    """Real input where some came (golden, else evaluation), else seeded random; latency can depend on the data."""
    if asked.golden is not None:
        names = samples.golden_names(asked.manifest)[0]
        path = asked.golden
    elif asked.evaluation is not None and not bound.stateful:
        names, path = samples.evaluation_names(bound), asked.evaluation
    else:
        return tensors.random_inputs(bound)
    first = samples.Samples(Path(path), names).take(0, bound.batch)
    return Steps(bound).complete([samples.fill(array, bound.batch) for array in first])


def reply(opening: Opening, question: Question) -> Answer:
    """Answer one question about an opened model."""
    asked = opening.asked
    match question:
        case CheckGolden():
            assert asked.manifest.golden is not None
            assert asked.golden is not None
            golden, path = asked.manifest.golden, Path(asked.golden)
            return GoldenChecked(*samples.check_golden(opening.bound, asked.manifest, golden, path, opening.outputs))
        case WarmUp(runs, seconds):
            # What the golden vectors took between the first run and this one is not the model's.
            process.forget_peak()
            done = measuring.warm_up(opening.timed(), runs, seconds)
            return Warm(done, process.memory(opening.baseline, opening.peak_bytes))
        case TimeWindows(windows, window_s):
            return measuring.time_windows(opening.timed(), windows, window_s)
        case TimePaced(rate_hz, seconds):
            return measuring.time_paced(opening.timed(), rate_hz, seconds)
        case TimeLayers(runs):
            return time_layers(opening, runs)
        case Work(seconds):
            return measuring.work(opening.timed(), seconds)
        case Evaluate(evaluation):
            assert asked.evaluation is not None
            return Evaluated(*samples.evaluate(opening.bound, evaluation.metric, Path(asked.evaluation)))
        case _:
            raise AssertionError(f"no such question after Open: {question}")


def time_layers(opening: Opening, runs: int) -> TimedLayers:
    """Time the layers, where the runtime's Python API offers that."""
    asked = opening.asked
    runtime, module = runtimes.get(asked.manifest.format, asked.runtime)
    if not isinstance(module, TellsLayers):
        return TimedLayers((), f"{runtime.name} tells no times per layer to Python")
    layers = module.layer_times(Path(asked.model), asked.threads, opening.inputs, runs, asked.providers)
    return TimedLayers(layers, "" if layers else f"{runtime.name} told no times per layer of this file")


def trouble(error: BaseException) -> Trouble:
    """Say in one line what kept a question from being answered."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        return Trouble("memory", text)
    if isinstance(error, runtimes.Unsupported):
        return Trouble("unsupported", text)
    if isinstance(error, Rejected):
        return Trouble("rejected", text)
    return Trouble("error", f"{type(error).__name__}: {text}")
