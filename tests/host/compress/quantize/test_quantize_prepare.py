from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest
import torch
from edgepress_host import evaluate, exporters, technique
from edgepress_host.press import structure
from edgepress_host.press.strict import convert
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.quantize.grid import found_bits, integers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper
from torch import nn


class Net(nn.Module):
    """Two convolutions to pair, one in a residual, a flattened one before dense layers, and one without a bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 16, 1)
        self.back = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)
        self.hidden = nn.Linear(4 * 36, 24)
        self.head = nn.Linear(24, 4, bias=False)

    def forward(self, x):
        x = torch.relu(self.deep(torch.relu(self.norm(self.first(x)))))
        x = self.wide(x)
        x = torch.relu(x + self.back(x))
        return self.head(torch.relu(self.hidden(torch.relu(self.last(x)).flatten(1))))


class Attentive(nn.Module):
    """A LayerNorm with three dense layers behind it, whose activations have an outlying feature; and one with a sum."""

    def __init__(self):
        super().__init__()
        self.before = nn.LayerNorm(12)
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.after = nn.LayerNorm(12)
        self.head = nn.Linear(12, 4)
        with torch.no_grad():
            self.before.weight[3] = 60.0
            for layer in (self.query, self.key, self.value):
                layer.weight[:, 3] *= 0.02

    def forward(self, x):
        x = x.flatten(1, 2)
        h = self.before(x)
        shares = torch.softmax(self.query(h) @ self.key(h).transpose(1, 2) / 12**0.5, -1)
        x = self.after(x + shares @ self.value(h))
        return self.head(x + x.mean(-1, keepdim=True)).mean(1)


def seeded(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind().eval()


@pytest.fixture(scope="module")
def net():
    """Channels of very different sizes, which the layers behind make up for: what cross-layer equalization is for."""
    model = seeded(Net)
    with torch.no_grad():
        model.norm.weight.copy_(torch.logspace(-2, 1, 8))
        model.norm.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        model.deep.weight.div_(torch.logspace(-2, 1, 8).reshape(-1, 1, 1, 1))
    return model


@pytest.fixture
def prepare(net, bench):
    """Prepare a module by options of quantize; the new module, and what was noted."""

    def call(model=net, **options):
        notes = []
        step = convert({"mode": "weight_only", **options}, technique.found()["quantize"])
        step.check()
        prepared = step.prepared()
        assert prepared.stage == "module"
        before = structure.digest(model)
        made = prepared.apply_module(model, msgspec.structs.replace(bench, note=notes.append))
        assert structure.digest(model) == before
        again = structure.rebuild(model, structure.describe(made), structure.tensors(made))
        assert structure.digest(again) == structure.digest(made)
        return made, notes

    return call


def run(model, x):
    with torch.no_grad():
        return model(torch.from_numpy(np.array(x))).numpy()


def rounded(model, bits, kept=(0,)):
    """The model with its weights on the grids that a file will have."""
    import copy

    changed = copy.deepcopy(model)
    for layer in changed.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(integers(layer.weight.numpy(), bits, kept).real))
    return changed


def apart(model, exact, x):
    wanted = run(exact, x)
    return float(np.square(run(model, x) - wanted).mean() / np.square(wanted).mean())


def test_nothing_is_prepared_where_nothing_was_asked_for():
    assert convert({"mode": "static"}, technique.found()["quantize"]).prepared() is None


def test_cross_layer_equalization_keeps_the_function_and_helps_one_scale_for_a_tensor(net, prepare, bench):
    x = bench.calibration(32)
    made, notes = prepare(equalize="cross_layer", granularity="tensor")
    assert np.allclose(run(made, x), run(net, x), rtol=1e-3, atol=1e-4)
    # The convolution in the residual has no single follower; the others pair up, over the flattening, too.
    assert notes == ["equalized 4 pairs of layers; in none: back"]
    assert made.first.bias is not None
    assert isinstance(made.norm, nn.Identity)
    ranges = made.first.weight.abs().amax((1, 2, 3)), made.deep.weight.abs().amax((1, 2, 3))
    assert torch.allclose(*ranges, rtol=1e-3)
    assert apart(rounded(made, 4, ()), net, x) < 0.3 * apart(rounded(net, 4, ()), net, x)


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


def test_dense_layers_between_tokens_are_known_by_their_names(bench):
    content = exporters.get("onnx").export(seeded(Attentive), bench.calibration(2))
    options = {"mode": "weight_only", "layers": {"query": {"bits": 4}, "key": {"skip": True}}}
    made = convert(options, technique.found()["quantize"]).apply_graph("onnx", content, bench)
    stored = [
        weight.dtype for weight in exporters.get("onnx").weights(made) if weight.shape in {(12, 12), (4, 12), (12, 4)}
    ]
    assert sorted(stored) == ["float", "int4", "int8", "int8"]


def test_bias_correction_takes_the_shift_off_the_mean_outputs(net, prepare, bench):
    x = bench.calibration(48)
    made, notes = prepare(bias_correction=True, bits=2, samples=48)
    assert notes == ["corrected the biases of 7 layers"]
    assert made.head.bias is not None
    shifts = [np.abs((run(rounded(some, 2), x) - run(net, x)).mean(0)).max() for some in (net, made)]
    assert shifts[1] < 0.05 * shifts[0]


def test_learned_rounding_beats_rounding_to_nearest_and_keeps_zeros(net, prepare, bench):
    sparse = seeded(Net)
    with torch.no_grad():
        sparse.hidden.weight[:, ::2] = 0
    x = bench.calibration(48)
    made, notes = prepare(sparse, rounding="adaround", bits=2, rounding_steps=100, samples=48)
    assert "learned rounding is nearer than rounding to nearest in" in notes[0]
    assert (made.hidden.weight[:, ::2] == 0).all()
    assert apart(made, sparse, x) < 0.5 * apart(rounded(sparse, 2), sparse, x)
    # The file's quantizer finds the same grid: rounding again changes nothing.
    assert apart(rounded(made, 2), made, x) < 1e-9


def test_files_store_the_very_integers_of_the_learned_rounding_and_the_bits_that_were_chosen(net, prepare, bench):
    options = {"mixed": {"size": 0.4}, "rounding": "adaround", "rounding_steps": 20, "layers": {"head": {"bits": 4}}}
    made, notes = prepare(**options)
    note = next(note for note in notes if note.startswith("bits by sensitivity"))
    bits = {name: int(value) for name, value in (part.split() for part in note.partition(": ")[2].split(", "))}
    assert bits["head"] == 4
    step = convert({"mode": "static", "samples": 16, **options}, technique.found()["quantize"])
    x = bench.calibration(16)
    content = exporters.get("onnx").export(made, x[:2])
    stored = {t.name: t for t in onnx.load_from_string(step.apply_graph("onnx", content, bench)).graph.initializer}
    suffix = {8: "", 4: ".int4", 2: ".int2"}
    for name, layer in ((n, one) for n, one in made.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)):
        tensor = numpy_helper.to_array(stored[f"{name}.weight_quantized{suffix[bits[name]]}"])
        wanted = integers(layer.weight.detach().numpy(), bits[name], (0,))
        assert np.array_equal(tensor.astype(np.int8), wanted.values), name
        if bits[name] < 8:
            assert np.allclose(wanted.real, layer.weight.detach().numpy(), atol=1e-6)
    content = exporters.get("tflite").export(made, x[:2])
    file = step.apply_graph("tflite", content, bench)
    found = [weight.dtype for weight in exporters.get("tflite").weights(file) if len(weight.shape) > 1]
    assert found.count("int8") == sum(one == 8 for one in bits.values())
    got = np.concatenate([outputs[0] for outputs in evaluate.predict("tflite", file, x)])
    assert np.abs(got - run(made, x)).mean() < 0.1 * np.abs(run(made, x)).mean()


def test_bits_by_sensitivity_keep_within_the_size_and_say_what_is_out_of_reach(net, prepare):
    for size in (0.75, 0.5):
        _, notes = prepare(mixed={"size": size})
        assert float(notes[0].partition(", ")[2].partition(" ")[0]) <= size
    with pytest.raises(
        StepFailed, match=r"mixed\.size: 0\.1 is out of reach; the least that these layers take is 0\.25"
    ):
        prepare(mixed={"size": 0.1})


def test_bits_by_sensitivity_keep_within_the_accuracy_and_use_it(bench):
    import compress_zoo

    model, samples = compress_zoo.build(), bench.split("validate")
    shares = []
    for drop in (0.0, 0.3):
        step = convert({"mode": "weight_only", "mixed": {"max_drop": drop}}, technique.found()["quantize"])
        notes = []
        made = step.prepared().apply_module(model, msgspec.structs.replace(bench, note=notes.append))
        scores = [evaluate.top1(run(some, samples.x), samples.y) for some in (made, model)]
        assert scores[0] >= scores[1] - drop - 1e-9
        shares.append(float(notes[0].partition(", ")[2].partition(" ")[0]))
    assert shares[1] <= shares[0] < 1


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
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    text = (
        "[model]\nsource = 'net.onnx'\n[data]\nsource = 'compress_zoo:load'\n[[variant]]\nname = 'v'\n"
        "steps = [{technique = 'quantize', mode = 'weight_only', equalize = 'cross_layer'}]\n"
    )
    made = press(text, tmp_path / "out", beside=tmp_path)["v.onnx"]
    assert made.verdict == "failed"
    assert "quantize: equalize needs a torch module, and the model came as a file" in made.reason


def weights():
    return arrays.arrays(
        np.float32, (3, 7), elements=st.floats(-100, 100, width=32).filter(lambda v: abs(v) > 1e-3 or v == 0)
    )


@given(weights(), st.sampled_from([8, 4, 2]), st.booleans(), st.sampled_from(["minmax", "mse"]))
@settings(max_examples=60, deadline=None)
def test_integers_fit_their_bits_and_keep_zero(weight, bits, symmetric, method):
    found = integers(weight, bits, (0,), symmetric=symmetric, method=method)
    top = 2 ** (bits - 1) - 1
    assert found.values.min() >= (-top if symmetric else -top - 1)
    assert found.values.max() <= top
    assert (found.real[weight == 0] == 0).all()
    assert np.isfinite(found.real).all()
    if method == "mse":
        plain = integers(weight, bits, (0,), symmetric=symmetric)
        assert ((found.real - weight) ** 2).sum() <= ((plain.real - weight) ** 2).sum() * (1 + 1e-5) + 1e-9


@given(weights(), st.sampled_from([4, 2]))
@settings(max_examples=60, deadline=None)
def test_bits_are_found_again_in_weights_on_a_grid(weight, bits):
    on_grid = integers(weight, bits, (0,)).real
    assert found_bits(on_grid, (0,)) <= bits
    again = integers(on_grid, bits, (0,))
    assert np.allclose(again.real, on_grid, rtol=1e-5)
