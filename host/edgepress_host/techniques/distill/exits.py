"""Deep supervision: heads on inner features that learn with the network, teach its early layers, and are dropped."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch
from edgepress_protocol.errors import UsageError
from torch import Tensor, nn
from torch.nn import functional

from edgepress_host.press.loading import did_you_mean
from edgepress_host.press.trained import Trained
from edgepress_host.press.training import Step, first_output, supervised
from edgepress_host.technique import StepFailed, Workbench
from edgepress_host.techniques.distill.anew import seeded
from edgepress_host.techniques.distill.features import Seen, look, tapped, width
from edgepress_host.techniques.distill.lesson import Parts, check_labels, likenesses, regressor
from edgepress_host.techniques.distill.losses import unlike


class Exit(nn.Module):
    """A linear head on features (N, C, …), averaged over their places; answers in the shape of the network's own."""

    def __init__(self, channels: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.linear = nn.Linear(channels, int(torch.Size(shape).numel()))

    def forward(self, features: Tensor) -> Tensor:
        """Answer from inner features."""
        answer: Tensor = self.linear(_averaged(features))
        return answer.reshape(-1, *self.shape)


def deeply_supervised(
    student: nn.Module, parts: Parts, trainer: Trained, bench: Workbench, *, weight: float, exits: Sequence[str]
) -> nn.Module:
    """Train `student` in place by labels, while heads on inner layers learn from labels and from its last answers.

    Be your own teacher (Zhang et al. 2019, equations 2 to 5): labels + weight · Σ over the heads of
    [(1 - alpha) · labels + alpha · last answers + hint · features as the deepest]. With alpha = 0 and hint = 0 these
    are deeply supervised nets (Lee et al. 2015).
    """
    samples = bench.split("train").first(trainer.samples)
    seen = look(student, torch.from_numpy(samples.x[:2].copy()))
    check_labels(seen, samples, alpha=0)
    name, last = next(iter(seen.outputs.items()))
    likeness = likenesses(seen, samples, parts.outputs)[name]
    chosen = exits_of(student, seen, exits)
    bench.note(f"heads on {', '.join(chosen)} learnt beside it and were dropped")
    deepest = chosen[-1]
    hinted = [layer for layer in chosen if layer != deepest] if parts.hint > 0 else []
    target = width(seen.features[deepest])
    with seeded(bench.seed):
        heads = nn.ModuleList(Exit(width(seen.features[layer]), last.shape[1:]) for layer in chosen)
        regressors = nn.ModuleList(regressor(width(seen.features[layer]), target) for layer in hinted)

    with tapped(student, chosen) as features:

        def loss(outputs: object, step: Step) -> Tensor:
            end = first_output(outputs).detach()
            total = supervised(outputs, step)
            for layer, head in zip(chosen, heads, strict=True):
                early = head(features[layer])
                own = (1 - parts.alpha) * supervised(early, step)
                total = total + weight * (own + parts.alpha * unlike(early, end, likeness, parts.temperature))
            goal = _averaged(features[deepest]).detach()
            for layer, turned in zip(hinted, regressors, strict=True):
                early = turned(_averaged(features[layer]))
                total = total + weight * parts.hint * functional.mse_loss(early, goal)
            return total

        return trainer.train(student, bench, loss, also=[heads, regressors])


def exits_of(model: nn.Module, seen: Seen, patterns: Sequence[str]) -> list[str]:
    """Return the layers that get heads, in the order of execution: by pattern, else the outermost ones with weights.

    Raises UsageError for a pattern that matches nothing, StepFailed where there is no inner layer.
    """
    for pattern in patterns:
        if not fnmatch.filter(list(seen.features), pattern):
            raise UsageError(f"exits: {pattern!r} matches no inner layer{did_you_mean(pattern, list(seen.features))}")
    if patterns:
        return [name for name in seen.features if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    prefix, outermost = "", model
    # A model that is one part within a wrapper has its layers inside that part.
    while len(children := dict(outermost.named_children())) == 1:
        (name, outermost), *_ = children.items()
        prefix += f"{name}."
    found = [
        name
        for name in seen.features
        if name.startswith(prefix)
        and "." not in name[len(prefix) :]
        and any(True for _ in model.get_submodule(name).parameters())
    ]
    if not found:
        raise StepFailed("deep: this model has no inner layer for a head; name some in exits, or give deep = 0")
    return found


def _averaged(features: Tensor) -> Tensor:
    return features.flatten(2).mean(2) if features.ndim > 2 else features
