"""k-means in one dimension, for many rows at once: Lloyd's algorithm on sorted values and their prefix sums.

In one dimension clusters are intervals. A round is then K searches in each sorted row, whatever the row's length.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Start = Literal["linear", "density", "random"]
ROUNDS = 300


class Clusters(NamedTuple):
    """Values (rows, K) in ascending order, and for each weight (rows, n) which one it takes."""

    values: Tensor
    taken: Tensor


def cluster(
    weights: Tensor,
    count: int,
    *,
    start: Start,
    chance: torch.Generator,
    left_out: Tensor | None = None,
    rounds: int = ROUNDS,
) -> Clusters:
    """Cluster each row of `weights` (rows, n) into at most `count` values, which minimise the squared error.

    Weights where `left_out` is true do not count; what they take has no meaning. A row with at most `count`
    different weights keeps them exactly. Rounds end when no weight changes its cluster; no round adds to the error.
    """
    values = weights.double()
    if left_out is not None:
        values = values.masked_fill(left_out, torch.inf)
    rows = values.sort(dim=1).values
    lengths = rows.isfinite().sum(dim=1, keepdim=True)
    finite = rows.where(rows.isfinite(), 0.0)
    sums, squares = (torch.nn.functional.pad(part.cumsum(1), (1, 0)) for part in (finite, finite.square()))
    found = _keep_few(rows, _started(rows, lengths, count, start, chance))
    bounds = _bounds(rows, lengths, found)
    for _ in range(rounds):
        held = bounds.diff(dim=1)
        totals = sums.gather(1, bounds).diff(dim=1)
        means = totals / held.clamp_min(1)
        errors = squares.gather(1, bounds).diff(dim=1) - totals * means
        found = _put_to_use(rows, bounds, torch.where(held > 0, means, found), held, errors)
        moved = _bounds(rows, lengths, found)
        if torch.equal(moved, bounds):
            break
        bounds = moved
    return Clusters(found, torch.searchsorted(_middles(found), weights.double(), right=True))


def _bounds(rows: Tensor, lengths: Tensor, values: Tensor) -> Tensor:
    """Where each cluster begins and ends in the sorted rows: (rows, K + 1)."""
    inner = torch.searchsorted(rows, _middles(values))
    return torch.cat([torch.zeros_like(lengths), inner.minimum(lengths), lengths], dim=1)


def _put_to_use(rows: Tensor, bounds: Tensor, values: Tensor, held: Tensor, errors: Tensor) -> Tensor:
    """Move one value that no weight takes, in each row that has one, to the end of the cluster of the largest error.

    Evenly spaced values fall into the gap that pruning leaves around zero.
    """
    largest, worst = errors.max(dim=1, keepdim=True)
    idle = (held == 0).float().argmax(dim=1, keepdim=True)
    able = (held == 0).any(dim=1, keepdim=True) & (largest > 1e-12 * errors.sum(dim=1, keepdim=True)) & (largest > 0)
    last = (bounds.gather(1, worst + 1) - 1).clamp_min(0)
    moved = torch.where(able, rows.gather(1, last), values.gather(1, idle))
    return values.scatter(1, idle, moved).sort(dim=1).values


def _middles(values: Tensor) -> Tensor:
    return ((values[:, 1:] + values[:, :-1]) / 2).contiguous()


def _started(rows: Tensor, lengths: Tensor, count: int, start: Start, chance: torch.Generator) -> Tensor:
    """First values (rows, K); a row without weights gets zeros."""
    last = (lengths - 1).clamp_min(0)
    if start == "linear":
        low, high = rows[:, :1], rows.gather(1, last)
        found = low + (high - low) * torch.linspace(0, 1, count, dtype=rows.dtype)
    elif start == "density":
        shares = (torch.arange(count, dtype=rows.dtype) + 0.5) / count
        found = rows.gather(1, (shares * lengths).long().minimum(last))
    else:
        found = _far_apart(rows, lengths, count, chance)
    return found.where(lengths > 0, 0.0)


def _far_apart(rows: Tensor, lengths: Tensor, count: int, chance: torch.Generator) -> Tensor:
    """k-means++: each next value is a weight, drawn in proportion to its squared distance from the values so far."""
    places = (torch.rand(len(rows), 1, generator=chance, dtype=rows.dtype) * lengths).long()
    distances = torch.full_like(rows, torch.inf)
    found: list[Tensor] = []
    for _ in range(count):
        found.append(rows.gather(1, places.minimum((lengths - 1).clamp_min(0))))
        distances = torch.minimum(distances, (rows - found[-1]).square()).where(rows.isfinite(), 0.0)
        reach = distances.cumsum(1)
        drawn = torch.rand(len(rows), 1, generator=chance, dtype=rows.dtype) * reach[:, -1:]
        places = torch.searchsorted(reach, drawn, right=True)
    return torch.cat(found, dim=1).sort(dim=1).values


def _keep_few(rows: Tensor, found: Tensor) -> Tensor:
    """Start rows of few different weights with just these."""
    new = torch.nn.functional.pad(rows.diff(dim=1) > 0, (1, 0), value=True) & rows.isfinite()
    count = found.shape[1]
    for row in (new.sum(1) <= count).nonzero()[:, 0].tolist():
        kept = rows[row, new[row]]
        if len(kept):
            found[row] = torch.cat([kept, kept[-1:].expand(count - len(kept))])
    return found
