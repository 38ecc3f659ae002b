"""Weights that share values: found by k-means, and moved together while a model trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from edgepress_host.techniques.cluster.kmeans import Start, cluster


class Shared:
    """A parameter whose weights take few values; `slots` (the parameter's shape) tells which weights share one.

    Slot 0 is for zeros that stay. `error` is the squared error of the clustering, as a share of the squared norm.
    """

    def __init__(self, name: str, weight: nn.Parameter, slots: Tensor, count: int, error: float) -> None:
        self.name = name
        self.error = error
        self._weight = weight
        self._slots = slots.flatten()
        self._count = count

    def spread(self, gradient: Tensor) -> Tensor:
        """Give each weight the summed gradient of all that share its value: they move as one."""
        summed = self._summed(gradient)
        return summed[self._slots].reshape(gradient.shape).to(gradient.dtype)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within this, gradients are those of the shared values; after it, each value is one again, bit by bit.

        The optimiser's own state is the same for all that share, so that its steps are, but for rounding.
        """
        hook = self._weight.register_hook(self.spread)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            hook.remove()
            held = torch.bincount(self._slots, minlength=self._count).clamp_min(1)
            values = self._summed(self._weight.detach()) / held
            with torch.no_grad():
                self._weight.copy_(values[self._slots].reshape(self._weight.shape))

    def _summed(self, of: Tensor) -> Tensor:
        """Sum over the weights of each slot; nothing for the zeros."""
        summed = torch.bincount(self._slots, weights=of.flatten().double(), minlength=self._count)
        summed[0] = 0
        return summed


@contextlib.contextmanager
def together(shared: Sequence[Shared]) -> Iterator[None]:
    """Let the weights of several parameters move together."""
    with contextlib.ExitStack() as stack:
        for one in shared:
            stack.enter_context(one.together())
        yield


def share(
    name: str,
    weight: nn.Parameter,
    *,
    count: int,
    axis: int | None,
    start: Start,
    keep_zeros: bool,
    chance: torch.Generator,
) -> Shared:
    """Replace the weights by at most `count` values, in place: of all, or of each place along `axis`.

    With `keep_zeros`, zero is one of them where there are zeros.
    """
    before = weight.detach()
    moved = before if axis is None else before.movedim(axis, 0)
    rows = moved.reshape(1 if axis is None else len(moved), -1)
    zeros = rows == 0
    sparse = keep_zeros and bool(zeros.any())
    found = cluster(
        rows, count - 1 if sparse else count, start=start, chance=chance, left_out=zeros if sparse else None
    )
    values = found.values.to(before.dtype)
    slots = found.taken + 1 + values.shape[1] * torch.arange(len(rows))[:, None]
    if sparse:
        slots = slots.masked_fill(zeros, 0)
    replaced = torch.cat([values.new_zeros(1), values.flatten()])[slots]
    back = [part.reshape(moved.shape).movedim(0, axis or 0).contiguous() for part in (replaced, slots)]
    error = float((replaced - rows).square().sum() / rows.square().sum().clamp_min(1e-30))
    with torch.no_grad():
        weight.copy_(back[0])
    return Shared(name, weight, back[1], values.numel() + 1, error)
