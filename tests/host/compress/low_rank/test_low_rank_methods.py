from __future__ import annotations

import compress_zoo
import pytest
import torch
from low_rank_lab import kernel_of, macs, planted
from technique_lab import assert_file_answers_as, noise
from torch import nn

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 5), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)},
    {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": (1, 3), "padding": (0, 1), "bias": False},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["plain", "strided", "reflected", "flat"])
@pytest.mark.parametrize("method", ["tucker", "cp", "spatial"])
def test_a_convolution_of_that_rank_is_computed_as_before_by_fewer_macs(method, geometry, pressed):
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 14, **geometry)
    with torch.no_grad():
        layer.weight.copy_(planted(method, layer.weight.shape, 2))
    model, x = nn.Sequential(layer).eval(), noise(2, 12, 15, 13)
    thin, notes = pressed(model, x, method=method, rank=2)
    assert isinstance(thin[0], nn.Sequential)
    assert torch.allclose(thin(x), model(x), atol=2e-3 * float(model(x).detach().abs().max()))
    assert macs(thin, x) < macs(model, x)
    assert notes == [f"in factors: 0 {notes[0].split(' ', 3)[3]}"]
    said = float(notes[0].split("(")[1].split()[0])
    assert said == pytest.approx(macs(thin, x) / macs(model, x), abs=0.006)


def test_the_layers_that_a_method_makes(pressed):
    model, x = nn.Sequential(nn.Conv2d(16, 24, 3, stride=2, padding=1)).eval(), noise(2, 16, 12, 12)

    def kernels(**options):
        thin, _ = pressed(model, x, **options)
        return [(piece.in_channels, piece.out_channels, piece.kernel_size, piece.groups) for piece in thin[0]]

    assert kernels(method="tucker", rank=[4, 6]) == [
        (16, 4, (1, 1), 1),
        (4, 6, (3, 3), 1),
        (6, 24, (1, 1), 1),
    ]
    assert kernels(method="tucker", rank=[16, 6]) == [(16, 6, (3, 3), 1), (6, 24, (1, 1), 1)]
    assert kernels(method="spatial", rank=5) == [(16, 5, (3, 1), 1), (5, 24, (1, 3), 1)]
    assert kernels(method="cp", rank=5) == [
        (16, 5, (1, 1), 1),
        (5, 5, (3, 1), 5),
        (5, 5, (1, 3), 5),
        (5, 24, (1, 1), 1),
    ]


@pytest.mark.parametrize("method", ["tucker", "cp"])
def test_one_dimensional_convolutions_have_factors_too(method, pressed):
    layer = nn.Conv1d(12, 14, 5, padding=2)
    with torch.no_grad():
        layer.weight.copy_(planted("cp", (14, 12, 5, 1), 2)[..., 0])
    model, x = nn.Sequential(layer).eval(), noise(2, 12, 40)
    thin, _ = pressed(model, x, method=method, rank=2)
    assert len(thin[0]) == 3
    assert torch.allclose(thin(x), model(x), atol=2e-3 * float(model(x).detach().abs().max()))


def test_dense_layers_are_exact_at_their_rank_and_what_would_not_save_is_named(pressed):
    layer = nn.Linear(20, 30)
    with torch.no_grad():
        layer.weight.copy_(noise(30, 3) @ noise(3, 20, seed=1))
    model, x = nn.Sequential(layer).eval(), noise(4, 20)
    thin, _ = pressed(model, x, rank=3)
    assert [piece.out_features for piece in thin[0]] == [3, 30]
    assert torch.allclose(thin(x), model(x), atol=1e-4)
    thin, notes = pressed(model, x, rank=12)
    assert thin[0].weight.shape == (30, 20)
    assert notes == ["0 is left as it is: svd of rank 12 needs 600 MACs, the layer 600"]


def test_svd_leaves_larger_kernels_and_factorizes_dense_and_pointwise_layers(pressed):
    thin, notes = pressed(compress_zoo.build(), rank=3)
    assert thin.hidden[0].out_features == thin.block.mix[0].out_channels == 3
    assert isinstance(thin.block.conv, nn.Conv2d)
    assert len(notes) == 1


def test_auto_takes_the_method_with_the_fewest_macs(pressed):
    original, x = compress_zoo.build(), noise(2, 1, 12, 12)
    skip = {"types": {"Linear": {"skip": True}}}
    costs = {
        method: macs(pressed(original, x, method=method, energy=0.6, **skip)[0].block.conv, noise(1, 16, 6, 6))
        for method in ("tucker", "cp", "spatial", "auto")
    }
    assert costs["auto"] == min(costs.values())
    assert len(set(costs.values())) > 1


def test_hooi_comes_nearer_than_the_truncated_hosvd(pressed):
    layer = nn.Conv2d(12, 12, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(noise(12, 12, 3, 3))
    model, x = nn.Sequential(layer).eval(), noise(2, 12, 8, 8)
    lost = []
    for rounds in (0, 10):
        thin, _ = pressed(model, x, method="tucker", rank=4, hooi_iterations=rounds)
        lost.append(float((kernel_of(thin[0], 3) - layer.weight).norm()))
    assert lost[1] < 0.99 * lost[0]


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_every_method_runs_in_the_real_runtime(format_, pressed, bench):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tucker, self.cp = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, stride=2, padding=1)
            self.spatial, self.dense = nn.Conv2d(12, 12, 3), nn.Linear(12 * 16, 10)

        def forward(self, x):
            x = torch.relu(self.spatial(torch.relu(self.cp(torch.relu(self.tucker(x))))))
            return self.dense(x.flatten(1))

    torch.manual_seed(0)
    layers = {name: {"method": name, "rank": 3} for name in ("tucker", "cp", "spatial")}
    thin, _ = pressed(Net().eval(), rank=4, layers=layers)
    assert [len(getattr(thin, name)) for name in ("tucker", "cp", "spatial", "dense")] == [2, 4, 2, 2]
    assert_file_answers_as(thin, format_, bench.calibration(4))
