"""Attention heads, and hidden units of feed-forward parts: which ones go, and proof that the others are as before."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from edgepress_host.press.structure import sharers
from edgepress_host.press.training import every_output
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.prune import attention as heads
from edgepress_host.techniques.prune.plan import Wanted, share_of

Score = Literal["l1", "l2", "taylor"]


class Units(Protocol):
    """A part of a model that is made of units of which each can go."""

    def layers(self, model: nn.Module) -> list[str]:
        """Names of the layers that are narrowed."""

    def count(self, model: nn.Module) -> int:
        """How many units there are now."""

    def scores(self, model: nn.Module, power: int) -> Tensor:
        """Norm of order `power` of each unit's weights."""

    def gates(self, model: nn.Module) -> Tensor:
        """Gradient of the loss by a factor that each unit's output is multiplied with, from the weights' gradients."""

    def silence(self, model: nn.Module, kept: Sequence[int]) -> None:
        """Multiply the outputs of all other units by zero."""

    def ways(self) -> Iterator[Callable[[nn.Module, Sequence[int]], None]]:
        """Yield ways to keep some units, of which one fits the module's own code."""


class Heads:
    """The heads of the attention at `name`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def layers(self, model: nn.Module) -> list[str]:
        """Return the attention and what is below it."""
        return [self._name, *(f"{self._name}.{part}" for part, _ in model.get_submodule(self._name).named_modules())]

    def count(self, model: nn.Module) -> int:
        """Return how many there are now."""
        return heads.heads_of(heads.opened(model, self._name))

    def scores(self, model: nn.Module, power: int) -> Tensor:
        """Return the norm of order `power` of the weights of each, (units,)."""
        return heads.head_scores(heads.opened(model, self._name), power)

    def gates(self, model: nn.Module) -> Tensor:
        """Return the gradient by a factor behind each, (units,)."""
        return heads.head_gates(heads.opened(model, self._name))

    def silence(self, model: nn.Module, kept: Sequence[int]) -> None:
        """Multiply the outputs of all others by zero, in place."""
        heads.silence(heads.opened(model, self._name), kept)

    def ways(self) -> Iterator[Callable[[nn.Module, Sequence[int]], None]]:
        """Yield the ways to keep some that may fit the code around them."""
        for others in (False, True):
            for mixed in (False, True):

                def way(model: nn.Module, kept: Sequence[int], others: bool = others, mixed: bool = mixed) -> None:
                    heads.narrow(heads.opened(model, self._name), kept, others=others, mixed=mixed)

                yield way


class Hidden:
    """The units between two dense layers, `up` and `down`, named by the first one."""

    def __init__(self, up: str, down: str) -> None:
        self._up = up
        self._down = down

    def layers(self, _model: nn.Module) -> list[str]:
        """Return the two layers."""
        return [self._up, self._down]

    def count(self, model: nn.Module) -> int:
        """Return how many there are now."""
        return self._layers(model)[0].out_features

    def scores(self, model: nn.Module, power: int) -> Tensor:
        """Return the norm of order `power` of the weights of each, (units,)."""
        up, down = self._layers(model)
        return torch.cat([up.weight.detach(), down.weight.detach().T], dim=1).abs().pow(power).sum(1).pow(1 / power)

    def gates(self, model: nn.Module) -> Tensor:
        """Return the gradient by a factor behind each, (units,)."""
        down = self._layers(model)[1]
        assert down.weight.grad is not None
        return (down.weight.grad * down.weight.detach()).sum(dim=0)

    def silence(self, model: nn.Module, kept: Sequence[int]) -> None:
        """Multiply the outputs of all others by zero, in place."""
        down = self._layers(model)[1]
        mask = torch.zeros(down.in_features)
        mask[list(kept)] = 1
        with torch.no_grad():
            down.weight.mul_(mask)

    def ways(self) -> Iterator[Callable[[nn.Module, Sequence[int]], None]]:
        """Yield the ways to keep some that may fit the code around them."""

        def way(model: nn.Module, kept: Sequence[int]) -> None:
            up, down = self._layers(model)
            heads.keep_rows(up, torch.tensor(kept))
            heads.keep_columns(down, torch.tensor(kept))

        yield way

    def _layers(self, model: nn.Module) -> tuple[nn.Linear, nn.Linear]:
        up, down = model.get_submodule(self._up), model.get_submodule(self._down)
        assert isinstance(up, nn.Linear)
        assert isinstance(down, nn.Linear)
        return up, down


def hidden_parts(model: nn.Module) -> dict[str, Units]:
    """Feed-forward parts: two dense layers side by side in one module, the second back to the width of the first."""
    inside = heads.attentions(model)
    found: dict[str, Units] = {}
    for name, module in model.named_modules():
        if name in inside:
            continue
        own = [(child, layer) for child, layer in module.named_children() if isinstance(layer, nn.Linear)]
        for (first, up), (second, down) in itertools.pairwise(own):
            if (up.in_features, up.out_features) == (down.out_features, down.in_features):
                path = f"{name}." if name else ""
                found[path + first] = Hidden(path + first, path + second)
    return found


class UnitCut:
    """Takes units away from a model, in place, by a share of the way to the wanted ratios at each call."""

    def __init__(
        self,
        model: nn.Module,
        units: Mapping[str, Units],
        wanted: Mapping[str, Wanted],
        *,
        score: Score,
        over_model: bool,
        round_to: int,
        sample: Tensor,
        backward: Callable[[nn.Module], Iterator[None]],
    ) -> None:
        """Take the wanted parts. Raises StepFailed for one that shares a weight with another."""
        self._model = model
        self._units = {name: units[name] for name in wanted}
        shared = sharers(model, aliases=False)
        for name, part in self._units.items():
            for layer in part.layers(model):
                if layer in shared:
                    raise StepFailed(
                        f"{layer} shares its weight with {', '.join(shared[layer])}, so that nothing can be taken away "
                        f"there; skip it (layers.{name} = {{ skip = true }})"
                    )
        self._wanted = wanted
        self._score = score
        self._over_model = over_model
        self._round_to = round_to
        self._sample = sample
        self._backward = backward
        self._whole = {name: part.count(model) for name, part in self._units.items()}

    def __call__(self, share: float) -> None:
        """Take away what this round is to take. Raises StepFailed where nothing goes, or none can."""
        scores = self._scores()
        kept = choose(scores, self._whole, self._wanted, share, over_model=self._over_model, round_to=self._round_to)
        for name, units in kept.items():
            if len(units) < len(scores[name]):
                self._keep(name, units)
        left = {name: part.count(self._model) for name, part in self._units.items()}
        if share >= 1 and left == self._whole:
            raise StepFailed(f"the ratio takes nothing from {', '.join(left)}; ask for a higher one")

    def _scores(self) -> dict[str, Tensor]:
        if self._score != "taylor":
            power = {"l1": 1, "l2": 2}[self._score]
            return {name: part.scores(self._model, power) for name, part in self._units.items()}
        found = {name: torch.zeros(part.count(self._model)) for name, part in self._units.items()}
        for _ in self._backward(self._model):
            for name, part in self._units.items():
                found[name] += part.gates(self._model).abs()
        return found

    def _keep(self, name: str, kept: list[int]) -> None:
        """Narrow a part in the way that computes what the whole model does when the other units are silent."""
        part = self._units[name]
        silent = copy.deepcopy(self._model).eval()
        part.silence(silent, kept)
        for way in part.ways():
            tried = copy.deepcopy(self._model).eval()
            way(tried, kept)
            if _same(tried, silent, self._sample):
                way(self._model, kept)
                return
        raise StepFailed(
            f"{name}: its own code goes by the width that it was made with, so that nothing can be taken away there; "
            "let it use the widths of its layers, or skip it under layers"
        )


def choose(
    scores: Mapping[str, Tensor],
    whole: Mapping[str, int],
    wanted: Mapping[str, Wanted],
    share: float,
    *,
    over_model: bool,
    round_to: int,
) -> dict[str, list[int]]:
    """Return the units that stay, ascending, of each part: those with the highest scores.

    `whole` are the numbers at the start, to which the ratios refer. Over the whole model, scores are compared as
    multiples of their part's mean. A part keeps `round_to` units at least, and a multiple of it.
    """
    alone = {name for name, wish in wanted.items() if wish.own or not over_model}
    counts = {name: whole[name] - int(share_of(wanted[name].ratio, share) * whole[name] + 1e-6) for name in alone}
    together = [name for name in wanted if name not in alone]
    if together:
        total = sum(whole[name] for name in together)
        stay = total - int(share_of(wanted[together[0]].ratio, share) * total + 1e-6)
        relative = [scores[name] / scores[name].mean().clamp_min(1e-12) for name in together]
        joined = torch.cat(relative)
        best = torch.zeros_like(joined, dtype=torch.bool)
        best[joined.topk(min(stay, len(joined))).indices] = True
        parts = torch.split(best, [len(one) for one in relative])
        counts |= {name: int(part.sum()) for name, part in zip(together, parts, strict=True)}
    kept = {}
    for name, count in counts.items():
        own = scores[name]
        rounded = min(len(own), max(round_to, count - count % round_to))
        kept[name] = sorted(own.topk(rounded).indices.tolist())
    return kept


def _same(tried: nn.Module, silent: nn.Module, sample: Tensor) -> bool:
    """Tell whether two models answer alike; a module whose code does not fit its new widths may raise anything."""
    with torch.no_grad():
        expected = every_output(silent(sample))
        try:
            found = every_output(tried(sample))
        except (RuntimeError, ValueError, AssertionError, IndexError):
            return False
    return all(_near(*pair) for pair in zip(found, expected, strict=True))


def _near(found: Tensor, expected: Tensor) -> bool:
    close = 1e-4 * float(expected.abs().max()) + 1e-6
    return found.shape == expected.shape and bool(((found - expected).abs() <= close).all())
