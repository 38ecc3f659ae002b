"""What a device tells of the model that serves, in one line for people."""

from __future__ import annotations

from edgepress_protocol.messages import Telemetry
from edgepress_protocol.served import InputStats

from edgepress_host import units


def served(telemetry: Telemetry | None) -> str:
    """Say how many requests there were, how long answers took, and what was asked with; empty where there were none."""
    if telemetry is None or not telemetry.requests:
        return ""
    parts = [f"{units.count(telemetry.requests)} requests, {units.count(telemetry.request_errors)} failed"]
    latency = telemetry.request_latency
    if latency is not None and latency.total:
        parts.append(f"p50 {units.ms(latency.percentile_ms(50))}, p95 {units.ms(latency.percentile_ms(95))}")
    return "; ".join([*parts, *(_values(seen) for seen in telemetry.request_inputs)])


def _values(seen: InputStats) -> str:
    amiss = {"NaN": seen.nan_count, "infinite": seen.infinite_count}
    said = [f"{units.count(count)} {what}" for what, count in amiss.items() if count]
    if seen.count:
        said.insert(0, f"{seen.mean:.3g} ± {seen.std:.3g}, {seen.min:.3g} to {seen.max:.3g}")
    return f"{seen.name} {', '.join(said)}"
