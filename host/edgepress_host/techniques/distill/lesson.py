"""One network's lesson from another: the parts of the loss, made ready for these two and held to their shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import msgspec
import torch
from edgepress_protocol.errors import UsageError
from torch import Tensor, nn

from edgepress_host.press.data import Samples
from edgepress_host.press.loading import did_you_mean
from edgepress_host.press.training import Step, holds_classes, supervised
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.distill import losses
from edgepress_host.techniques.distill.features import Seen, by_name, look, pairs_of, tapped, width
from edgepress_host.techniques.distill.losses import Likeness, unlike

Pair = tuple[str, str]
Relation = Callable[[Tensor, Tensor], Tensor]


class Parts(msgspec.Struct, frozen=True):
    """What a lesson is made of: the weights of its losses, which answers are compared how, which layers with which."""

    alpha: float
    temperature: float
    hint: float = 0.0
    attention: float = 0.0
    distance: float = 0.0
    angle: float = 0.0
    outputs: Mapping[str, Likeness] = msgspec.field(default_factory=dict)
    features: Mapping[str, str] = msgspec.field(default_factory=dict)


class Lesson:
    """The loss of a learner that is taught by a guide; a context, in which both networks' features are tapped.

    loss = alpha · answers + (1 - alpha) · labels + hint · hints + attention · maps + distance · … + angle · …
    """

    def __init__(self, parts: Parts, learner: nn.Module, guide: nn.Module, samples: Samples) -> None:
        """Look at both networks. Raises UsageError (a name in the options) or StepFailed (shapes that do not fit)."""
        self._parts = parts
        x = torch.from_numpy(samples.x[:2].copy())
        own, other = look(learner, x), look(guide, x)
        _same_outputs(own, other)
        check_labels(own, samples, parts.alpha)
        self._likeness = likenesses(own, samples, parts.outputs)
        fits: dict[str, Callable[[Tensor, Tensor], bool]] = {
            "hint": lambda a, b: a.ndim == b.ndim,
            "attention": lambda a, b: a.ndim == b.ndim > 2,
            "distance": lambda _a, _b: True,
            "angle": lambda _a, _b: True,
        }
        self._pairs = {
            name: _pairs(name, parts.features, own, other, fit) if getattr(parts, name) > 0 else []
            for name, fit in fits.items()
        }
        self.regressors = nn.ModuleDict(
            {
                _key(pair): regressor(width(own.features[pair[0]]), width(other.features[pair[1]]))
                for pair in self._pairs["hint"]
            }
        )
        every = [pair for pairs in self._pairs.values() for pair in pairs]
        self._learner = tapped(learner, {name for name, _ in every})
        self._guide = tapped(guide, {name for _, name in every})

    def __enter__(self) -> Self:
        """Begin to listen to both networks."""
        self._own, self._other = self._learner.__enter__(), self._guide.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave both networks as they were."""
        self._learner.__exit__(None, None, None)
        self._guide.__exit__(None, None, None)

    @property
    def looks_inside(self) -> bool:
        """Tell whether the guide has to run for its features, even where its answers are known."""
        return any(self._pairs.values())

    def loss(self, outputs: object, answers: object, step: Step, *, hints: bool = True) -> Tensor:
        """All parts, weighted; both networks have just run on the batch, and nothing is learnt by the guide."""
        parts = self._parts
        total = (1 - parts.alpha) * supervised(outputs, step) if parts.alpha < 1 else torch.zeros(())
        if parts.alpha > 0:
            guide = by_name(answers)
            total = total + parts.alpha * sum(
                unlike(own, guide[name].detach(), self._likeness[name], parts.temperature)
                for name, own in by_name(outputs).items()
            )
        if parts.hint > 0 and hints:
            total = total + parts.hint * self.hints()
        relations: dict[str, Relation] = {
            "attention": losses.attention,
            "distance": losses.distance,
            "angle": losses.angle,
        }
        for name, relation in relations.items():
            for pair in self._pairs[name]:
                total = total + getattr(parts, name) * relation(*self._features(pair))
        return total

    def hints(self) -> Tensor:
        """Sum of the hints' losses over the pairs of layers, unweighted."""
        found = [losses.hint(*self._features(pair), self.regressors[_key(pair)]) for pair in self._pairs["hint"]]
        return torch.stack(found).sum()

    def _features(self, pair: Pair) -> tuple[Tensor, Tensor]:
        return self._own[pair[0]], self._other[pair[1]].detach()


def regressor(own: int, other: int) -> nn.Module:
    """Return what turns the learner's channels, in the last dimension, into as many as the guide has."""
    return nn.Identity() if own == other else nn.Linear(own, other)


def likenesses(seen: Seen, samples: Samples, wanted: Mapping[str, Likeness]) -> dict[str, Likeness]:
    """Say for each output how it is compared: as wanted, else the classes' scores softened and all else as values.

    Raises UsageError for an output that does not exist.
    """
    for name in wanted:
        if name not in seen.outputs:
            known = list(seen.outputs)
            raise UsageError(f"outputs.{name}: no such output; {_named(known)}{did_you_mean(name, known)}")
    first, *rest = seen.outputs
    scores = holds_classes(samples.y) and seen.outputs[first].ndim == 2
    usual: dict[str, Likeness] = {first: "soft" if scores else "mse"}
    return usual | dict.fromkeys(rest, "mse") | dict(wanted)


def check_labels(seen: Seen, samples: Samples, alpha: float) -> None:
    """Refuse labels that say nothing about the first output, where they count. Raises StepFailed."""
    name, first = next(iter(seen.outputs.items()))
    way_out = "with alpha = 1 the teacher's answers alone count"
    if alpha == 1:
        return
    if not holds_classes(samples.y):
        if samples.y[0].size != first[0].numel():
            raise StepFailed(
                f"alpha = {alpha:g}: these labels are no classes, and with shape {samples.y.shape[1:]} no values for "
                f"output {name!r} of shape {_shape(first)}; {way_out}"
            )
    elif first.ndim != 2 or first.shape[1] <= int(samples.y.max()):
        raise StepFailed(
            f"alpha = {alpha:g}: the labels are classes up to {int(samples.y.max())}, and output {name!r} of shape "
            f"{_shape(first)} holds no scores for them; {way_out}"
        )


def _same_outputs(own: Seen, other: Seen) -> None:
    shapes = [{name: _shape(value) for name, value in seen.outputs.items()} for seen in (own, other)]
    if shapes[0] != shapes[1]:
        student, teacher = (", ".join(f"{name!r} {shape}" for name, shape in found.items()) for found in shapes)
        raise StepFailed(
            f"the student gives outputs {student}, the teacher {teacher}; name a teacher or student whose outputs agree"
        )


def _pairs(
    loss: str, wanted: Mapping[str, str], own: Seen, other: Seen, fit: Callable[[Tensor, Tensor], bool]
) -> list[Pair]:
    """Return the wanted pairs that a loss can use; without any wanted, the deepest layers that share a name."""

    def usable(pair: Pair) -> bool:
        return fit(own.features[pair[0]], other.features[pair[1]])

    if not wanted:
        common = [(name, name) for name in own.features if name in other.features]
        chosen = [pair for pair in common if usable(pair)][-1:]
        if not chosen:
            raise UsageError(
                f"features: {loss} found no layers of one name that it can compare; give pairs such as "
                f"{{{next(iter(own.features), 'layer')!r} = {next(iter(other.features), 'layer')!r}}}"
            )
        return chosen
    pairs = pairs_of(wanted, own.features, other.features)
    chosen = [pair for pair in pairs if usable(pair)]
    # Attention is for maps, and leaves other pairs to the other losses; a hint is meant for every pair.
    if not chosen or (loss == "hint" and len(chosen) < len(pairs)):
        first = next(pair for pair in pairs if not usable(pair))
        shapes = [_shape(own.features[first[0]]), _shape(other.features[first[1]])]
        raise StepFailed(
            f"features.{first[0]!r}: {loss} cannot compare {shapes[0]} of the student with {shapes[1]} of the "
            f"teacher's {first[1]!r}; pair layers with as many dimensions" + (", maps" if loss == "attention" else "")
        )
    return chosen


def _shape(value: Tensor) -> tuple[int, ...]:
    """Shape of one sample."""
    return tuple(value.shape[1:])


def _key(pair: Pair) -> str:
    """Return a name that a dictionary of modules takes."""
    return "|".join(pair).replace(".", "/")


def _named(names: list[str]) -> str:
    return f"the model's outputs are {', '.join(repr(name) for name in names)}"
