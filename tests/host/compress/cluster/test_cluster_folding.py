from __future__ import annotations

import compress_zoo
import numpy as np
import pytest
import torch
from cluster_lab import sparse
from edgepress_host.press.measure import wire_bytes
from edgepress_host.techniques.cluster import Cluster
from technique_lab import assert_file_answers_as, noting
from torch import nn


@pytest.fixture(scope="module")
def clustered(bench):
    """Sparse, of 3 bits, behind it a batch normalisation whose channels differ; with its notes."""
    around, notes = noting(bench)
    model = sparse(compress_zoo.build())
    model.block.bn.weight.data.copy_(torch.linspace(0.5, 2, 16))
    return Cluster(bits=3).apply_module(model, around), notes


def values_per_tensor(format_, content):
    """The most distinct values that a stored matrix or kernel has."""
    if format_ == "onnx":
        import onnx

        found = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer]
    else:
        from ai_edge_litert.tools import flatbuffer_utils

        model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
        held = [(tensor.shape, model.buffers[tensor.buffer].data) for tensor in model.subgraphs[0].tensors]
        found = [
            np.frombuffer(bytes(data), np.float32).reshape(shape)
            for shape, data in held
            if data is not None and len(data) == 4 * np.prod(shape)
        ]
    kernels = [array for array in found if array.ndim > 1 and array.size > 32]
    assert len(kernels) >= 4
    return max(len(np.unique(array)) for array in kernels)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_the_file_holds_the_shared_values_and_travels_small(format_, clustered, originals, bench):
    model, notes = clustered
    assert notes[0] == "batch normalisation was folded into block.conv"
    assert isinstance(model.block.bn, nn.Identity)
    content = assert_file_answers_as(model, format_, bench.calibration(4))
    assert values_per_tensor(format_, content) <= 8
    assert wire_bytes(content) < 0.3 * wire_bytes(originals[format_])


class Branching(nn.Module):
    """The first convolution's output is used before its normalisation, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(4)])

    def forward(self, x):
        x = self.first(x)
        return self.norms[1](self.second(self.norms[0](x) + x)).mean((2, 3))


def test_normalisation_is_folded_only_where_no_output_changes(pressed):
    torch.manual_seed(0)
    model = Branching().eval()
    for norm in model.norms:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 1, 9, 9)
    found, notes = pressed(model, x, bits=8)
    assert notes[0] == "batch normalisation was folded into second"
    assert isinstance(found.norms[0], nn.BatchNorm2d)
    assert torch.allclose(found(x), model(x), atol=0.02)


class Showing(Branching):
    """The first convolution's output is one of the model's own."""

    def forward(self, x):
        x = self.first(x)
        return self.norms[1](self.second(self.norms[0](x))).mean((2, 3)), x


def test_an_output_of_the_model_is_not_normalised_by_folding(pressed):
    torch.manual_seed(0)
    model = Showing().eval()
    model.norms[0].running_mean.uniform_(-1, 1)
    x = torch.randn(2, 1, 9, 9)
    found, notes = pressed(model, x, bits=8)
    assert notes[0] == "batch normalisation was folded into second"
    assert torch.allclose(found(x)[1], model(x)[1], atol=0.02)


def test_normalisation_is_folded_into_transposed_convolutions_and_dense_layers(pressed):
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(4), nn.BatchNorm1d(5)
    for norm in norms:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    layers = nn.ConvTranspose2d(3, 4, 3, bias=False), norms[0], nn.Flatten(), nn.Linear(100, 5), norms[1]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 3, 3, 3)
    found, notes = pressed(model, x, bits=8)
    assert notes[0] == "batch normalisation was folded into 0, 3"
    assert torch.allclose(found(x), model(x), atol=0.03)
