"""Weight sharing: the weights of a layer become few distinct values, found by k-means and trained by gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
from edgepress_protocol.errors import UsageError
from torch import nn

from edgepress_host.press.soft import taught
from edgepress_host.press.trained import Trained
from edgepress_host.press.training import Loss, supervised
from edgepress_host.technique import Stage, StepFailed, Trait, Workbench, check_patterns, for_layer
from edgepress_host.techniques.cluster.fold import fold_batch_norms
from edgepress_host.techniques.cluster.kmeans import Start
from edgepress_host.techniques.cluster.shared import Shared, share, together

Bits = Annotated[int, msgspec.Meta(ge=1, le=8)]
Granularity = Literal["tensor", "channel"]
KINDS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention),
)


class ClusterLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own."""

    bits: Bits | None = None
    granularity: Granularity | None = None
    skip: bool | None = None


class Cluster(Trained, frozen=True):
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
    teacher: bool = False
    temperature: Annotated[float, msgspec.Meta(gt=0, le=100)] = 4.0
    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.9
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

    def check(self) -> None:
        """Raise UsageError for a teacher without lessons, and for lessons without a teacher."""
        if self.teacher and not self.epochs:
            raise UsageError("teacher: it teaches while fine-tuning; give epochs, or leave teacher away")
        for name, usual in (("temperature", 4.0), ("alpha", 0.9)):
            if getattr(self, name) != usual and not self.teacher:
                raise UsageError(f"{name}: it is the teacher's; give teacher = true, or leave it away")

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a copy with shared weights, fine-tuned if `epochs` says so."""
        pressed = copy.deepcopy(model).requires_grad_(True)
        plan = self._plan(pressed)
        tensor_wise = [name for name, own in plan.items() if own.granularity == "tensor"]
        folded = fold_batch_norms(pressed, tensor_wise, torch.from_numpy(bench.calibration(2).copy()))
        if folded:
            bench.note(f"batch normalisation was folded into {', '.join(folded)}")
        bench.say("finding the values that weights share")
        found = self._shared(pressed, plan, bench)
        bench.note(_summary(found))
        if self.epochs:
            with together(found):
                self.train(pressed, bench, self._loss(bench))
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

    def _loss(self, bench: Workbench) -> Loss:
        if not self.teacher:
            return supervised
        return taught(
            bench.original(),
            bench.split("train").first(self.samples),
            augmented=bench.augment is not None,
            temperature=self.temperature,
            alpha=self.alpha,
        )


def _summary(found: Sequence[Shared]) -> str:
    """Say how many values are left, and how far the weights moved."""
    worst = max(found, key=lambda shared: shared.error)
    return (
        f"{len(found)} tensors share values; the squared error is at most {worst.error:.2g} of the squared norm, "
        f"in {worst.name}"
    )
