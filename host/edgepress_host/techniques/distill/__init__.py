"""Distillation: a student learns from another network, from a peer, from the generation before, or from itself."""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
from edgepress_protocol.errors import UsageError
from torch import nn

from edgepress_host.press.loading import load_module
from edgepress_host.press.structure import digest
from edgepress_host.press.trained import Trained
from edgepress_host.technique import Stage, Trait, Workbench
from edgepress_host.techniques.distill.anew import started_anew
from edgepress_host.techniques.distill.exits import deeply_supervised
from edgepress_host.techniques.distill.features import look
from edgepress_host.techniques.distill.lesson import Parts
from edgepress_host.techniques.distill.losses import Likeness
from edgepress_host.techniques.distill.modes import born_again, mutual, taught

ORIGINAL = "original"
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Generations = Annotated[int, msgspec.Meta(ge=0, le=20)]
_INSIDE = ("attention", "distance", "angle")


class Distill(Trained, frozen=True):
    """Train the model as pressed so far, or `student` (`module:attr`), to answer as its teacher does.

    The loss is the sum of parts, each with its weight:

    - `alpha`: the teacher's answers, against 1 - alpha for the labels. Class scores are softened by `temperature`:
      T² · KL(teacher / T ‖ student / T), where T² keeps the gradient at its size (Hinton, Vinyals, Dean 2015,
      section 2). Other outputs are compared as values (mse); `outputs` says for any of them, by name or place,
      "soft", "mse" or "cosine". Labels are for the first output.
    - `hint`: features, the student's through a learnt regressor where widths differ (FitNets, Romero et al. 2015).
      `hint_epochs` before the others learn hints alone, as FitNets do; hints then end with them.
    - `attention`: where feature maps are active (Zagoruyko, Komodakis 2017).
    - `distance`, `angle`: how the samples of a batch lie to each other (relational, Park et al. 2019).

    `features` pairs the student's layers with the teacher's, `*` for the same in both; without it each part takes the
    deepest layer of one name.

    `mode` says who teaches: "offline" the `teacher` ("original", or `module:attr`), which is trained already;
    "online" a `peer` (of the same structure, unless `module:attr`) that learns beside the student (deep mutual
    learning, Zhang et al. 2018, who have temperature 1 and alpha 0.5); "self" either the generation before, for as
    many `generations` (born-again networks, Furlanello et al. 2018), or the network's own last layer, which with the
    weight `deep` teaches heads on inner layers, `exits` (be your own teacher, Zhang et al. 2019).

    `anew` starts from new random weights; generations do, unless told otherwise.
    """

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("train",)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"samples": 64},
        {"samples": 64, "alpha": 0.5, "epochs": 2, "hint": 1.0, "attention": 1.0, "distance": 1.0, "angle": 1.0},
        {"samples": 64, "mode": "online"},
        {"samples": 64, "mode": "self", "generations": 2},
        {"samples": 64, "mode": "self", "deep": 0.5},
    )

    student: str | None = None
    teacher: str = ORIGINAL
    mode: Literal["offline", "online", "self"] = "offline"
    temperature: Annotated[float, msgspec.Meta(gt=0, le=100)] = 4.0
    alpha: Share = 0.9
    outputs: dict[str, Likeness] = msgspec.field(default_factory=dict)
    hint: Weight = 0.0
    hint_epochs: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    attention: Weight = 0.0
    distance: Weight = 0.0
    angle: Weight = 0.0
    features: dict[str, str] = msgspec.field(default_factory=dict)
    peer: str | None = None
    generations: Generations = 0
    deep: Weight = 0.0
    exits: tuple[str, ...] = ()
    anew: bool | None = None
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1

    def check(self) -> None:
        """Raise UsageError where options belong to different modes, or nothing is left to learn from."""
        self._check_mode()
        inside = [name for name in ("hint", *_INSIDE) if getattr(self, name) > 0]
        if self.alpha == 0 and not inside and not self.deep:
            raise UsageError("alpha: 0 leaves nothing to learn from the teacher; give alpha, hint or another part")
        if self.alpha == 1 and self.mode == "online":
            raise UsageError(
                "alpha: with 1 nobody hears of the labels, and peers would learn from each other's guesses"
            )
        if self.features and not inside:
            raise UsageError(f"features: no part looks at features; give one of hint, {', '.join(_INSIDE)} a weight")
        if self.hint_epochs and not self.hint:
            raise UsageError("hint_epochs: expected a weight for hint, too")

    def _check_mode(self) -> None:
        mine = {"online": ("peer",), "self": ("generations", "deep", "exits"), "offline": ("hint_epochs",)}
        for mode, names in mine.items():
            for name in names:
                if getattr(self, name) and mode != self.mode:
                    raise UsageError(f"{name}: is for mode {mode!r}, and mode is {self.mode!r}")
        if self.teacher != ORIGINAL and (self.mode == "online" or self.deep):
            raise UsageError("teacher: is for mode 'offline' and for generations; here the networks teach themselves")
        if self.mode != "self":
            return
        if (self.generations > 0) == (self.deep > 0):
            raise UsageError("generations: mode 'self' expects either generations (1 or more) or deep (a weight)")
        if self.exits and not self.deep:
            raise UsageError("exits: expected a weight for deep, too")
        if self.deep and (self.features or any(getattr(self, name) for name in _INSIDE)):
            raise UsageError(f"deep: heads learn from answers and hints; leave out features, {', '.join(_INSIDE)}")

    def breaks(self) -> frozenset[Trait]:
        """Training moves shared and low-bit values; a new start or another student leaves nothing of earlier steps."""
        lost: frozenset[Trait] = frozenset({"shared", "grid"})
        if self.student is not None:
            return lost | {"zeros", "factors"}
        return lost | {"zeros"} if self._starts_anew else lost

    def starts_over(self) -> bool:
        """Tell whether a student takes the place of the model so far."""
        return self.student is not None

    def extra_key(self) -> str:
        """Return digests of the weights of the user's own that take part."""
        others = {"student": self.student, "teacher": self.teacher, "peer": self.peer}
        return "".join(digest(_load(name, key)) for key, name in others.items() if name not in (None, ORIGINAL))

    def base(self) -> str | None:
        """Return the student, whose structure the result has."""
        return self.student

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a trained copy. Raises UsageError, StepFailed and Diverged."""
        source = model if self.student is None else _load(self.student, "student")

        def start(generation: int) -> nn.Module:
            fresh = started_anew(source, bench.seed + generation, bench.note) if self._starts_anew else source
            return copy.deepcopy(fresh).requires_grad_(True)

        parts = self._parts()
        several = look(source, torch.from_numpy(bench.split("train").x[:2].copy())).outputs
        if len(several) > 1:
            bench.note(f"labels, accuracy and metric are for the first of the outputs {', '.join(several)}")
        if self.mode == "online":
            return mutual(start(0), self._peer(source, bench), parts, self, bench)
        if self.deep:
            return deeply_supervised(start(0), parts, self, bench, weight=self.deep, exits=self.exits)
        teacher = copy.deepcopy(bench.original() if self.teacher == ORIGINAL else _load(self.teacher, "teacher")).eval()
        if self.generations:
            return born_again(start, teacher, parts, self, bench, generations=self.generations)
        return taught(start(0), teacher, parts, self, bench, hint_epochs=self.hint_epochs)

    @property
    def _starts_anew(self) -> bool:
        return self.generations > 0 if self.anew is None else self.anew

    def _parts(self) -> Parts:
        return Parts(
            alpha=self.alpha,
            temperature=self.temperature,
            hint=self.hint,
            attention=self.attention,
            distance=self.distance,
            angle=self.angle,
            outputs=self.outputs,
            features=self.features,
        )

    def _peer(self, student: nn.Module, bench: Workbench) -> nn.Module:
        """Return the peer: other weights from the start, or both would learn the same."""
        if self.peer is None:
            return started_anew(student, bench.seed + 1000, lambda _: None).requires_grad_(True)
        return copy.deepcopy(_load(self.peer, "peer")).requires_grad_(True)


def _load(reference: str, key: str) -> nn.Module:
    return load_module(reference, key=f"distill.{key}")
