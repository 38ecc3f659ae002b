"""What the container makes of files, and how fast it expands them, beside zstd -19, xz -9 and brotli (if installed).

`python benchmarks/container.py [FILE ...] [--rounds 9] [--write]` prints a table in Markdown, and puts it in
docs/benchmarks.md. Without files it takes ResNet-8 and LeNet-300-100 of the zoo, with weights zeroed (the smallest) and
shared (16 values a layer) and not trained again, since only sizes count here, and matrices of 10 MB of each kind.
Decoding is CPU time of one thread: of the fastest round, as `timeit` advises where other processes empty the caches,
and the median of all.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import lzma
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import zstandard
from edgepress_host import exporters
from edgepress_protocol import container
from edgepress_protocol.codec import best, decode
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "compression"))

import page

SHARED = 16
AT_LEAST_S = 0.2
Coder = Callable[[bytes], bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="put the table in docs/benchmarks.md")
    asked = parser.parse_args()
    if asked.files and asked.write:
        parser.error("--write is for the table of all files; leave FILE out")
    files = ((path.name, path.read_bytes()) for path in asked.files) if asked.files else made()
    coders, rows = others(), []
    for name, data in files:
        rows.append(row(name, data, coders, asked.rounds))
        print(" | ".join(rows[-1]), flush=True)
    text = page.table(["file", "bytes", *coders, "container", "encoded in", "decodes at", "median"], rows)
    print(text)
    if asked.write:
        page.write("container", f"{text}\n\n{page.machine()}.")


def row(name: str, data: bytes, coders: dict[str, Coder], rounds: int) -> list[str]:
    sizes = [f"{len(encode(data)):,}" for encode in coders.values()]
    started = time.thread_time()
    codec, form = best(data)
    took_s = time.thread_time() - started
    times_s: list[float] = []
    while len(times_s) < rounds or sum(times_s) < AT_LEAST_S:
        started = time.thread_time()
        expanded = sum(len(piece) for piece in decode(codec, [form], len(data)))
        times_s.append(time.thread_time() - started)
        assert expanded == len(data)
    rates = (f"{len(data) / taken_s / 1e6:.0f} MB/s" for taken_s in (min(times_s), statistics.median(times_s)))
    layouts = {segment.layout for segment in container.read_header(form).segments} if codec == "container" else {codec}
    size = f"{len(form):,} ({', '.join(sorted(layouts))})"
    return [name, f"{len(data):,}", *sizes, size, f"{took_s:.1f} s", *rates]


def others() -> dict[str, Coder]:
    coders: dict[str, Coder] = {
        "zstd -19": zstandard.ZstdCompressor(level=19).compress,
        "xz -9": lambda data: lzma.compress(data, preset=9),
    }
    try:
        brotli = importlib.import_module("brotli")
    except ImportError:
        return coders
    return {**coders, "brotli -11": brotli.compress}


def made() -> Iterator[tuple[str, bytes]]:
    from edgepress_models import lenet300, resnet8

    for name, model, left in (("ResNet-8", resnet8.pretrained(), 0.1), ("LeNet-300-100", lenet300.pretrained(), 0.025)):
        example = np.zeros((2, 1, 28, 28), np.float32)
        variants = {
            "fp32": model,
            f"{left:.3g} left": pressed(model, left, shared=False),
            f"{left:.3g} left, 16 shared": pressed(model, left, shared=True),
            "16 shared": pressed(model, 1.0, shared=True),
        }
        for kind, variant in variants.items():
            yield f"{name}, {kind}, ONNX", exporters.get("onnx").export(variant, example)
        if name == "ResNet-8":
            onnx = exporters.get("onnx").export(model, example)
            yield f"{name}, int8, ONNX", int8(onnx)
            yield f"{name}, fp32, TFLite", exporters.get("tflite").export(model, example)
    big = nn.Sequential(nn.Linear(1500, 1500), nn.Linear(1500, 250))
    torch.manual_seed(0)
    for layer in big:
        nn.init.normal_(layer.weight, std=0.02)
    example = np.zeros((2, 1500), np.float32)
    kinds = {
        "dense": big,
        "0.1 left": pressed(big, 0.1, shared=False),
        "0.03 left, 16 shared": pressed(big, 0.03, shared=True),
        "16 shared": pressed(big, 1.0, shared=True),
    }
    for kind, variant in kinds.items():
        yield f"10 MB, {kind}", exporters.get("onnx").export(variant, example)
    huge = nn.Sequential(nn.Linear(3200, 3200))
    nn.init.normal_(huge[0].weight, std=0.02)
    yield "10 MB, int8", int8(exporters.get("onnx").export(huge, np.zeros((2, 3200), np.float32)))


def pressed(model: nn.Module, left: float, *, shared: bool) -> nn.Module:
    """Keep the largest share `left` of each layer's weights, and let the rest be sixteen values."""
    result = copy.deepcopy(model).eval()
    with torch.no_grad():
        for weight in (one for one in result.parameters() if one.dim() > 1):
            threshold = np.quantile(weight.abs().numpy(), 1 - left) if left < 1 else -1.0
            gone = weight.abs() <= threshold
            if shared:
                kept = np.sort(weight[~gone].numpy())
                values = torch.from_numpy(
                    np.array([part.mean() for part in np.array_split(kept, SHARED) if len(part)], np.float32)
                )
                edges = (values[1:] + values[:-1]) / 2
                weight.copy_(values[torch.bucketize(weight, edges)])
            weight.masked_fill_(gone, 0.0)
    return result


def int8(onnx: bytes) -> bytes:
    """Quantize statically; noise is calibration enough where only the file's size counts."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Noise(CalibrationDataReader):
        def __init__(self) -> None:
            tensor = exporters.get("onnx").tensors(onnx)[0][0]
            shape = [1 if size is None else size for size in tensor.shape]
            chance = np.random.default_rng(0)
            self._left = [{tensor.name: chance.standard_normal(shape).astype(np.float32)} for _ in range(4)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self._left.pop() if self._left else None

    with tempfile.TemporaryDirectory() as folder:
        before, ready, after = (Path(folder, name) for name in ("before.onnx", "ready.onnx", "after.onnx"))
        before.write_bytes(onnx)
        quant_pre_process(before, ready)
        quantize_static(ready, after, Noise(), per_channel=True, weight_type=QuantType.QInt8)
        return after.read_bytes()


if __name__ == "__main__":
    main()
