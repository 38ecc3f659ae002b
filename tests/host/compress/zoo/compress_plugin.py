"""A technique of a user's own: one file, one frozen record."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from edgepress_host.technique import Stage, Technique


class Soften(Technique, frozen=True):
    stage: ClassVar[Stage] = "module"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"factor": 0.5},)

    factor: float = 0.5

    def apply_module(self, model, bench):
        softer = copy.deepcopy(model)
        with torch.no_grad():
            softer.head.weight.mul_(self.factor)
        bench.note("softened")
        return softer
