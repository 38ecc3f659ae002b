"""What quantization does to the torch module before the export: equalization, learned rounding, bias correction."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from edgepress_host import exporters, technique
from edgepress_host.press.strict import convert
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.quantize.grid import found_bits
from quantize_lab import Attentive, Paired, apart, rounded, run, seeded
from torch import nn


def test_nothing_is_prepared_where_nothing_was_asked_for():
    assert convert({"mode": "static"}, technique.found()["quantize"]).prepared() is None


def test_cross_layer_equalization_keeps_the_function_and_helps_one_scale_for_a_tensor(paired, prepare, bench):
    x = bench.calibration(32)
    made, notes = prepare(equalize="cross_layer", granularity="tensor")
    assert np.allclose(run(made, x), run(paired, x), rtol=1e-3, atol=1e-4)
    # The convolution in the residual has no single follower; the others pair up, over the flattening, too.
    assert notes == ["equalized 4 pairs of layers; in none: back"]
    assert made.first.bias is not None
    assert isinstance(made.norm, nn.Identity)
    ranges = made.first.weight.abs().amax((1, 2, 3)), made.deep.weight.abs().amax((1, 2, 3))
    assert torch.allclose(*ranges, rtol=1e-3)
    assert apart(rounded(made, 4, ()), paired, x) < 0.3 * apart(rounded(paired, 4, ()), paired, x)


def test_an_equalization_that_finds_no_pair_says_so(prepare):
    _, notes = prepare(seeded(Attentive), equalize="cross_layer")
    assert notes == ["equalize: no two layers follow each other with ReLU alone between them; all are left as they are"]


def test_smoothing_moves_an_outlier_into_the_weights_by_the_share_asked_for(prepare, bench):
    model, x = seeded(Attentive), bench.calibration(32)
    made, notes = prepare(model, equalize="smooth", alpha=0.5)
    assert notes == ["smoothed before; left as they are: after"]
    assert np.allclose(run(made, x), run(model, x), rtol=1e-3, atol=1e-4)

    def spread(some):
        seen = some.before(torch.from_numpy(np.array(x)).flatten(1, 2)).detach().abs().amax((0, 1))
        return float(seen.max() / seen.median())

    assert spread(made) < 0.25 * spread(model)
    whole, _ = prepare(model, equalize="smooth", alpha=1.0)
    assert spread(whole) == pytest.approx(1, rel=1e-3)
    # Half way (equation 4 of SmoothQuant), each feature's largest activation is as large as its largest weight.
    every = torch.from_numpy(bench.split("calibrate").x.copy())
    seen = made.before(every.flatten(1, 2)).detach().abs().amax((0, 1))
    held = torch.stack([layer.weight.abs().amax(0) for layer in (made.query, made.key, made.value)]).amax(0)
    assert torch.allclose(seen, held.detach(), rtol=1e-3)


def test_dense_layers_between_tokens_are_known_by_their_names(bench):
    content = exporters.get("onnx").export(seeded(Attentive), bench.calibration(2))
    options = {"mode": "weight_only", "layers": {"query": {"bits": 4}, "key": {"skip": True}}}
    made = convert(options, technique.found()["quantize"]).apply_graph("onnx", content, bench)
    stored = [
        weight.dtype for weight in exporters.get("onnx").weights(made) if weight.shape in {(12, 12), (4, 12), (12, 4)}
    ]
    assert sorted(stored) == ["float", "int4", "int8", "int8"]


def test_bias_correction_takes_the_shift_off_the_mean_outputs(paired, prepare, bench):
    x = bench.calibration(48)
    made, notes = prepare(bias_correction=True, bits=2, samples=48)
    assert notes == ["corrected the biases of 7 layers"]
    assert made.head.bias is not None
    shifts = [np.abs((run(rounded(some, 2), x) - run(paired, x)).mean(0)).max() for some in (paired, made)]
    assert shifts[1] < 0.05 * shifts[0]


@pytest.mark.parametrize(
    ("options", "kept", "how"),
    [
        ({"bits": 4, "granularity": "tensor"}, (), {}),
        ({"bits": 2, "weight_range": "mse"}, (0,), {"method": "mse"}),
        ({"bits": 4, "symmetry": "asymmetric"}, (0,), {"symmetric": False}),
        ({"bits": 1}, (0,), {}),
    ],
)
def test_biases_are_corrected_for_the_very_grid_that_the_weights_will_have(options, kept, how, paired, prepare, bench):
    x = bench.calibration(48)
    made, _ = prepare(bias_correction=True, samples=48, **options)
    shifts = [
        np.abs((run(rounded(some, options["bits"], kept, **how), x) - run(paired, x)).mean(0)).max()
        for some in (paired, made)
    ]
    assert shifts[1] < 0.05 * shifts[0]


def test_biases_are_corrected_by_as_many_samples_as_are_told(paired, prepare, bench):
    for count in (8, 40):
        made, _ = prepare(bias_correction=True, bits=2, samples=count)
        shifts = [
            np.abs((run(rounded(made, 2), x) - run(paired, x)).mean(0)).max()
            for x in (bench.calibration(count), bench.calibration(48))
        ]
        assert shifts[0] < 0.1 * shifts[1]


def test_only_the_layers_that_will_be_quantized_are_prepared(paired, prepare):
    _, notes = prepare(bias_correction=True, layers={"back": {"skip": True}}, types={"Linear": {"skip": True}})
    assert notes == ["corrected the biases of 4 layers"]
    _, notes = prepare(bias_correction=True, skip=True, types={"Linear": {"skip": False}})
    assert notes == ["corrected the biases of 2 layers"]
    own = {"layers": {"head": {"bits": 4}}, "types": {"Linear": {"bits": 2}}}
    made, _ = prepare(rounding="adaround", rounding_steps=1, bits=8, **own)
    found = {
        name: found_bits(layer.weight.detach().numpy(), (0,))
        for name, layer in made.named_modules()
        if name in {"wide", "hidden", "head"}
    }
    assert found == {"wide": 8, "hidden": 2, "head": 4}


def test_learned_rounding_beats_rounding_to_nearest_and_keeps_zeros(paired, prepare, bench):
    sparse = seeded(Paired)
    with torch.no_grad():
        sparse.hidden.weight[:, ::2] = 0
    x = bench.calibration(48)
    made, notes = prepare(sparse, rounding="adaround", bits=2, rounding_steps=100, samples=48)
    assert "learned rounding is nearer than rounding to nearest in" in notes[0]
    assert (made.hidden.weight[:, ::2] == 0).all()
    assert apart(made, sparse, x) < 0.5 * apart(rounded(sparse, 2), sparse, x)
    hardly, _ = prepare(sparse, rounding="adaround", bits=2, rounding_steps=1, samples=48)
    assert apart(made, sparse, x) < 0.8 * apart(hardly, sparse, x)
    # The file's quantizer finds the same grid: rounding again changes nothing.
    assert apart(rounded(made, 2), made, x) < 1e-9


def test_learned_rounding_draws_each_weight_to_one_side(paired, prepare, bench):
    """Without the term that does (equation 24), weights stay between two points, and rounding them spoils it all."""
    made, _ = prepare(rounding="adaround", bits=4, rounding_steps=500, samples=48)
    x = bench.calibration(48)
    assert apart(made, paired, x) < 0.5 * apart(rounded(paired, 4), paired, x)


def test_a_model_without_layers_to_quantize_is_refused(prepare):
    with pytest.raises(StepFailed, match="the model has no dense layer or convolution to quantize"):
        prepare(nn.Flatten(), bias_correction=True)


def test_a_recipe_prepares_the_module_before_the_export_and_keeps_it_between_runs(press, tmp_path):
    text = (
        "[model]\nsource = 'compress_zoo:build'\n[data]\nsource = 'compress_zoo:load'\n[guard]\nmax_drop = 0.5\n"
        "[[variant]]\nname = 'v'\nformats = ['onnx']\nsteps = [{technique = 'quantize', mode = 'static', "
        "samples = 32, equalize = 'cross_layer', bias_correction = true, mixed = {size = 0.5}}]\n"
    )
    first = press(text, tmp_path / "out")["v.onnx"]
    assert first.verdict == "ok"
    assert first.steps[0].notes[0] == "equalized 2 pairs of layers; in none: stem"
    assert first.steps[0].notes[1].startswith("bits by sensitivity, ")
    assert first.steps[0].notes[2] == "corrected the biases of 5 layers"
    again = press(text, tmp_path / "out")
    assert again["v.onnx"].steps == first.steps
    assert not any("sensitivity" in doing for doing in again.doing)


def test_a_model_that_came_as_a_file_is_refused_with_the_reason(press, tmp_path):
    node = onnx.helper.make_node("Flatten", ["x"], ["y"])
    info = [onnx.helper.make_tensor_value_info(n, 1, ["b", *d]) for n, d in (("x", (1, 12, 12)), ("y", (144,)))]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", info[:1], info[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    (tmp_path / "paired.onnx").write_bytes(model.SerializeToString())
    text = (
        "[model]\nsource = 'paired.onnx'\n[data]\nsource = 'compress_zoo:load'\n[[variant]]\nname = 'v'\n"
        "steps = [{technique = 'quantize', mode = 'weight_only', equalize = 'cross_layer'}]\n"
    )
    made = press(text, tmp_path / "out", beside=tmp_path)["v.onnx"]
    assert made.verdict == "failed"
    assert "quantize: equalize needs a torch module, and the model came as a file" in made.reason
