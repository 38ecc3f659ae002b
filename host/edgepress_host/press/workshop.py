"""The work on one model: every result comes out of the cache, or is made and put there."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from edgepress_protocol import codec
from edgepress_protocol.errors import EdgepressError, Unavailable, UsageError
from torch import Generator, Tensor, nn

from edgepress_host import evaluate, exporters
from edgepress_host.press import code, faithful, structure
from edgepress_host.press.data import Data, Samples
from edgepress_host.press.loaded import loaded_bytes
from edgepress_host.press.loading import call_user, is_onnx_file, load_module, resolve_callable
from edgepress_host.press.measure import Counts, count_file, count_module, recount, wire_bytes
from edgepress_host.press.store import Store, key_of, no_space
from edgepress_host.press.strict import fields_of
from edgepress_host.press.training import Augment
from edgepress_host.recipe import Recipe
from edgepress_host.technique import StepFailed, Technique, Workbench
from edgepress_host.text import one_line
from edgepress_host.variants import Measured

T = TypeVar("T")
_LIBRARIES = (
    "ai-edge-litert",
    "ai-edge-quantizer",
    "edgepress",
    "litert-torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "torch",
    "torch-pruning",
)


class Pressed(msgspec.Struct, frozen=True):
    """A model on its way: the torch module where there is one, and its file in one format."""

    graph: bytes
    counts: Counts
    module: nn.Module | None = None
    module_digest: str = ""
    base: str = ""
    """`module:attr` whose structure the module has; empty for the recipe's own model."""


class Outcome(msgspec.Struct, frozen=True):
    """A step's result, how long it took when it was made, and what it had to say."""

    pressed: Pressed
    seconds: float
    notes: tuple[str, ...]


class Workshop:
    """Recipe, model, data and cache of one run."""

    def __init__(self, recipe: Recipe, out: Path, say: Callable[[str], None]) -> None:
        self.recipe = recipe
        self.store = Store(out / ".cache")
        self.say = say
        self.data = Data(
            resolve_callable(recipe.data.source, key="data.source"),
            key=recipe.data.source,
            validate_samples=recipe.data.validate_samples,
            test_samples=recipe.data.test_samples,
        )
        self.augment = None if recipe.data.augment is None else _augmentation(recipe.data.augment)
        self.score = evaluate.metric(recipe.metric)
        self._modules: dict[str, nn.Module] = {}
        self._uncached: dict[str, tuple[nn.Module, dict[str, Any]]] = {}

    def original(self) -> nn.Module:
        """Return the recipe's own torch module."""
        return self._base("")

    def start(self, format_: str) -> Pressed:
        """Return the uncompressed model in a format. Raises StepFailed."""
        if is_onnx_file(self.recipe.model.source):
            content = Path(self.recipe.model.source).read_bytes()
            return Pressed(content, attempt("reading the model", lambda: count_file(format_, content)))
        module = self.original()
        return self._exported(format_, module, structure.digest(module), "")

    def step(self, step: Technique, before: Pressed, format_: str) -> Outcome:
        """Return what a step makes of a model. Raises StepFailed."""
        return (self._module_step if step.stage == "module" else self._graph_step)(step, before, format_)

    def measure(self, format_: str, pressed: Pressed) -> Measured:
        """Accuracy on validate in the real runtime, and sizes. Raises StepFailed."""
        scored = self.scored(format_, pressed.graph, self.data.split("validate"), self.data.fingerprint("validate"))
        return Measured(
            accuracy=scored,
            params=pressed.counts.params,
            nonzero_params=pressed.counts.nonzero_params,
            macs=pressed.counts.macs,
            file_bytes=len(pressed.graph),
            wire_bytes=self._wire_bytes(pressed.graph),
        )

    def scored(self, format_: str, content: bytes, samples: Samples, fingerprint: str) -> float:
        """Accuracy of a file on samples. Raises StepFailed."""
        key = key_of("accuracy", format_, _sha256(content), fingerprint, self._metric_key(), surroundings())
        entry = self.store.fetch(key)
        if entry is None:
            value = attempt("running the file", lambda: evaluate.accuracy(format_, content, samples, self.score))
            entry = self.store.keep(key, {"accuracy": value}, {})
        return float(entry.facts["accuracy"])

    def _module_step(self, step: Technique, before: Pressed, format_: str) -> Outcome:
        assert before.module is not None
        key = self._key(step, before.module_digest)
        base = step.base() or before.base
        found = self._remembered(key, base)
        if found is None:
            bench, notes = self._bench()
            started = time.monotonic()
            module = attempt(step.tag, lambda: step.apply_module(_module(before), bench))
            made: dict[str, Any] = {"seconds": round(time.monotonic() - started, 3), "notes": notes}
            found = module, self._remember(key, module, base, made)
        module, facts = found
        pressed = self._exported(format_, module, structure.digest(module), base)
        return Outcome(pressed, float(facts["seconds"]), tuple(facts["notes"]))

    def _graph_step(self, step: Technique, before: Pressed, format_: str) -> Outcome:
        preparation = step.prepared()
        if preparation is None:
            return self._changed(step, before, format_)
        if before.module is None:
            raise StepFailed(f"{step.tag}: {preparation.tag} needs a torch module, and the model came as a file")
        ready = self._module_step(preparation, before, format_)
        done = self._changed(step, ready.pressed, format_)
        return Outcome(done.pressed, ready.seconds + done.seconds, ready.notes + done.notes)

    def _changed(self, step: Technique, before: Pressed, format_: str) -> Outcome:
        key = self._key(step, _sha256(before.graph), format_)
        entry = self.store.fetch(key)
        if entry is None:
            bench, notes = self._bench()
            started = time.monotonic()
            content = attempt(step.tag, lambda: step.apply_graph(format_, before.graph, bench))
            facts = {"seconds": round(time.monotonic() - started, 3), "notes": notes}
            entry = self.store.keep(key, facts, {"graph": content})
        graph = entry.blobs["graph"]
        counts = attempt("counting", lambda: recount(before.counts, format_, before.graph, graph))
        pressed = msgspec.structs.replace(before, graph=graph, counts=counts)
        return Outcome(pressed, float(entry.facts["seconds"]), tuple(entry.facts["notes"]))

    def _exported(self, format_: str, module: nn.Module, digest: str, base: str) -> Pressed:
        example = self.data.split("calibrate").x[:2]
        key = key_of("export", format_, digest, example.dtype.str, example.shape, surroundings())
        entry = self.store.fetch(key)
        if entry is None:
            self.say(f"exporting to {format_}")
            content = attempt(f"export to {format_}", lambda: self._faithful(format_, module, example))
            counts = attempt("counting", lambda: count_module(module, example[:1]))
            entry = self.store.keep(key, fields_of(counts), {"graph": content})
        counts = msgspec.convert(entry.facts, Counts)
        return Pressed(entry.blobs["graph"], counts, module, digest, base)

    def _faithful(self, format_: str, module: nn.Module, example: np.ndarray) -> bytes:
        """Return the bytes of a file that answers as the module does. Raises Unfaithful."""
        content = exporters.get(format_).export(module, example)
        faithful.check(format_, content, module, self.data.split("calibrate").x)
        return content

    def _remembered(self, key: str, base: str) -> tuple[nn.Module, dict[str, Any]] | None:
        if key in self._uncached:
            return self._uncached[key]
        entry = self.store.fetch(key)
        if entry is None:
            return None
        module = _rebuilt(self._base(base), entry.blobs["layers"], entry.blobs["tensors"], entry.facts["digest"])
        return None if module is None else (module, entry.facts)

    def _remember(self, key: str, module: nn.Module, base: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Keep a module only if what is written down gives the same module again."""
        digest = structure.digest(module)
        layers, tensors = structure.describe(module), structure.tensors(module)
        if _rebuilt(self._base(base), layers, tensors, digest) is None:
            facts["notes"].append("this model cannot be kept between runs; the step will be done again")
            self._uncached[key] = module, facts
            return facts
        return self.store.keep(key, facts | {"digest": digest}, {"layers": layers, "tensors": tensors}).facts

    def _base(self, reference: str) -> nn.Module:
        if reference not in self._modules:
            self._modules[reference] = load_module(reference or self.recipe.model.source)
        return self._modules[reference]

    def _bench(self) -> tuple[Workbench, list[str]]:
        notes: list[str] = []
        bench = Workbench(
            original=self.original,
            split=self.data.split,
            seed=self.recipe.seed,
            say=self.say,
            metric=self.score,
            augment=self.augment,
            note=notes.append,
            memo=self._known,
        )
        return bench, notes

    def _known(self, of: Sequence[str], measure: Callable[[], float]) -> float:
        """Return a number of some model on validate: a Memo."""
        key = key_of("number", of, self.data.fingerprint("validate"), self._metric_key(), surroundings())
        entry = self.store.fetch(key)
        if entry is not None:
            return float(entry.facts["value"])
        value = measure()
        # JSON has no NaN.
        if math.isfinite(value):
            self.store.keep(key, {"value": value}, {})
        return value

    def _key(self, step: Technique, input_digest: str, format_: str = "") -> str:
        teacher = structure.digest(self.original()) if step.stage == "module" else ""
        data = {name: self.data.fingerprint(name) for name in step.reads}
        augment = self.recipe.data.augment if step.stage == "module" else None
        metric = self._metric_key() if "validate" in step.reads else ""
        own = code.fingerprint([type(step).__module__, *([augment.partition(":")[0]] if augment else [])])
        parts = (step.tag, fields_of(step), input_digest, format_, teacher, data, self.recipe.seed, augment, metric)
        return key_of("step", *parts, step.extra_key(), own, surroundings())

    def _metric_key(self) -> str:
        module, _, attribute = self.recipe.metric.partition(":")
        return self.recipe.metric + (code.fingerprint([module]) if attribute else "")

    def loaded_bytes(self, format_: str, content: bytes) -> int:
        """Memory of a file in its runtime. Raises StepFailed."""
        key = key_of("loaded", format_, _sha256(content), surroundings())
        entry = self.store.fetch(key)
        if entry is None:
            found = attempt("loading the file", lambda: loaded_bytes(format_, content))
            entry = self.store.keep(key, {"loaded_bytes": found}, {})
        return int(entry.facts["loaded_bytes"])

    def _wire_bytes(self, content: bytes) -> int:
        key = key_of("wire", _sha256(content), code.fingerprint(codec.MADE_BY))
        entry = self.store.fetch(key) or self.store.keep(key, {"wire_bytes": wire_bytes(content)}, {})
        return int(entry.facts["wire_bytes"])


def attempt(what: str, work: Callable[[], T]) -> T:
    """Do what other libraries may fail at in any way; the failure becomes one line. Raises StepFailed.

    Mistakes of the user's and a full disk stop the whole run: they pass as they are.
    """
    try:
        return work()
    except (UsageError, Unavailable):
        raise
    except Exception as error:
        if no_space(error):
            raise Unavailable(f"{what}: the disk for temporary files is full; free some space and run again") from error
        root = _root(error)
        raise StepFailed(f"{what}: {root if isinstance(root, EdgepressError) else one_line(root)}") from error


@functools.cache
def surroundings() -> Mapping[str, str]:
    """Return what else decides a result: versions of the libraries, and this package's own code."""
    installed = {str(distribution.name).lower(): distribution.version for distribution in distributions()}
    found = {name: installed.get(name, "") for name in _LIBRARIES}
    own = hashlib.sha256()
    package = Path(evaluate.__file__).parent
    for pattern in ("techniques/**/*.py", "exporters/*.py", "evaluate.py", "technique.py", "press/*.py"):
        for path in sorted(package.glob(pattern)):
            own.update(path.read_bytes())
    return found | {"code": own.hexdigest()}


def _rebuilt(base: nn.Module, layers: bytes, tensors: bytes, digest: str) -> nn.Module | None:
    try:
        module = structure.rebuild(base, layers, tensors)
    except Exception:  # noqa: BLE001 - what cannot be rebuilt is made again; the caller says so
        return None
    return module if structure.digest(module) == digest else None


def _augmentation(reference: str) -> Augment:
    """Find the recipe's augmentation, and hold it to its promise. Raises UsageError."""
    found = resolve_callable(reference, key="data.augment")

    def augment(x: Tensor, chance: Generator) -> Tensor:
        made = call_user(found, x, chance, key="data.augment")
        if not isinstance(made, Tensor) or made.shape != x.shape:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise UsageError(f"data.augment: expected a tensor of shape {tuple(x.shape)}, got {got}")
        return made

    return augment


def _module(pressed: Pressed) -> nn.Module:
    assert pressed.module is not None
    return pressed.module


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
