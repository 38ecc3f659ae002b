"""A loop around a runtime as anybody would write it: `bare_loop.py FILE`; for each line of seconds it prints p50 in ns.

It imports nothing of edgepress. One thread, no spinning, no garbage collection: the same as the agent.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np


def loop_of(path: str) -> Callable[[], object]:
    return onnx(path) if path.endswith(".onnx") else tflite(path)


def onnx(path: str) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {
        each.name: random.standard_normal([1 if isinstance(size, str) else size for size in each.shape]).astype("f4")
        for each in session.get_inputs()
    }
    return lambda: session.run(None, feeds)


def tflite(path: str) -> Callable[[], object]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    random = np.random.default_rng(0)
    for each in interpreter.get_input_details():
        interpreter.set_tensor(each["index"], random.standard_normal(each["shape"]).astype(each["dtype"]))
    return interpreter.invoke


def p50_ns(run: Callable[[], object], seconds: float) -> float:
    samples = []
    gc.collect()
    gc.disable()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter_ns()
        run()
        samples.append(time.perf_counter_ns() - started)
    gc.enable()
    return statistics.median_low(samples)


def main() -> None:
    run = loop_of(sys.argv[1])
    for line in sys.stdin:
        print(p50_ns(run, float(line)), flush=True)


if __name__ == "__main__":
    main()
