"""Weights in few bits: how they are stored in each format, and that the runtimes run them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from edgepress_host import exporters
from edgepress_host.press.measure import Counts, recount
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.quantize.grid import integers
from onnx import numpy_helper
from quantize_lab import LIMITS, SMALL, kinds, loaded, outputs, value_of
from torch import nn


@pytest.mark.parametrize("mode", ["weight_only", "dynamic", "static"])
@pytest.mark.parametrize("bits", [4, 2, 1])
def test_an_onnx_file_stores_weights_in_the_bits_asked_for_and_runs(mode, bits, quantized, away):
    content, _ = quantized("onnx", mode=mode, bits=bits, samples=16)
    floats = {"float"} if mode == "dynamic" else set()  # convolutions run faster so
    assert kinds("onnx", content) - {"float"} == {SMALL["onnx"][bits]}
    assert mode != "static" or kinds("onnx", content) - floats == {SMALL["onnx"][bits]}
    assert len(content) < len(quantized("onnx", mode=mode, samples=16)[0])
    assert away("onnx", content) < LIMITS[bits]
    assert away("onnx", content, plain_kernels=True) == pytest.approx(away("onnx", content), rel=0.2, abs=0.01)


@pytest.mark.parametrize(
    ("mode", "bits", "wanted", "noted"),
    [
        ("weight_only", 4, {"int4"}, ""),
        ("weight_only", 2, {"int2"}, ""),
        ("weight_only", 1, {"int2"}, "2 values stored in 2 bits"),
        ("dynamic", 4, {"int4", "int8"}, "with 8 instead: stem, deep"),
        ("dynamic", 2, {"int2", "int4", "int8"}, "3 values stored in 4 bits: wide, back"),
        ("static", 4, {"int4"}, ""),
        ("static", 2, {"int2", "int4"}, "3 values stored in 4 bits: stem, deep"),
        ("static", 1, {"int2", "int4"}, "2 values stored in 4 bits"),
    ],
)
def test_a_tflite_file_stores_the_fewest_bits_that_run_and_says_where_they_are_more(
    mode, bits, wanted, noted, quantized, away
):
    content, notes = quantized("tflite", mode=mode, bits=bits, samples=16)
    assert kinds("tflite", content) == wanted
    assert noted in " ".join(notes)
    assert bool(notes) == bool(noted)
    assert away("tflite", content) < LIMITS[bits]
    assert away("tflite", content, plain_kernels=True) == pytest.approx(away("tflite", content), rel=0.2, abs=0.02)


def test_one_bit_is_the_sign_times_the_mean_magnitude_of_the_channel(net, quantized):
    content, _ = quantized("onnx", mode="weight_only", bits=1)
    weight = net.hidden.weight.detach().numpy()
    wanted = np.where(weight >= 0, 1, -1) * np.abs(weight).mean(axis=1, keepdims=True)
    assert np.allclose(value_of(content, "hidden.weight"), wanted, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_few_bits_are_expanded_once_when_the_file_is_loaded(bits, quantized, tmp_path, files):
    weight_only, _ = quantized("onnx", mode="weight_only", bits=bits)
    assert loaded(weight_only, tmp_path / "w.onnx") == loaded(files["onnx"], tmp_path / "f.onnx")
    static, _ = quantized("onnx", mode="static", bits=bits, samples=16)
    assert {"QLinearConv", "QGemm"} <= loaded(static, tmp_path / "s.onnx")
    assert not loaded(static, tmp_path / "s.onnx") & {"Conv", "Gemm", "Cast", "BitShift"}


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_half_precision_halves_a_file_that_answers_nearly_as_before(format_, quantized, away, files):
    content, _ = quantized(format_, mode="fp16")
    assert kinds(format_, content) == {"float16"}
    assert len(content) < 0.6 * len(files[format_])
    # A step of half precision is 2^-11, of bfloat16 2^-8.
    assert 0 < away(format_, content) < 0.001


def test_bfloat16_halves_an_onnx_file_that_runs_as_before(quantized, away, files, tmp_path):
    content, _ = quantized("onnx", mode="bf16")
    assert kinds("onnx", content) == {"bfloat16"}
    assert len(content) < 0.6 * len(files["onnx"])
    assert 0 < away("onnx", content) < 0.01
    assert "Cast" not in loaded(content, tmp_path / "b.onnx")
    with pytest.raises(StepFailed, match="no kernel that reads bfloat16 weights; for TFLite files use mode fp16"):
        quantized("tflite", mode="bf16")


@pytest.mark.parametrize("mode", ["weight_only", "dynamic", "static"])
@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_one_scale_for_a_tensor_takes_less_room_than_one_for_each_channel(mode, format_, quantized, away):
    channel, _ = quantized(format_, mode=mode, samples=16)
    tensor, notes = quantized(format_, mode=mode, granularity="tensor", samples=16)
    assert len(tensor) < len(channel)
    assert away(format_, tensor) < 0.1
    assert bool(notes) == (mode == "dynamic" and format_ == "tflite")


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_asymmetric_weights_use_the_whole_range_of_what_lies_to_one_side(format_, bench, net, quantized, away):
    class Skewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(144, 8)
            with torch.no_grad():
                self.dense.weight.copy_(net.hidden.weight[:8, :144].abs() + 0.02)

        def forward(self, x):
            return self.dense(x.flatten(1))

    before = exporters.get(format_).export(Skewed().eval(), bench.calibration(2))
    apart = [
        away(format_, quantized(format_, before, mode="weight_only", bits=4, symmetry=symmetry)[0], before=before)
        for symmetry in ("symmetric", "asymmetric")
    ]
    assert 0 < apart[1] < 0.75 * apart[0]


def test_asymmetric_weights_that_no_kernel_takes_are_refused_with_the_pair_and_the_way_out(quantized, away):
    with pytest.raises(StepFailed, match=r'stem: .* one zero point for a weight; set granularity = "tensor"'):
        quantized("onnx", mode="static", symmetry="asymmetric", samples=4)
    with pytest.raises(StepFailed, match='weight_only alone; in mode static use "symmetric"'):
        quantized("tflite", mode="static", symmetry="asymmetric", samples=4)
    content, _ = quantized("onnx", mode="static", symmetry="asymmetric", granularity="tensor", samples=16)
    zeros = [
        numpy_helper.to_array(one)
        for one in onnx.load_from_string(content).graph.initializer
        if one.name.endswith("weight_zero_point")
    ]
    assert any(zero.any() for zero in zeros)
    assert away("onnx", content) < 0.05
    content, _ = quantized("onnx", mode="dynamic", symmetry="asymmetric")
    assert away("onnx", content) < 0.05


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_a_range_of_weights_by_mse_is_nearer_at_few_bits(format_, quantized, away, net):
    apart = [
        away(format_, quantized(format_, mode="weight_only", bits=2, weight_range=one)[0]) for one in ("minmax", "mse")
    ]
    assert apart[1] < 0.8 * apart[0]


class Sparse(nn.Module):
    """A dense layer of which four weights in five are zero, all of the first input's among them."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(144, 16)
        with torch.no_grad():
            self.dense.weight[torch.rand(16, 144) < 0.8] = 0
            self.dense.weight[:, 0] = 0

    def forward(self, x):
        return self.dense(x.flatten(1))


@pytest.fixture(scope="module")
def sparse(bench):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sparse().eval()
    return model, {name: exporters.get(name).export(model, bench.calibration(2)) for name in exporters.names()}


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weights_that_are_zero_stay_exactly_zero(bits, sparse, quantized):
    model, before = sparse
    zeros = (model.dense.weight == 0).numpy()
    for symmetry in ("symmetric", "asymmetric"):
        content, _ = quantized("onnx", before["onnx"], mode="weight_only", bits=bits, symmetry=symmetry)
        assert (value_of(content, "dense.weight")[zeros] == 0).all()
        content, _ = quantized("tflite", before["tflite"], mode="weight_only", bits=bits, symmetry=symmetry)
        x = np.zeros((1, 1, 12, 12), np.float32)
        still = outputs("tflite", content, x, plain_kernels=False)
        x[0, 0, 0, 0] = 1000
        assert np.array_equal(outputs("tflite", content, x, plain_kernels=False), still)


@pytest.mark.parametrize("mode", ["weight_only", "static"])
@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_zeros_that_rounding_made_are_counted(format_, mode, sparse, quantized):
    model, before = sparse
    content, _ = quantized(format_, before[format_], mode=mode, bits=2, samples=16)
    exact = int(torch.count_nonzero(model.dense.weight))
    counts = Counts(params=144 * 16 + 16, nonzero_params=exact + 16, macs=None)
    left = integers(model.dense.weight.detach().numpy(), 2, (0,)).values
    assert np.count_nonzero(left) < exact
    assert recount(counts, format_, before[format_], content).nonzero_params == np.count_nonzero(left) + 16
