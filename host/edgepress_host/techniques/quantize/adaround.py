"""Learned rounding: each weight goes up or down, whichever leaves the layer's outputs nearest to the exact ones.

Source: M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort, "Up or down? Adaptive rounding for
post-training quantization", ICML 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepress_host.technique import Workbench
from edgepress_host.techniques.quantize.grid import highest
from edgepress_host.techniques.quantize.plan import listed
from edgepress_host.techniques.quantize.simulation import Simulation, round_layer

BATCH = 32
RATE = 1e-2
ROUNDNESS = 0.01
"""Weight of the term that draws each choice to up or down."""

WARM_UP = 0.2
"""Share of the steps without that term."""

_LOW, _HIGH = -0.1, 1.1
"""Ends to which the sigmoid is stretched before it is clipped to 0 and 1 (equation 23)."""

_WHOLE = 1e-3
"""Steps of the grid within which a weight lies on it: zeros, and the largest weight, by which the grid is found."""


def learn(
    model: nn.Module, exact: nn.Module, simulation: Simulation, x: Tensor, *, steps: int, bench: Workbench
) -> None:
    """Put the layers' weights on their grids, in place, in the order in which they run; `exact` has them unrounded."""
    order = _order(exact, list(simulation.bits), x)
    nearest = [name for name in simulation.bits if name not in order]
    for name in nearest:
        round_layer(simulation, model, name, simulation.bits[name])
    better = 0
    for number, name in enumerate(order):
        bench.say(f"learning to round {name} ({number + 1}/{len(order)})")
        inputs, _ = _seen(model, name, x)
        _, wanted = _seen(exact, name, x)
        layer = model.get_submodule(name)
        weight = exact.get_parameter(f"{name}.weight").detach()
        chosen = _Choice(weight, simulation, simulation.bits[name])
        better += _learned(chosen, layer, inputs, wanted, steps, bench.seed)
    note = f"learned rounding is nearer than rounding to nearest in {better} of {len(order)} layers; those have it"
    bench.note(note + (f"; to nearest, as they run otherwise than once: {listed(nearest)}" if nearest else ""))


class _Choice:
    """A layer's weights between the two points of the grid around each."""

    def __init__(self, weight: Tensor, simulation: Simulation, bits: int) -> None:
        self.top = highest(bits)
        found = simulation.integers(weight, bits)
        self.scale = torch.from_numpy(found.scale)
        self.nearest = torch.from_numpy(found.values).float()
        place = weight / self.scale
        self.down = place.floor()
        whole = (place - place.round()).abs() < _WHOLE
        self.fixed = whole | (place.abs() >= self.top)
        share = (place - self.down).clamp(1e-4, 1 - 1e-4)
        self.leaning = torch.logit((share - _LOW) / (_HIGH - _LOW)).requires_grad_()

    def up(self) -> Tensor:
        """How far up each weight goes, from 0 to 1."""
        return (torch.sigmoid(self.leaning) * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def weight(self, up: Tensor) -> Tensor:
        """Return the weights; those that are fixed lie at their nearest point."""
        steps = (self.down + up).clamp(-self.top, self.top)
        return torch.where(self.fixed, self.nearest, steps) * self.scale

    def undecided(self, sharpness: float) -> Tensor:
        """Return what is 0 when each choice is made (equation 24)."""
        far = (2 * self.up() - 1).abs() ** sharpness
        return ((1 - far) * ~self.fixed).sum()


def _learned(choice: _Choice, layer: nn.Module, inputs: Tensor, wanted: Tensor, steps: int, seed: int) -> bool:
    """Learn, and give the layer the better of learned and nearest weights; tell whether it was the learned ones."""
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam([choice.leaning], lr=RATE)
    for step in range(steps):
        some = torch.randint(len(inputs), (min(BATCH, len(inputs)),), generator=chance)
        apart = _run(layer, inputs[some], choice.weight(choice.up())) - wanted[some]
        loss = apart.square().reshape(len(some), -1).sum(1).mean()
        done = (step / steps - WARM_UP) / (1 - WARM_UP)
        if done > 0:
            loss = loss + ROUNDNESS * choice.undecided(20 - 18 * done)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        learned = choice.weight((choice.up() >= 0.5).float())
        nearest = choice.nearest * choice.scale
        errors = [float((_run(layer, inputs, weight) - wanted).square().mean()) for weight in (learned, nearest)]
        layer.get_parameter("weight").copy_(learned if errors[0] < errors[1] else nearest)
    return errors[0] < errors[1]


def _run(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, layer.bias)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    ran: Tensor = layer._conv_forward(x, weight, layer.bias)  # noqa: SLF001 - padding modes and all
    return ran


def _order(model: nn.Module, names: list[str], x: Tensor) -> list[str]:
    """Names of the layers that run exactly once, in the order in which they do."""
    runs: list[str] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _l, _i, _o, name=name: runs.append(name))
        for name in names
    ]
    try:
        with torch.no_grad():
            model(x[:2])
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in runs if runs.count(name) == 1]


def _seen(model: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and outputs of a layer."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda _layer, inputs, output: seen.append((inputs[0].detach(), output.detach()))
    )
    try:
        with torch.no_grad():
            for start in range(0, len(x), BATCH):
                model(x[start : start + BATCH])
    finally:
        hook.remove()
    return torch.cat([inputs for inputs, _ in seen]), torch.cat([outputs for _, outputs in seen])
