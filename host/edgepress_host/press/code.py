"""Which source files of the user's own decide a result: part of the cache's keys."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType

_OURS = ("edgepress_host", "edgepress_protocol")
"""Covered as a whole by what the workshop calls its surroundings."""


def fingerprint(modules: Iterable[str]) -> str:
    """SHA-256 of the files of these modules, and of every module of the user's own that they use.

    What is installed is followed no further, and a module that was never loaded counts for nothing.
    """
    found = hashlib.sha256()
    for path in sorted(_files(modules)):
        found.update(Path(path).read_bytes())
    return found.hexdigest()


def _files(roots: Iterable[str]) -> set[str]:
    waiting, seen, files = list(roots), set(_OURS), set[str]()
    first = set(waiting)
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name in seen or module is None or not isinstance(file, str):
            continue
        seen.add(name)
        installed = _is_installed(file)
        if name in first or not installed:
            files.add(file)
        if not installed:
            waiting += [used for used in _used_by(module) if used.partition(".")[0] not in _OURS]
    return files


def _used_by(module: ModuleType) -> Iterator[str]:
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value.__name__
        else:
            yield str((value if isinstance(value, type | FunctionType) else type(value)).__module__)


def _is_installed(file: str) -> bool:
    parts = Path(file).parts
    places = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return "site-packages" in parts or "dist-packages" in parts or any(Path(file).is_relative_to(p) for p in places)
