"""What a manifest asks of the runtime: `needs` is a comma-separated list of `PACKAGE` or `PACKAGE>=VERSION`."""

from __future__ import annotations

import re

from edgepress_protocol.manifest import Manifest
from edgepress_protocol.measurement import Runtime

from edgepress_agent import runtimes

_NEED = re.compile(r"^([A-Za-z0-9._-]+?)\s*(?:>=\s*([0-9][0-9.]*))?$")


def unmet(manifest: Manifest) -> str:
    """Return the line that says why no runtime here can run the variant; empty where one can."""
    try:
        runtime, _ = runtimes.get(manifest.format)
    except runtimes.Unsupported as error:
        return str(error)
    lacking = [need for need in _split(manifest.needs) if not meets(runtime, need)]
    if lacking:
        return f"the variant needs {', '.join(lacking)}; this agent has {runtime.name} {runtime.version}"
    return ""


def meets(runtime: Runtime, need: str) -> bool:
    """Whether a runtime is what one need names.

    >>> meets(Runtime("onnxruntime", "1.23.2", "onnx"), "onnxruntime>=1.9")
    True
    """
    matched = _NEED.match(need)
    if matched is None or matched[1].lower() != runtime.name.lower():
        return False
    return matched[2] is None or _numbers(runtime.version) >= _numbers(matched[2])


def _split(needs: str) -> list[str]:
    return [need.strip() for need in needs.split(",") if need.strip()]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
