"""Runtimes: one module each, which says the artifact format that it runs; of two for a format, its namesake is first.

A runtime module has `available()`, which imports nothing heavy and is asked in the agent's own process; `prepare()` and
`load()` run in a child process only; `_timing` and `_state` name what it may offer beside these. Other packages add one
with an entry point of the group `edgepress.runtimes` that points to such a module.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from edgepress_protocol.errors import EdgepressError, UsageError
from edgepress_protocol.manifest import TensorSpec
from edgepress_protocol.measurement import Runtime

from edgepress_agent.installed import entry_points, version

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    Array = NDArray[Any]

ENTRY_POINTS = "edgepress.runtimes"

_offered: set[str] = set()
"""Names that `offer_only` was given at start-up; empty offers every runtime that is installed."""


class Unsupported(EdgepressError):  # noqa: N818 - it names what the runtime said
    """This file cannot run in this runtime at all: an operator, a type or a shape that it does not know."""


class Model(Protocol):
    """A loaded model. Arrays go in and come out in the order of `inputs` and `outputs`, in their stored types."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the file says of its inputs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the file says of its outputs."""

    @property
    def resizable(self) -> bool:
        """Whether a fixed first dimension can be changed by feeding another."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once."""


class RuntimeModule(Protocol):
    """What a runtime's module offers."""

    def available(self) -> Runtime | None:
        """Return the installed runtime, or None; imports neither it nor numpy."""

    def prepare(self) -> None:
        """Import the runtime; what the process holds after this is the empty runtime's baseline."""

    def load(self, path: Path, threads: int) -> Model:
        """Load a file, to run on the CPU with so many threads.

        Raises:
            Unsupported: the runtime does not know what the file asks for.
        """


@functools.cache
def every() -> dict[str, RuntimeModule]:
    """Return all runtime modules by name, installed or not. They are looked for once: it takes milliseconds."""
    formats = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    own = {name: _as_runtime(importlib.import_module(f"{__name__}.{name}")) for name in formats}
    foreign = entry_points(ENTRY_POINTS)
    return {**own, **{name: _as_runtime(pkgutil.resolve_name(target)) for name, target in foreign.items()}}


def offer_only(names: Sequence[str]) -> None:
    """Let this process offer only these of the installed runtimes, for as long as it runs.

    Raises:
        UsageError: one of them is not installed.
    """
    have = {runtime.name for runtime in installed()}
    for name in names:
        if name not in have:
            raise UsageError(
                f"--runtime {name}: not installed here; this agent has {', '.join(sorted(have)) or 'none'}"
            )
    _offered.update(names)


def installed() -> tuple[Runtime, ...]:
    """Return the runtimes that this agent can start, and offers."""
    found = (_offer(module) for module in every().values())
    return tuple(runtime for runtime in found if runtime is not None)


def get(artifact_format: str, name: str = "") -> tuple[Runtime, RuntimeModule]:
    """Return the runtime for a format, of two the one of that `name`.

    What `offer_only` was given holds in its own process: a child is told the name that the agent chose.

    Raises:
        Unsupported: none is installed.
    """
    candidates = sorted(every().items(), key=lambda each: each[0] != artifact_format)
    for _, module in candidates:
        runtime = _offer(module)
        if runtime is not None and runtime.format == artifact_format and name in ("", runtime.name):
            return runtime, module
    have = ", ".join(f"{each.format} ({each.name} {each.version})" for each in installed()) or "none"
    wanted = f"no runtime {name}" if name else "no runtime"
    raise Unsupported(f"{wanted} for format {artifact_format!r} is installed; this agent runs: {have}")


@functools.cache
def distribution(artifact_format: str, module: str, packages: tuple[str, ...]) -> Runtime | None:
    """Return the first installed of `packages` that brings an importable `module`; a helper for runtime modules."""
    if importlib.util.find_spec(module) is None:
        return None
    versions = ((package, version(package)) for package in packages)
    return next((Runtime(package, version, artifact_format) for package, version in versions if version), None)


def _offer(module: RuntimeModule) -> Runtime | None:
    runtime = module.available()
    return runtime if runtime is not None and (not _offered or runtime.name in _offered) else None


def _as_runtime(loaded: object) -> RuntimeModule:
    return cast("RuntimeModule", loaded)
