"""What `edgepress-agent probe` prints; for a person, what the board does not have is said in words."""

from __future__ import annotations

import msgspec
from edgepress_protocol.printing import indented

from edgepress_agent.board.probe import Clock, MemorySeen, Reading, Seen
from edgepress_agent.sensors import pi_throttled

_NO_POWER = "no power sensor that can be read: energy per inference stays blank"


def as_json(seen: Seen) -> str:
    """Render the inventory's own fields, and beside them what the board says at this moment."""
    told = msgspec.to_builtins(seen)
    return indented({**told.pop("device"), **told})


def as_text(seen: Seen) -> str:
    """Render what was seen for a person, one thing a line."""
    device, board = seen.device, seen.device.board
    disk = "unknown" if device.free_disk_bytes is None else _size(device.free_disk_bytes)
    rows = [
        ("board", board.kind + _mark(seen)),
        ("model", board.model),
        ("processor", f"{board.cores} cores, {board.cpu}, {board.arch}"),
        ("clock", _clock(seen.clock)),
        ("memory", _memory(seen.memory, board.memory_bytes)),
        ("free disk", disk),
        ("system", f"{board.os}, Python {board.python}"),
        ("agent", f"edgepress {device.agent_version}, protocol {device.speaks[0]} to {device.speaks[1]}"),
        *_rows("runtime", [f"{each.format}: {each.name} {each.version}" for each in device.runtimes] or ["none"]),
        *_rows("sensor", [_reading(each) for each in seen.readings] + _without_power(seen)),
        *_rows("trouble", list(seen.troubles)),
    ]
    return "\n".join(f"{label:<10} {value}".rstrip() for label, value in rows)


def _mark(seen: Seen) -> str:
    marks = [
        text
        for text, is_so in (
            ("simulated: read from a recorded tree", seen.device.board.simulated),
            ("emulated: no latency of it enters a selection", seen.emulated),
        )
        if is_so
    ]
    return f" ({'; '.join(marks)})" if marks else ""


def _clock(clock: Clock) -> str:
    parts = [
        f"{clock.frequency_hz / 1e6:.0f} MHz" if clock.frequency_hz is not None else "frequency not told",
        f"governor {clock.governor}" if clock.governor is not None else "no governor",
    ]
    return ", ".join([*parts, f"power mode {clock.power_mode}"] if clock.power_mode is not None else parts)


def _memory(memory: MemorySeen, board_bytes: int) -> str:
    parts = [_size(memory.total_bytes or board_bytes)]
    if memory.available_bytes is not None:
        parts.append(f"{_size(memory.available_bytes)} available")
    if memory.limit_bytes is not None:
        parts.append(f"{_size(memory.limit_bytes)} at most by the control group")
    elif not memory.grouped:
        parts.append("no memory control group")
    return ", ".join(parts)


def _reading(reading: Reading) -> str:
    sensor = reading.sensor
    head = f"{sensor.quantity}: {sensor.name} ({sensor.scope}), "
    if reading.value is None:
        return f"{head}cannot be read: {reading.trouble}"
    match reading.unit:
        case "mJ":
            return f"{head}a counter, at {reading.value / 1000:.1f} J"
        case "bits":
            return f"{head}{int(reading.value):#x}: {pi_throttled.words(int(reading.value))}"
        case "events":
            return f"{head}{reading.value:.0f} times since boot"
        case unit:
            return f"{head}{reading.value:.1f} {unit}"


def _without_power(seen: Seen) -> list[str]:
    return [] if any(each.sensor.quantity == "power" for each in seen.readings) else [_NO_POWER]


def _rows(label: str, values: list[str]) -> list[tuple[str, str]]:
    return [(label if i == 0 else "", value) for i, value in enumerate(values)]


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"
