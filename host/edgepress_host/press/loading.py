"""Reach a user's own code by `module:attr`: the model, the data, the metric."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from edgepress_protocol.errors import EdgepressError, UsageError
from torch import nn

from edgepress_host.text import one_line

USUAL = {"data.source": "load", "metric": "score"}
"""What users call the function that a key names, where it is not `build`."""


def resolve(reference: str, *, key: str) -> Any:
    """Import what `module:attr` names; `key` is where the user wrote it, for the error line.

    Raises UsageError when the module does not import or has no such attribute.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        usual = USUAL.get(key, "build")
        raise UsageError(f"{key} = {reference!r}: expected 'module:attr', for instance 'mynet:{usual}'")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{key} = {reference!r}: no module named {error.name!r}; run from the folder that holds it, or install it"
        ) from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"{key} = {reference!r}: importing {module_name} raised {one_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = _nearest(part, dir(found), USUAL.get(key))
            raise UsageError(f"{key} = {reference!r}: {module_name} has no attribute {part!r}{hint}")
        found = getattr(found, part)
    return found


def resolve_callable(reference: str, *, key: str) -> Callable[..., Any]:
    """Import a callable. Raises UsageError when it is something else."""
    found = resolve(reference, key=key)
    if not callable(found):
        raise UsageError(f"{key} = {reference!r}: expected a callable, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def load_module(reference: str, *, key: str = "model.source") -> nn.Module:
    """Import or build the torch module that `module:attr` names, in evaluation mode.

    Raises UsageError when it is neither a module nor a callable that returns one.
    """
    found = resolve_callable(reference, key=key)
    if not isinstance(found, nn.Module):
        # A seed of its own: a model that starts from random weights is the same one in every run.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = call_user(found, key=f"{key} = {reference!r}")
    if not isinstance(found, nn.Module):
        raise UsageError(
            f"{key} = {reference!r}: expected a torch.nn.Module or a callable that returns one, "
            f"got {type(found).__name__}"
        )
    odd = next(((name, w.dtype) for name, w in found.named_parameters() if w.dtype != torch.float32), None)
    if odd is not None:
        name, kind = odd[0], str(odd[1]).removeprefix("torch.")
        raise UsageError(f"{key} = {reference!r}: expected weights in float32, got {kind} in {name}; use model.float()")
    return found.eval()


def call_user(function: Callable[..., Any], *arguments: object, key: str) -> Any:
    """Call the user's function; whatever it raises becomes one line that names it."""
    try:
        return function(*arguments)
    except EdgepressError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{key}: it raised {one_line(error)}") from error


def is_onnx_file(source: str) -> bool:
    """Tell a foreign ONNX file from `module:attr`."""
    return Path(source).suffix == ".onnx"


def _nearest(wrong: str, known: list[str], usual: str | None) -> str:
    """Name the nearest attribute; the usual name goes before all that do not begin with it."""
    if usual not in known:
        return did_you_mean(wrong, known)
    return did_you_mean(wrong, [one for one in known if one.startswith(usual)]) or f"; did you mean {usual!r}?"


def did_you_mean(wrong: str, known: list[str]) -> str:
    """Name the nearest right word, as the end of an error line; empty where none is near.

    >>> did_you_mean("ratoi", ["ratio", "epochs"])
    "; did you mean 'ratio'?"
    """
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
