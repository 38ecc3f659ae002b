"""Whether an exported file answers as the torch module that it came from, in the runtime that will run it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from edgepress_protocol.errors import EdgepressError
from torch import Tensor, nn

from edgepress_host import exporters
from edgepress_host.evaluate import check_input, fixed, open_runner, quantized
from edgepress_host.press.training import every_output, one_thread

SAMPLES = 8
SHARE = 1e-3
"""Share of the largest value of an output's channel that sums in another order may change."""

_FLOOR = 1e-5
"""The same as a share of the whole output: what one channel takes from large numbers, its own size does not tell."""

_DRAWS = 4
_MARGIN = 2.0
_LAST_DIGITS = 1e-6
"""Share of an input that its last digits are: some steps of float32."""

Answers = list[np.ndarray]
"""What a model or a file returns: an array (N, …) for each output."""


class Unfaithful(EdgepressError):  # noqa: N818 - it names what was found
    """A file that does not answer as its module does, or a module that no file can answer as."""


def check(format_: str, content: bytes, module: nn.Module, x: np.ndarray) -> float:
    """Compare a file's answers with its module's on the first samples of `x`, (N, …).

    Returns the largest difference, as a share of what is allowed. Raises Unfaithful, in one line, and UsageError
    where the file takes other data.

    Kernels of a runtime sum in another order than PyTorch's, and where values are rounded on the way (quantizers), one
    that lies between two steps may go to either side. How far this moves the outputs depends on the model, so that it
    is measured: the module answers again with every such rounding drawn at random between its two sides.
    """
    samples = np.array(x[:SAMPLES])
    ready = copy.deepcopy(module).eval()
    with one_thread(), torch.no_grad():
        wanted = _alone(ready, samples)
        again = _alone(ready, samples)
        if any(_apart(*pair) for pair in zip(again, wanted, strict=True)):
            raise Unfaithful(
                "the module answers differently each time, also in evaluation mode, so that no file can answer as it "
                "does; let it draw at random only where self.training is true"
            )
        together = [output.numpy() for output in every_output(ready(torch.from_numpy(samples)))]
        allowed = [_allowed(answer) for answer in wanted]
        for drawn in _drawn(ready, samples):
            moved = [_differences(*pair) for pair in zip(drawn, together, strict=True)]
            # What is infinite on one side alone tells nothing of how far finite answers may lie apart.
            apart = [float(one[np.isfinite(one)].max(initial=0.0)) for one in moved]
            allowed = [np.maximum(least, _MARGIN * one) for least, one in zip(allowed, apart, strict=True)]
    why = "the module's answer to a sample depends on the samples beside it"
    _compare(together, wanted, allowed, f"{why}, and a board asks one at a time; compute each sample by itself")
    inputs, _ = exporters.get(format_).tensors(content)
    check_input(inputs, samples)
    runner = open_runner(format_, content)
    worst = 0.0
    for size in (1,) if fixed(inputs[0]) else (1, len(samples)):
        parts = [runner.run(quantized(inputs[0], samples[at : at + size])) for at in range(0, len(samples), size)]
        found = [np.concatenate(some) for some in zip(*parts, strict=True)]
        why = f"the converter gets this module wrong: write it with other layers, or leave {format_} out of formats"
        worst = max(worst, _compare(found, wanted, allowed, why))
    return worst


def _alone(module: nn.Module, samples: np.ndarray) -> Answers:
    """Answers to one sample at a time, as a board asks. Raises Unfaithful where there is not one to each."""
    parts = []
    for at in range(len(samples)):
        outputs = [output.numpy() for output in every_output(module(torch.from_numpy(samples[at : at + 1])))]
        for index, output in enumerate(outputs):
            if output.shape[:1] != (1,):
                raise Unfaithful(
                    f"output {index} of the module has shape {output.shape} for one sample; expected (1, …), since "
                    "the first axis is the batch"
                )
        parts.append(outputs)
    return [np.concatenate(some) for some in zip(*parts, strict=True)]


def _drawn(module: nn.Module, samples: np.ndarray) -> Iterator[Answers]:
    """Yield answers with all that is rounded, the inputs' last digits too, rounded by chance to either side."""
    chance = torch.Generator().manual_seed(0)

    def between(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        assert isinstance(layer, exporters.Stepped)
        return (given[0] + (torch.rand(given[0].shape, generator=chance) - 0.5) * layer.scale,)

    hooks = [layer.register_forward_pre_hook(between) for layer in exporters.stepped(module)]
    try:
        for _ in range(_DRAWS):
            moved = torch.from_numpy(samples)
            if moved.is_floating_point():
                moved = moved * (1 + _LAST_DIGITS * (2 * torch.rand(moved.shape, generator=chance) - 1))
            yield [output.numpy() for output in every_output(module(moved))]
    finally:
        for hook in hooks:
            hook.remove()


def _compare(found: Answers, wanted: Answers, allowed: Sequence[np.ndarray], why: str) -> float:
    """Return the largest difference as a share of what is allowed. Raises Unfaithful for one above."""
    if len(found) != len(wanted):
        raise Unfaithful(f"expected {len(wanted)} outputs, as PyTorch gives, got {len(found)}; {why}")
    shares = [0.0]
    for index, (answer, want, limit) in enumerate(zip(found, wanted, allowed, strict=True)):
        if answer.shape != want.shape:
            raise Unfaithful(
                f"output {index}: expected shape {want.shape}, as PyTorch gives, got {answer.shape}; {why}"
            )
        differences, limits = _differences(answer, want), np.broadcast_to(limit, want.shape)
        if (differences > limits).any():
            worst = np.unravel_index(np.argmax(differences - limits), want.shape)
            raise Unfaithful(
                f"output {index} differs from PyTorch's by {differences[worst]:.2g} (allowed {limits[worst]:.2g}) on "
                f"{len(want)} samples of calibrate; {why}"
            )
        shares.append(
            float(np.divide(differences, limits, where=limits > 0, out=np.zeros(want.shape)).max(initial=0.0))
        )
    return max(shares)


def _apart(answer: np.ndarray, want: np.ndarray) -> float:
    return float(_differences(answer, want).max(initial=0.0))


def _differences(answer: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Differences, one for each number; infinite where only one of the two is finite."""
    one, other = answer.astype(np.float64), want.astype(np.float64)
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        differences = np.where(equal, 0.0, np.abs(one - other))
    return np.nan_to_num(differences, nan=np.inf, posinf=np.inf)


def _allowed(answer: np.ndarray) -> np.ndarray:
    """Return what may differ, by channel: boxes in pixels and scores beside them are held to their own sizes.

    Channels are the axis behind the batch, and the last one; of an output (N, T, F) or (N, C, H, W) both count.
    """
    sizes = np.where(np.isfinite(answer), np.abs(answer.astype(np.float64)), 0.0)
    if not sizes.size:
        return np.zeros(())
    limit = np.full((1,) * sizes.ndim, np.inf)
    for axis in {1, sizes.ndim - 1} - {0}:
        others = tuple(each for each in range(sizes.ndim) if each != axis)
        limit = np.minimum(limit, sizes.max(axis=others, keepdims=True))
    limit = np.minimum(limit, sizes.max())
    allowed: np.ndarray = np.maximum(SHARE * limit, _FLOOR * sizes.max())
    return allowed
