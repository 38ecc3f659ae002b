"""Weight sharing: the weights of a layer become few distinct values, found by k-means and trained by gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
from torch import nn

from edgepress_host.press.folding import fold_batch_norms
from edgepress_host.press.trained import Taught
from edgepress_host.technique import Stage, StepFailed, Trait, Workbench, check_patterns, for_layer
from edgepress_host.techniques.cluster.kmeans import Start
from edgepress_host.techniques.cluster.shared import Shared, share, together
from edgepress_host.techniques.prune.attention import NarrowAttention
from edgepress_host.techniques.structured.circulant import CirculantLinear

Bits = Annotated[int, msgspec.Meta(ge=1, le=8)]
Granularity = Literal["tensor", "channel"]
KINDS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, NarrowAttention, CirculantLinear),
)


class ClusterLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own."""

    bits: Bits | None = None
    granularity: Granularity | None = None
    skip: bool | None = None


class Cluster(Taught, frozen=True):
    """Let the weights of each layer share 2^`bits` values, per tensor or per output channel.

    Trained quantization of Han, Mao, Dally, "Deep Compression", ICLR 2016, section 3: k-means in one dimension, started
    from evenly spaced values (`init` "linear", which keeps the rare large weights best), from equal shares of the
    weights ("density"), or from "random" ones (k-means++, Arthur, Vassilvitskii 2007). In fine-tuning the gradient of
    a value is the sum over the weights that share it; `teacher` adds the original's soft targets to the loss
    (`temperature`, and `alpha` as its share).

    With `keep_zeros`, zero is one of the values where a layer has zeros, and its zeros stay. Biases and normalisation
    stay as they are. A batch normalisation behind a layer with values per tensor is folded into it first: an exporter
    would fold it later, and thereby give each channel values of its own.
    """

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("train", "calibrate")
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"bits": 4},
        {"bits": 2, "granularity": "channel", "init": "density", "epochs": 1, "samples": 64},
    )

    bits: Bits = 4
    granularity: Granularity = "tensor"
    init: Start = "linear"
    keep_zeros: bool = True
    skip: bool = False
    layers: dict[str, ClusterLayer] = msgspec.field(default_factory=dict)
    types: dict[str, ClusterLayer] = msgspec.field(default_factory=dict)

    def makes(self) -> frozenset[Trait]:
        """Return that values are shared."""
        return frozenset({"shared"})

    def breaks(self) -> frozenset[Trait]:
        """Return that weights leave a grid, and their zeros where these are not kept."""
        lost: frozenset[Trait] = frozenset({"grid"})
        return lost if self.keep_zeros else lost | {"zeros"}

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a copy with shared weights, fine-tuned if `epochs` says so."""
        pressed = copy.deepcopy(model).requires_grad_(True)
        plan = self._plan(pressed)
        tensor_wise = [name for name, own in plan.items() if own.granularity == "tensor"]
        folded = fold_batch_norms(pressed, torch.from_numpy(bench.calibration(2).copy()), tensor_wise)
        if folded:
            bench.note(f"batch normalisation was folded into {', '.join(folded)}")
        if left := _others(pressed):
            bench.note(f"left as they are, of kinds that share no values: {', '.join(left)}")
        bench.say("finding the values that weights share")
        found = self._shared(pressed, plan, bench)
        bench.note(_summary(found))
        if self.epochs:
            with together(found):
                self.train(pressed, bench, self.lesson(bench))
        return pressed.eval()

    def _plan(self, model: nn.Module) -> dict[str, Cluster]:
        """Return the options of each layer that is to share. Raises UsageError and StepFailed."""
        held = {name: layer for name, layer in model.named_modules() if isinstance(layer, KINDS)}
        check_patterns(self.layers, self.types, {name: type(layer).__name__ for name, layer in held.items()})
        plan = {
            name: for_layer(self, self.layers, self.types, name, type(layer).__name__) for name, layer in held.items()
        }
        chosen = {name: own for name, own in plan.items() if not own.skip}
        if not chosen:
            raise StepFailed("no dense, convolutional, recurrent or attention layer is left to share weights in")
        return chosen

    def _shared(self, model: nn.Module, plan: dict[str, Cluster], bench: Workbench) -> list[Shared]:
        """Replace the weights of each layer by shared ones, in place; what layers have in common is done once."""
        chance = torch.Generator().manual_seed(bench.seed)
        found: dict[int, Shared] = {}
        for name, own in plan.items():
            layer = model.get_submodule(name)
            for key, weight in layer.named_parameters(recurse=False):
                if weight.ndim > 1 and id(weight) not in found:
                    axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0  # noqa: SLF001
                    found[id(weight)] = share(
                        f"{name}.{key}".lstrip("."),
                        weight,
                        count=2**own.bits,
                        axis=axis if own.granularity == "channel" else None,
                        start=self.init,
                        keep_zeros=self.keep_zeros,
                        chance=chance,
                    )
        return list(found.values())


def _others(model: nn.Module) -> list[str]:
    """List the modules of other kinds that hold weight matrices."""
    return [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if not isinstance(module, KINDS) and any(weight.ndim > 1 for weight in module.parameters(recurse=False))
    ]


def _summary(found: Sequence[Shared]) -> str:
    """Say how many values are left, and how far the weights moved."""
    worst = max(found, key=lambda shared: shared.error)
    return (
        f"{len(found)} tensors share values; the squared error is at most {worst.error:.2g} of the squared norm, "
        f"in {worst.name}"
    )
