"""Means over height and width become pools, which ONNX Runtime quantizes whole."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edgepress_host import exporters
from torch import nn

EXAMPLE = np.random.default_rng(0).normal(size=(2, 3, 6, 5)).astype(np.float32)


class Mean(nn.Module):
    """A mean over some axes behind a convolution."""

    def __init__(self, axes, *, keepdim):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.axes, self.keepdim = axes, keepdim

    def forward(self, x):
        return self.conv(x).mean(self.axes, keepdim=self.keepdim)


class Doubled(Mean):
    """The same in double precision, which ONNX Runtime does not pool."""

    def forward(self, x):
        return self.conv(x).double().mean(self.axes, keepdim=self.keepdim).float()


@pytest.mark.parametrize(
    ("module", "pools"),
    [
        (Mean((2, 3), keepdim=True), 1),
        (Mean((-1, -2), keepdim=False), 1),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), 1),
        (Mean((1, 2), keepdim=False), 0),
        (Mean((3,), keepdim=True), 0),
        (Doubled((2, 3), keepdim=True), 0),
    ],
    ids=["kept", "dropped", "adaptive", "other axes", "one axis", "double"],
)
def test_a_mean_over_both_spatial_axes_is_a_pool_and_answers_the_same(module, pools):
    content = exporters.get("onnx").export(module.eval(), EXAMPLE)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node].count("GlobalAveragePool") == pools
    assert (sum(node.op_type == "ReduceMean" for node in model.graph.node) == 0) == bool(pools)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for x in (EXAMPLE, EXAMPLE[:1]):
        (got,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_allclose(got, module(torch.from_numpy(x)).detach().numpy(), atol=1e-5)
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
