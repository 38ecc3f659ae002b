"""A measurement in words, as `edgepress-agent bench` and `edgepress trials show` print it: one thing a line.

What was not measured is said in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgepress_protocol.measurement import Energy, Measurement, Quiet, Soak, Stretch

Row = tuple[str, str]
"""A label, empty where the line belongs to the one above, and the text."""


def rows(found: Measurement) -> Iterator[Row]:
    """Tell all that was measured, and under which conditions."""
    yield "runtime", _runtime(found)
    yield "board", _board(found)
    yield from _quiet(found.quiet)
    yield "load, first", f"{found.load_ms:.1f} ms, {_ms(found.first_ms)}; {found.warmup_runs} runs to warm up"
    yield from _latency(found)
    yield from _cost(found)
    yield "energy", _energy(found.energy)
    yield from _answers(found)
    yield from _sweep(found)
    yield from _layers(found)
    yield from _soak(found.soak)
    if found.guards:
        yield "guards", ", ".join(found.guards)
    yield from named("note", found.notes)


def named(label: str, lines: Iterable[str]) -> Iterator[Row]:
    """Put a label before the first of some lines."""
    for number, line in enumerate(lines):
        yield (label if number == 0 else ""), line


def table(found: Iterable[Row]) -> str:
    r"""Set rows below each other, their texts in one column.

    What a model or a device has named steers no terminal: what is not printable becomes `?`.

    >>> table([("note", "done"), ("", "\x1b[2Jaccuracy")])
    'note  done\n      ?[2Jaccuracy'
    """
    every = [(label, "".join(each if each.isprintable() else "?" for each in text)) for label, text in found]
    width = max((len(label) for label, _ in every), default=0)
    return "\n".join(f"{label:<{width}}  {text}".rstrip() for label, text in every)


def _runtime(found: Measurement) -> str:
    places = "" if found.providers in {(), ("cpu",)} else f" on {', '.join(found.providers)}"
    return f"{found.runtime.name} {found.runtime.version}{places}{_marks(found)}"


def _marks(found: Measurement) -> str:
    marks = [word for word, is_so in (("simulated", found.simulated), ("emulated", found.emulated)) if is_so]
    return f" ({', '.join(marks)})" if marks else ""


def _board(found: Measurement) -> str:
    at = found.before
    parts = [
        f"governor {at.governor}" if at.governor else "no governor told",
        f"{at.frequency_hz / 1e6:.0f} MHz" if at.frequency_hz else "",
        f"{at.temperature_celsius:.1f} °C" if at.temperature_celsius is not None else "",
        f"load {at.load_1min:.2f}" if at.load_1min is not None else "",
        f"throttle bits {at.throttle_bits:#x}" if at.throttle_bits is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _quiet(quiet: Quiet | None) -> Iterator[Row]:
    if quiet is not None:
        yield from named("disturbed", quiet.disturbed)
        if not quiet.disturbed:
            yield "quiet", "yes" if quiet.busy_cores is not None else "as far as this board tells"


def _latency(found: Measurement) -> Iterator[Row]:
    latency = found.latency
    spread = f"spread {latency.spread:.1%} over {len(latency.windows)} windows" + (
        ", unstable" if latency.unstable else ""
    )
    many = f"{found.threads} thread{'s' if found.threads > 1 else ''}, batch {found.batch}"
    yield "tight loop", f"p50 {_ms(latency.p50_ms)}, {many}; {spread}, {latency.runs:,} runs"
    high = f"p90 {_ms(latency.p90_ms)}, p95 {_ms(latency.p95_ms)}, p99 {_ms(latency.p99_ms)}"
    yield "", f"{high}, min {_ms(latency.min_ms)}, max {_ms(latency.max_ms)}"
    if found.paced is not None:
        paced = found.paced
        late = f", {paced.late} beats lost" if paced.late else ""
        yield (
            f"at {paced.rate_hz:g} Hz",
            f"p50 {_ms(paced.p50_ms)}, p95 {_ms(paced.p95_ms)}, max {_ms(paced.max_ms)}; {paced.runs} runs{late}",
        )


def _cost(found: Measurement) -> Iterator[Row]:
    memory = found.memory
    steady = "" if memory.pss_bytes is None else f", steady {_mb(memory.pss_bytes)} (PSS)"
    yield "memory", f"peak {_mb(memory.peak_bytes)}{steady}, over the empty runtime's {_mb(memory.baseline_bytes)}"
    if memory.pss_bytes is not None and memory.pss_bytes > memory.peak_bytes:
        yield "", "PSS is above the peak where others let go of libraries meanwhile, whose share fell to this process"
    if found.usage is not None:
        usage = found.usage
        faults = f"{usage.minor_faults} minor and {usage.major_faults} major page faults in {usage.runs:,} runs"
        yield "processor", f"{_ms(usage.cpu_ms_per_inference)} an inference; {faults}"


def _energy(energy: Energy | None) -> str:
    if energy is None:
        return "not measured: no power sensor that can be read, or see the notes"
    meter = f"{energy.sensor} ({energy.scope}){', simulated' if energy.simulated else ''}"
    if energy.invalid:
        return f"invalid: {energy.invalid}; {meter}"
    interval = f"{energy.low_mj:.4g} to {energy.high_mj:.4g} mJ with 95 % confidence, {energy.pairs} pairs, {meter}"
    if energy.mj_per_inference is None:
        return f"below resolution: {interval}"
    return f"{energy.mj_per_inference:.4g} mJ an inference net of idle; {interval}"


def _answers(found: Measurement) -> Iterator[Row]:
    if found.accuracy is not None:
        yield "accuracy", f"{found.accuracy.metric} {found.accuracy.value:.4f} on {found.accuracy.samples:,} samples"
    if found.golden_max_error is not None:
        yield "golden", f"largest difference {found.golden_max_error:.2g}"


def _sweep(found: Measurement) -> Iterator[Row]:
    for point in found.sweep:
        ratio = found.latency.p50_ms / point.p50_ms if point.p50_ms > 0 else 0.0
        yield (
            f"{point.threads} threads",
            f"p50 {_ms(point.p50_ms)}, p95 {_ms(point.p95_ms)}; {ratio:.2f} times as fast, spread {point.spread:.1%}",
        )


def _layers(found: Measurement) -> Iterator[Row]:
    if found.layers:
        yield "layers", "in a run of their own, which the profiler slows: read shares"
        for layer in sorted(found.layers, key=lambda each: -each.share):
            place = f" on {layer.provider}" if layer.provider not in {"", "cpu"} else ""
            yield "", f"{layer.share:6.1%}  {_ms(layer.mean_ms):>10}  {layer.operator}  {layer.name}{place}".rstrip()


def _soak(soak: Soak | None) -> Iterator[Row]:
    if soak is not None:
        settled = {True: "the temperature stood still", False: "still warming or cooling", None: "no temperature told"}
        start = "" if soak.celsius_at_start is None else f", from {soak.celsius_at_start:.1f} °C"
        yield f"first {soak.first.seconds:.0f} s", _stretch(soak.first) + start
        throttled = ", throttled" if soak.throttled else ""
        yield f"last {soak.steady.seconds:.0f} s", f"{_stretch(soak.steady)}; {settled[soak.settled]}{throttled}"


def _stretch(part: Stretch) -> str:
    at = [
        f"{part.temperature_celsius:.1f} °C" if part.temperature_celsius is not None else "",
        f"{part.frequency_hz / 1e6:.0f} MHz" if part.frequency_hz is not None else "",
    ]
    end = ", ".join(each for each in at if each)
    return f"p50 {_ms(part.p50_ms)}, p95 {_ms(part.p95_ms)}, p99 {_ms(part.p99_ms)}" + (f"; at {end}" if end else "")


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def _mb(count: int) -> str:
    return f"{count / 1e6:.3g} MB"
