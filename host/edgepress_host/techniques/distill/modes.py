"""Who teaches whom: another network, a peer that learns too, the generation before, or a network's own end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from edgepress_host.press.trained import Trained
from edgepress_host.press.training import Step
from edgepress_host.technique import Workbench
from edgepress_host.techniques.distill.anew import seeded
from edgepress_host.techniques.distill.lesson import Lesson, Parts

_REMEMBERED_BYTES = 256 * 2**20


def taught(
    student: nn.Module, teacher: nn.Module, parts: Parts, trainer: Trained, bench: Workbench, *, hint_epochs: int = 0
) -> nn.Module:
    """Train `student` in place by a teacher that stays as it is (offline distillation).

    `hint_epochs` are a first stage of hints alone, after which they end: FitNets (Romero et al. 2015, section 2.3).
    """
    samples = bench.split("train").first(trainer.samples)
    with seeded(bench.seed), Lesson(parts, student, teacher, samples) as lesson:
        known = Answers(teacher, trainer, remember=bench.augment is None and not lesson.looks_inside)
        also = [lesson.regressors]
        if hint_epochs:

            def first_stage(_outputs: object, step: Step) -> Tensor:
                known(step)
                return lesson.hints()

            msgspec.structs.replace(trainer, epochs=hint_epochs).train(student, bench, first_stage, also=also)

        def loss(outputs: object, step: Step) -> Tensor:
            return lesson.loss(outputs, known(step), step, hints=hint_epochs == 0)

        return trainer.train(student, bench, loss, also=also)


def mutual(student: nn.Module, peer: nn.Module, parts: Parts, trainer: Trained, bench: Workbench) -> nn.Module:
    """Train `student` and a peer side by side, each by the other's answers (Zhang et al. 2018, equations 6 to 9)."""
    samples = bench.split("train").first(trainer.samples)
    with (
        seeded(bench.seed),
        Lesson(parts, student, peer, samples) as there,
        Lesson(parts, peer, student, samples) as back,
    ):

        def loss(outputs: object, step: Step) -> Tensor:
            answers = forward(peer, step.x, bfloat16=trainer.bfloat16)
            return there.loss(outputs, answers, step) + back.loss(answers, outputs, step)

        return trainer.train(student, bench, loss, also=[peer, there.regressors, back.regressors])


def born_again(
    start: Callable[[int], nn.Module],
    teacher: nn.Module,
    parts: Parts,
    trainer: Trained,
    bench: Workbench,
    *,
    generations: int,
) -> nn.Module:
    """Train one generation after the other, each taught by the one before (Furlanello et al. 2018, section 3)."""
    for generation in range(1, generations + 1):
        around = msgspec.structs.replace(
            bench,
            seed=bench.seed + generation - 1,
            say=lambda what, number=generation: bench.say(f"generation {number}/{generations}, {what}"),
        )
        teacher = taught(start(generation - 1), teacher, parts, trainer, around)
    return teacher


class Answers:
    """What a teacher answers; kept by the samples' numbers where its inputs are the same in every epoch."""

    def __init__(self, teacher: nn.Module, trainer: Trained, *, remember: bool) -> None:
        self._teacher = teacher
        self._bfloat16 = trainer.bfloat16
        self._remember = remember
        self._known: dict[int, list[Tensor]] = {}
        self._form: Any = None

    def __call__(self, step: Step) -> Any:
        """Return the teacher's outputs for a batch."""
        numbers = step.indices.tolist()
        if self._remember and all(number in self._known for number in numbers):
            rows = [self._known[number] for number in numbers]
            return tree_unflatten([torch.stack(parts) for parts in zip(*rows, strict=True)], self._form)
        with torch.no_grad():
            answers = forward(self._teacher, step.x, bfloat16=self._bfloat16)
        leaves, self._form = tree_flatten(answers)
        bytes_each = sum(leaf[0].numel() * leaf.element_size() for leaf in leaves)
        if self._remember and (len(self._known) + len(numbers)) * bytes_each <= _REMEMBERED_BYTES:
            self._known |= {number: [leaf[row] for leaf in leaves] for row, number in enumerate(numbers)}
        return answers


def forward(model: nn.Module, x: Tensor, *, bfloat16: bool) -> Any:
    """Run a network that is not the one in training as that one runs; outputs in fp32."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        outputs = model(x)
    return tree_map(lambda leaf: leaf.float() if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf, outputs)
