"""From wanted energies, numbers and budgets to ranks: pure decisions over what the decompositions offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from torch import nn

from edgepress_host.techniques.low_rank.cp import Cp
from edgepress_host.techniques.low_rank.matrices import Decomposition, Spatial, Svd
from edgepress_host.techniques.low_rank.pieces import Cost, Layer, Method, Ranks, cost, whole
from edgepress_host.techniques.low_rank.survey import Site
from edgepress_host.techniques.low_rank.tucker import Tucker


class Choice(msgspec.Struct, frozen=True):
    """A layer in factors: how, at which cost, and what share of the squared norm of its weights they hold."""

    method: Method
    ranks: Ranks
    cost: Cost
    kept: float


class Offer(msgspec.Struct, frozen=True):
    """What the methods that fit a layer offer for it."""

    site: Site
    whole: Cost
    methods: Mapping[Method, Decomposition]

    def priced(self, method: Method, ranks: Ranks) -> Choice:
        """Say what ranks cost and keep."""
        found = self.methods[method]
        return Choice(method, ranks, cost(found.pieces(ranks), self.site.shapes), found.kept(ranks))

    def saving(self, choices: Sequence[Choice]) -> list[Choice]:
        """Return those that cost less than the layer, the cheapest first."""
        cheaper = [choice for choice in choices if choice.cost.macs < self.whole.macs]
        return sorted(cheaper, key=lambda choice: (choice.cost.macs, -choice.kept))

    def of_energy(self, energy: float, round_to: int) -> list[Choice]:
        """Return the cheapest choice of each method that keeps `energy`, whether it saves or not."""
        found = []
        for method, decomposition in self.methods.items():
            priced = [self.priced(method, ranks) for ranks in decomposition.of_energy(energy, round_to)]
            found += sorted(priced, key=lambda choice: (choice.cost.macs, -choice.kept))[:1]
        return found

    def spread(self, round_to: int) -> list[Choice]:
        """Return choices from dear to cheap."""
        return self.saving(
            [
                self.priced(method, ranks)
                for method, decomposition in self.methods.items()
                for ranks in decomposition.spread(round_to)
            ]
        )


def methods_for(layer: Layer, wanted: str) -> tuple[Method, ...]:
    """Return the methods that `wanted` means for a layer: what is a matrix has one, the SVD.

    >>> methods_for(nn.Linear(3, 4), "tucker")
    ('svd',)
    >>> methods_for(nn.Conv2d(3, 4, 3), "auto")
    ('tucker', 'cp', 'spatial')
    >>> methods_for(nn.Conv2d(3, 4, 3), "svd")
    ()
    """
    if all(length == 1 for length in whole(layer).kernel):
        return ("svd",)
    able: tuple[Method, ...] = ("tucker", "cp", "spatial") if isinstance(layer, nn.Conv2d) else ("tucker", "cp")
    return tuple(method for method in able if wanted in ("auto", method))


def offer(site: Site, methods: Sequence[Method], *, iterations: int, seed: int) -> Offer:
    """Take a layer apart by each of the methods."""
    dear = cost([whole(site.layer)], site.shapes)

    def most() -> int:
        """Return the highest CP rank that saves: its cost grows in proportion."""
        single = cost(Cp(site.layer, most=1, seed=seed).pieces((1,)), site.shapes)
        return (dear.macs - 1) // single.macs

    makers: Mapping[Method, Callable[[], Decomposition]] = {
        "svd": lambda: Svd(site.layer),
        "spatial": lambda: Spatial(site.layer),
        "tucker": lambda: Tucker(site.layer, iterations=iterations),
        "cp": lambda: Cp(site.layer, most=most(), seed=seed),
    }
    return Offer(site, dear, {method: makers[method]() for method in methods})


class Option(msgspec.Struct, frozen=True):
    """One of several things that may be done to a layer: its cost, and the energy lost."""

    cost: int
    lost: float


def allocate(options: Mapping[str, Sequence[Option]], limit: int) -> dict[str, int] | None:
    """Choose one option of each layer such that the costs sum up to at most `limit`, with little energy lost.

    Greedy: again and again the step down that loses the least energy for each unit saved, over the lower convex hull
    of each layer's options; then what is left over of the limit goes to the layers that lost the most. Returns the
    chosen options' places, or None where even the cheapest cost more.
    """
    hulls = {name: _hull(some) for name, some in options.items()}
    at = dict.fromkeys(hulls, 0)
    total = sum(options[name][hull[0]].cost for name, hull in hulls.items())

    def price(name: str) -> float:
        now, then = (options[name][place] for place in hulls[name][at[name] : at[name] + 2])
        return (then.lost - now.lost) / (now.cost - then.cost)

    while total > limit:
        open_ = [name for name, hull in hulls.items() if at[name] + 1 < len(hull)]
        if not open_:
            return None
        name = min(open_, key=price)
        now, then = (options[name][place] for place in hulls[name][at[name] : at[name] + 2])
        total += then.cost - now.cost
        at[name] += 1
    chosen = {name: hull[at[name]] for name, hull in hulls.items()}
    for name in sorted(chosen, key=lambda name: -options[name][chosen[name]].lost):
        room = limit - total + options[name][chosen[name]].cost
        fitting = [place for place, option in enumerate(options[name]) if option.cost <= room]
        best = min(fitting, key=lambda place: (options[name][place].lost, options[name][place].cost))
        total += options[name][best].cost - options[name][chosen[name]].cost
        chosen[name] = best
    return chosen


def _hull(options: Sequence[Option]) -> list[int]:
    """Places of the options on the lower convex hull of (cost, lost), from the dearest that loses nothing more on."""
    order = sorted(range(len(options)), key=lambda place: (options[place].lost, options[place].cost))
    hull: list[int] = []
    for place in order:
        new = options[place]
        if hull and new.cost >= options[hull[-1]].cost:
            continue
        while len(hull) > 1:
            first, last = options[hull[-2]], options[hull[-1]]
            # The last one stays only where the way over it is cheaper at first than after it.
            if (last.lost - first.lost) * (last.cost - new.cost) < (new.lost - last.lost) * (first.cost - last.cost):
                break
            hull.pop()
        hull.append(place)
    return hull
