"""A recipe: TOML in, frozen records out. What the user wrote is checked here, once; inside, the types are trusted."""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from edgepress_protocol.errors import UsageError

from edgepress_host import exporters, technique
from edgepress_host.choice.budget import Budget
from edgepress_host.press.loading import did_you_mean, is_onnx_file
from edgepress_host.press.strict import convert
from edgepress_host.technique import Technique, Trait

ORIGINAL = "original"
_TRAITS: dict[Trait, str] = {
    "zeros": "the zeros",
    "pattern": "the N:M pattern of zeros",
    "shared": "the shared values",
    "grid": "the low-bit values",
    "factors": "the factors",
}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What PyTorch and NumPy take as one."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the tables of a recipe."""


class ModelTable(Record, frozen=True):
    """`[model]`: `source` is `module:attr` (a torch module, or a callable that returns one) or a file.onnx."""

    source: str

    @property
    def name(self) -> str:
        """The source without the folder that it happens to be in."""
        return Path(self.source).name if is_onnx_file(self.source) else self.source


class DataTable(Record, frozen=True):
    """`[data]`: `source` is `module:attr` of `load(split) -> (x, y)`; the limits take the first samples of a split.

    `augment` is `module:attr` of `augment(x, generator) -> x` for training batches, a tensor (B, …) each way.
    """

    source: str
    augment: str | None = None
    validate_samples: int | None = None
    test_samples: int | None = None


class Guard(Record, frozen=True):
    """`[guard]`: a step that loses more accuracy than `max_drop` against the original is not kept."""

    max_drop: float = 0.05


class Variant(Record, frozen=True):
    """One named way to press the model: ordered steps, exported in each of the formats."""

    name: str
    formats: tuple[str, ...]
    steps: tuple[Technique, ...]


class Recipe(Record, frozen=True):
    """All that a compress run is told."""

    model: ModelTable
    data: DataTable
    variants: tuple[Variant, ...]
    metric: str = "top1"
    seed: Seed = 0
    guard: Guard = Guard()
    budget: Budget = Budget()

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's meaning: comments, layout and the place of the file do not count."""
        placeless = msgspec.structs.replace(self, model=ModelTable(source=self.model.name))
        return hashlib.sha256(msgspec.json.encode(placeless, order="sorted")).hexdigest()

    @property
    def formats(self) -> tuple[str, ...]:
        """Every format that some variant asks for, in a fixed order."""
        return tuple(sorted({name for variant in self.variants for name in variant.formats}))


class _VariantTable(Record, frozen=True):
    name: str
    formats: tuple[str, ...] = ("onnx",)
    steps: tuple[dict[str, Any], ...] = ()


class _RecipeFile(Record, frozen=True):
    model: ModelTable
    data: DataTable
    variant: tuple[_VariantTable, ...] = ()
    metric: str = "top1"
    seed: Seed = 0
    guard: Guard = Guard()
    budget: Budget = Budget()


def load(path: Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe; `settings` by key, such as "guard.max_drop", stand in place of what it says.

    Raises UsageError, one line with the file and the key, where it cannot be followed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot read the recipe ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from error
    try:
        return parse(text, settings, folder=path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def parse(text: str, settings: Mapping[str, Any] | None = None, *, folder: Path = Path()) -> Recipe:
    """Check a recipe's text with `settings` in their places. Raises UsageError.

    A model file is looked for from `folder`; one that `settings` name, from the working folder.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not TOML: {error}") from error
    settings = settings or {}
    for key, value in settings.items():
        _set(tables, key, value)
    if "model.source" in settings:
        folder = Path()
    file = convert(tables, _RecipeFile)
    variants = tuple(_variant(table, index) for index, table in enumerate(file.variant))
    recipe = Recipe(
        model=ModelTable(source=_model_source(file.model.source, folder)),
        data=file.data,
        variants=variants,
        metric=file.metric,
        seed=file.seed,
        guard=file.guard,
        budget=file.budget,
    )
    _check_whole(recipe)
    return recipe


def _set(tables: dict[str, Any], key: str, value: Any) -> None:
    *path, name = key.split(".")
    at = tables
    for part in path:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            way = "; [[variant]] is changed in the recipe itself" if part == "variant" else ""
            raise UsageError(f"--set {key}: {part} is no table{way}")
    at[name] = value


def _model_source(source: str, folder: Path) -> str:
    if not is_onnx_file(source):
        return source
    path = (folder / source).resolve()
    if not path.is_file():
        raise UsageError(f"model.source: no file {source} in {folder.resolve()}")
    return str(path)


def _variant(table: _VariantTable, index: int) -> Variant:
    where = f"variant[{index}]"
    if not _NAME.fullmatch(table.name):
        raise UsageError(
            f"{where}.name: expected lower-case letters, digits and . _ - (at most 63), got {table.name!r}"
        )
    known = exporters.names()
    for name in table.formats:
        if name not in known:
            raise UsageError(f"{where}.formats: expected some of {', '.join(known)}, got {name!r}")
    if len(set(table.formats)) < len(table.formats):
        raise UsageError(f"{where}.formats: expected each format once, got {', '.join(table.formats)}")
    if not table.formats:
        raise UsageError(f"{where}.formats: expected some of {', '.join(known)}, got none")
    if not table.steps:
        raise UsageError(f"{where}.steps: expected at least one step; the original is always included by itself")
    steps = tuple(_step(step, f"{where}.steps[{number}]") for number, step in enumerate(table.steps))
    for number in range(1, len(steps)):
        if steps[number - 1].stage == "graph" and steps[number].stage == "module":
            raise UsageError(
                f"{where}.steps[{number}]: {steps[number].tag} works on the torch module and must come before "
                f"{steps[number - 1].tag}, which works on the exported file"
            )
    _check_order(steps, where)
    return Variant(name=table.name, formats=table.formats, steps=steps)


def _check_order(steps: tuple[Technique, ...], where: str) -> None:
    """Refuse a step that undoes what an earlier one made: the order makes no sense."""
    makers: dict[Trait, int] = {}
    for number, step in enumerate(steps):
        for trait in sorted(step.breaks() & makers.keys()):
            raise UsageError(
                f"{where}.steps[{number}]: {step.tag} would undo {_TRAITS[trait]} that {steps[makers[trait]].tag} "
                f"(steps[{makers[trait]}]) makes; put {step.tag} before it"
            )
        if number and step.starts_over():
            raise UsageError(
                f"{where}.steps[{number}]: {step.tag} starts from another model, and nothing of what "
                f"{steps[number - 1].tag} (steps[{number - 1}]) makes would be left; put {step.tag} first"
            )
        makers |= dict.fromkeys(step.makes(), number)


def _step(table: dict[str, Any], where: str) -> Technique:
    options = dict(table)
    tag = options.pop("technique", None)
    known = technique.found()
    if not isinstance(tag, str):
        raise UsageError(f"{where}.technique: expected one of {', '.join(known)}, got {tag!r}")
    if tag not in known:
        raise UsageError(
            f"{where}.technique: expected one of {', '.join(known)}, got {tag!r}{did_you_mean(tag, list(known))}"
        )
    step = convert(options, known[tag], where=where)
    try:
        step.check()
    except UsageError as error:
        raise UsageError(f"{where}.{error}") from error
    return step


def _check_whole(recipe: Recipe) -> None:
    if not recipe.variants:
        raise UsageError("variant: expected at least one [[variant]] table, got none")
    names = [variant.name for variant in recipe.variants]
    for index, name in enumerate(names):
        if name == ORIGINAL or name in names[:index]:
            taken = "is the uncompressed model's own name" if name == ORIGINAL else "is taken by another variant"
            raise UsageError(f"variant[{index}].name: {name!r} {taken}")
    recipe.budget.check()
    if not 0 <= recipe.guard.max_drop < math.inf:
        raise UsageError(f"guard.max_drop: expected 0 or more, got {recipe.guard.max_drop}")
    _positive(recipe.data.validate_samples, "data.validate_samples")
    _positive(recipe.data.test_samples, "data.test_samples")
    if not is_onnx_file(recipe.model.source):
        return
    for index, variant in enumerate(recipe.variants):
        for number, step in enumerate(variant.steps):
            if step.stage == "module":
                raise UsageError(
                    f"variant[{index}].steps[{number}]: {step.tag} needs a torch module; "
                    "a model that comes as an ONNX file can only be quantized"
                )
        if variant.formats != ("onnx",):
            raise UsageError(f"variant[{index}].formats: a model that comes as an ONNX file stays ONNX")


def _positive(value: int | None, key: str) -> None:
    if value is not None and value < 1:
        raise UsageError(f"{key}: expected a positive number, got {value}")
