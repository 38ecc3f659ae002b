"""One example of every message, with its golden bytes in golden.json.

`python tests/protocol/examples.py` adds the bytes of new examples; it never changes bytes that stand there:
what once crossed the wire must decode for ever. What is written today, golden_today.json, it writes anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
from edgepress_protocol import messages as m
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import EvaluationSet, Golden, Manifest, Quantization, TensorSpec
from edgepress_protocol.measurement import (
    Accuracy,
    AtThreads,
    Board,
    Conditions,
    Device,
    Energy,
    Latency,
    Layer,
    Measurement,
    Memory,
    Paced,
    Quiet,
    Runtime,
    Sensor,
    Soak,
    Stretch,
    Usage,
    Window,
)
from edgepress_protocol.served import InputStats
from edgepress_protocol.signing import PrivateKey
from edgepress_protocol.transfer import describe, encode_frame, to_bitmap

GOLDEN = Path(__file__).with_name("golden.json")
TODAY = Path(__file__).with_name("golden_today.json")

# Bytes that no codec gains on, so that the example is the same under every version of zstd.
_BLOB, _FORM = describe(b"".join(hashlib.sha256(bytes([i])).digest() for i in range(160)), 1024)
_RUNTIME = Runtime("onnxruntime", "1.31.1", "onnx")
_BOARD = Board(
    "raspberry-pi-5", "Raspberry Pi 5 Model B Rev 1.0", "aarch64", "Cortex-A76", 4, 8 << 30, "Linux", "3.11.2"
)
_DEVICE = Device(
    "pi-1", _BOARD, "0.1.0", (1, 1), (_RUNTIME,), (Sensor("pmic", "power", "pmic-rails", False),), 10_000_000_000
)
_MANIFEST = Manifest(
    "int8",
    "onnx",
    _BLOB,
    (TensorSpec("x", "int8", (None, 1, 28, 28), Quantization(0.5, -3)),),
    (TensorSpec("y", "float32", (None, 10)),),
    Golden(_BLOB, 1e-4, 1e-3),
)
_WINDOW = Window(1000, 1.0, 0.9, 1.1)
_LATENCY = Latency(0.9, 1.0, 1.1, 1.2, 0.8, 2.0, 1000, 0.01, False, (_WINDOW,), Histogram.of([900_000, 1_000_000]))
_MEASUREMENT = Measurement(
    _RUNTIME,
    12.5,
    3.25,
    10,
    _LATENCY,
    Memory(50_000_000, 60_000_000, 10_000_000, 9_000_000),
    1,
    1,
    Conditions("performance", 2_400_000_000, 45.5, 0, 0.25),
    Conditions(),
    Accuracy("top1", 0.9125, 1000),
    Energy(1.5, 1.25, 1.75, 2500.0, 4000.0, 6, "pmic", "pmic-rails", False),
    0.0,
)
_TRIAL = m.Trial("0" * 32, "a" * 64, EvaluationSet(_BLOB, 100))
_STRETCH = Stretch(60.0, 60_000, 0.9, 1.1, 1.2, 61.5, 2_400_000_000)
_DEEPER = msgspec.structs.replace(
    _MEASUREMENT,
    energy=Energy(None, 1.25, 1.75, 2500.0, 4000.0, 6, "pmic", "pmic-rails", False, "the board throttled"),
    paced=Paced(20.0, 200, 1, 2.5, 2.75, 3.0, 3.5, 4.0, Histogram.of([2_500_000])),
    usage=Usage(1000, 0.9, 12, 1),
    sweep=(AtThreads(2, 0.5, 0.75, 0.02, 2000),),
    layers=(Layer("conv1", "Conv", 0.25, 0.5),),
    soak=Soak(600.0, _STRETCH, _STRETCH, True, False, 10.0, (0.9, 0.95)),
    quiet=Quiet(0.25, 0.5, 1.5, "pmode:0002", 2, ("others kept 0.5 of 4 cores busy",)),
)
_OPTIONS = m.ProfileOptions(paced_hz=10.0, sweep_threads=(2, 4), layers=True, soak_s=600.0)
_SIGNED = PrivateKey(bytes(32), "golden").sign("manifest", b"payload")

TO_DEVICE: dict[str, msgspec.Struct] = {
    "want": m.Want("home", "pi-1", 7, 1, m.Deployment("1" * 32, "a" * 64), (_TRIAL,), (_SIGNED,)),
    "want-empty": m.Want("home", "pi-1", 1, 1),
    "want-deeper": m.Want("home", "pi-1", 8, 1, trials=(m.Trial("0" * 32, "a" * 64, options=_OPTIONS),)),
    "host": m.HostState("session", True, (1, 1)),
    "host-2": m.HostState("session", True, (1, 2)),
    "manifest": _MANIFEST,
}
_ACTIVE = m.Active("1" * 32, "a" * 64, "int8")
TO_HOST: dict[str, msgspec.Struct] = {
    "up": m.Presence("session", True),
    "state": m.State("session", _DEVICE, 7, _ACTIVE, None, m.DeploymentStatus("1" * 32, "active"), 2, True),
    "need": m.Need("b" * 64, 5120, to_bitmap([0, 3], 5), 8, True),
    "report-measured": m.Report("0" * 32, "a" * 64, m.Measured(_MEASUREMENT)),
    "report-deeper": m.Report("0" * 32, "a" * 64, m.Measured(_DEEPER)),
    "report-failed": m.Report("0" * 32, "a" * 64, m.Failed("timeout", "no answer within 600 s")),
    "progress": m.Progress("0" * 32, "measuring", "window 2 of 5"),
    "telemetry": m.Telemetry(12.5, 3.0, 1 << 30, 45.5, None, 1 << 33, 10, 0, 1.25),
    "telemetry-served": m.Telemetry(
        12.5,
        requests=3,
        request_errors=1,
        request_latency=Histogram.of([1_250_000, 2_500_000]),
        request_inputs=(InputStats("x", 2, 32, 0.5, 0.25, -1.0, 1.5, 1, 2),),
    ),
}
FRAME = encode_frame(_BLOB.wire.sha256, 0, _FORM[:1024])


def encoded() -> dict[str, str]:
    """Bytes of every example, in hex, as this version writes them."""
    every = {**TO_DEVICE, **TO_HOST, "signed": _SIGNED}
    return {**{name: m.encode(message).hex() for name, message in every.items()}, "frame": FRAME.hex()}


if __name__ == "__main__":
    standing = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    GOLDEN.write_text(json.dumps({**encoded(), **standing}, indent=1, sort_keys=True) + "\n")
    TODAY.write_text(json.dumps(encoded(), indent=1, sort_keys=True) + "\n")
