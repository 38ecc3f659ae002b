"""How much memory a file takes once a runtime has loaded it: `python -m edgepress_host.press.loaded FORMAT FILE`.

A process of its own imports the runtime, then loads the file from disk with one thread and runs it once, as an agent
does; what its anonymous memory grew by is the file's. Reading the file's own pages (mapped, shared) is not counted.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from edgepress_host import exporters
from edgepress_host.evaluate import open_runner

_RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai_edge_litert.interpreter"}
_TIMEOUT_S = 600
"""After which a process hangs; importing torch took over a minute on a busy machine, which is no fault of the file."""


def loaded_bytes(format_: str, content: bytes) -> int:
    """Anonymous memory that loading and one run take, in bytes, in a process of its own.

    Raises RuntimeError where the file does not load or run there.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{exporters.get(format_).SUFFIX}"
        path.write_bytes(content)
        asked = [sys.executable, "-m", __name__, format_, str(path)]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        complaint = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"the file does not load in a process of its own: {complaint}")
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Load, run once, and print the bytes."""
    format_, path = sys.argv[1:]
    importlib.import_module(_RUNTIMES[format_])
    inputs, _ = exporters.get(format_).tensors(Path(path).read_bytes())
    shape = [1 if size is None else size for size in inputs[0].shape]
    zeros = np.zeros(shape, inputs[0].dtype)
    before = _anonymous_bytes()
    runner = open_runner(format_, Path(path))
    runner.run(zeros)
    sys.stdout.write(f"{max(0, _anonymous_bytes() - before)}\n")


def _anonymous_bytes() -> int:
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("expected RssAnon in /proc/self/status; memory is measured on Linux alone")
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
