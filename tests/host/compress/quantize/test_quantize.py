from __future__ import annotations

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edgepress_host import evaluate, exporters, recipe, technique
from edgepress_host.press.measure import Counts, recount
from edgepress_host.press.strict import convert
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.quantize.grid import integers
from edgepress_protocol.errors import UsageError
from onnx import numpy_helper
from torch import nn

SMALL = {"onnx": {8: "int8", 4: "int4", 2: "int2", 1: "uint8"}, "tflite": {8: "int8", 4: "int4", 2: "int2"}}


class Net(nn.Module):
    """Every kind of layer that the tools treat apart: convolution, depthwise, batch normalization, dense."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 16, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.back = nn.Conv2d(16, 16, 3, padding=1)
        self.hidden = nn.Linear(16 * 36, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = torch.relu(self.deep(torch.relu(self.stem(x))))
        x = torch.relu(self.norm(self.wide(x)))
        x = torch.relu(x + self.back(x))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def files(net, bench):
    """The net in both formats."""
    return {name: exporters.get(name).export(net, bench.calibration(2)) for name in exporters.names()}


@pytest.fixture
def made(bench, files):
    """Quantize with options; the file, and what was noted."""

    def call(format_, content=None, samples=None, **options):
        notes = []
        calibrated = {} if samples is None or options["mode"] != "static" else {"samples": samples}
        step = made_from(options | calibrated)
        content = files[format_] if content is None else content
        return step.apply_graph(format_, content, msgspec.structs.replace(bench, note=notes.append)), notes

    return call


@pytest.fixture
def away(bench, files):
    """Mean change of a file's outputs against fp32, as a share of their mean size."""

    def call(format_, content, plain_kernels=False, before=None):
        x = bench.calibration(16)
        exact = outputs(format_, files[format_] if before is None else before, x, plain_kernels=False)
        return np.abs(outputs(format_, content, x, plain_kernels=plain_kernels) - exact).mean() / np.abs(exact).mean()

    return call


def made_from(options):
    step = convert(options, technique.found()["quantize"])
    step.check()
    return step


def outputs(format_, content, x, *, plain_kernels):
    runner = evaluate.open_runner(format_, content, plain_kernels=plain_kernels)
    size = 1 if format_ == "tflite" else len(x)
    return np.concatenate([runner.run(np.ascontiguousarray(x[at : at + size]))[0] for at in range(0, len(x), size)])


def kinds(format_, content):
    """Types of stored weights, biases and shapes aside."""
    found = {w.dtype for w in exporters.get(format_).weights(content) if len(w.shape) > 1}
    return found - {"int32", "int64"}


def value_of(content, tensor):
    """Return what ONNX Runtime makes of a tensor that depends on constants alone."""
    model = onnx.load_from_string(content)
    stored = {one.name: one for one in model.graph.initializer}
    if tensor in stored:
        return numpy_helper.to_array(stored[tensor])
    model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    return session.run([tensor], {first.name: np.zeros((1, 1, 12, 12), np.float32)})[0]


def loaded(content, path):
    """Kinds of nodes that are left when ONNX Runtime has loaded a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path).graph.node}


LIMITS = {8: 0.03, 4: 0.3, 2: 2.0, 1: 2.0}


@pytest.mark.parametrize("mode", ["weight_only", "dynamic", "static"])
@pytest.mark.parametrize("bits", [4, 2, 1])
def test_an_onnx_file_stores_weights_in_the_bits_asked_for_and_runs(mode, bits, made, away):
    content, _ = made("onnx", mode=mode, bits=bits, samples=16)
    floats = {"float"} if mode == "dynamic" else set()  # convolutions run faster so
    assert kinds("onnx", content) - {"float"} == {SMALL["onnx"][bits]}
    assert mode != "static" or kinds("onnx", content) - floats == {SMALL["onnx"][bits]}
    assert len(content) < len(made("onnx", mode=mode, samples=16)[0])
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
    mode, bits, wanted, noted, made, away
):
    content, notes = made("tflite", mode=mode, bits=bits, samples=16)
    assert kinds("tflite", content) == wanted
    assert noted in " ".join(notes)
    assert bool(notes) == bool(noted)
    assert away("tflite", content) < LIMITS[bits]
    assert away("tflite", content, plain_kernels=True) == pytest.approx(away("tflite", content), rel=0.2, abs=0.02)


def test_one_bit_is_the_sign_times_the_mean_magnitude_of_the_channel(net, made):
    content, _ = made("onnx", mode="weight_only", bits=1)
    weight = net.hidden.weight.detach().numpy()
    wanted = np.where(weight >= 0, 1, -1) * np.abs(weight).mean(axis=1, keepdims=True)
    assert np.allclose(value_of(content, "hidden.weight"), wanted, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_few_bits_are_expanded_once_when_the_file_is_loaded(bits, made, tmp_path, files):
    weight_only, _ = made("onnx", mode="weight_only", bits=bits)
    assert loaded(weight_only, tmp_path / "w.onnx") == loaded(files["onnx"], tmp_path / "f.onnx")
    static, _ = made("onnx", mode="static", bits=bits, samples=16)
    assert {"QLinearConv", "QGemm"} <= loaded(static, tmp_path / "s.onnx")
    assert not loaded(static, tmp_path / "s.onnx") & {"Conv", "Gemm", "Cast", "BitShift"}


def test_bfloat16_halves_an_onnx_file_that_runs_as_before(made, away, files, tmp_path):
    content, _ = made("onnx", mode="bf16")
    assert kinds("onnx", content) == {"bfloat16"}
    assert len(content) < 0.6 * len(files["onnx"])
    assert 0 < away("onnx", content) < 0.01
    assert "Cast" not in loaded(content, tmp_path / "b.onnx")
    with pytest.raises(StepFailed, match="no kernel that reads bfloat16 weights; for TFLite files use mode fp16"):
        made("tflite", mode="bf16")


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_activations_of_16_bits_are_nearer_than_those_of_8(format_, made, away):
    weights_alone, _ = made(format_, mode="weight_only")
    apart = {}
    for bits in (8, 16):
        content, _ = made(format_, mode="static", activations=bits, samples=48)
        apart[bits] = away(format_, content, before=weights_alone)
    assert 0 < apart[16] < 0.2 * apart[8]


def test_tflite_takes_activations_of_16_bits_symmetric_alone(made):
    with pytest.raises(StepFailed, match='activation_symmetry: LiteRT runs activations of 16 bits as "symmetric"'):
        made("tflite", mode="static", activations=16, activation_symmetry="asymmetric", samples=4)


@pytest.mark.parametrize("mode", ["weight_only", "dynamic", "static"])
@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_one_scale_for_a_tensor_takes_less_room_than_one_for_each_channel(mode, format_, made, away):
    channel, _ = made(format_, mode=mode, samples=16)
    tensor, notes = made(format_, mode=mode, granularity="tensor", samples=16)
    assert len(tensor) < len(channel)
    assert away(format_, tensor) < 0.1
    assert bool(notes) == (mode == "dynamic" and format_ == "tflite")


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_asymmetric_weights_use_the_whole_range_of_what_lies_to_one_side(format_, bench, net, made, away):
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
        away(format_, made(format_, before, mode="weight_only", bits=4, symmetry=symmetry)[0], before=before)
        for symmetry in ("symmetric", "asymmetric")
    ]
    assert 0 < apart[1] < 0.75 * apart[0]


def test_asymmetric_weights_that_no_kernel_takes_are_refused_with_the_pair_and_the_way_out(made, away):
    with pytest.raises(StepFailed, match=r'stem: .* one zero point for a weight; set granularity = "tensor"'):
        made("onnx", mode="static", symmetry="asymmetric", samples=4)
    with pytest.raises(StepFailed, match='weight_only alone; in mode static use "symmetric"'):
        made("tflite", mode="static", symmetry="asymmetric", samples=4)
    content, _ = made("onnx", mode="static", symmetry="asymmetric", granularity="tensor", samples=16)
    zeros = [
        numpy_helper.to_array(one)
        for one in onnx.load_from_string(content).graph.initializer
        if one.name.endswith("weight_zero_point")
    ]
    assert any(zero.any() for zero in zeros)
    assert away("onnx", content) < 0.05
    content, _ = made("onnx", mode="dynamic", symmetry="asymmetric")
    assert away("onnx", content) < 0.05


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_symmetric_activations_have_zero_in_the_middle(format_, made):
    def zero_points(content):
        if format_ == "onnx":
            graph = onnx.load_from_string(content).graph
            types = {one.name: one for one in graph.initializer}
            names = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
            return {int(numpy_helper.to_array(types[name])) - 128 for name in names}
        from ai_edge_litert.interpreter import Interpreter

        details = Interpreter(model_content=content).get_tensor_details()
        return {int(zero) for one in details for zero in one["quantization_parameters"]["zero_points"]}

    symmetric = zero_points(made(format_, mode="static", activation_symmetry="symmetric", samples=16)[0])
    assert symmetric <= {0, -1}
    assert not zero_points(made(format_, mode="static", samples=16)[0]) <= {0, -1}


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_a_range_of_weights_by_mse_is_nearer_at_few_bits(format_, made, away, net):
    apart = [away(format_, made(format_, mode="weight_only", bits=2, weight_range=one)[0]) for one in ("minmax", "mse")]
    assert apart[1] < 0.8 * apart[0]


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_four_methods_of_calibration_give_four_files_that_work(format_, made, away):
    files = {
        method: made(format_, mode="static", calibration=method, samples=16, **more)[0]
        for method, more in {"minmax": {}, "entropy": {}, "percentile": {"percentile": 99.0}, "mse": {}}.items()
    }
    assert len(set(files.values())) == 4
    assert away(format_, files["mse"]) < 0.1


@pytest.mark.parametrize(("mode", "level"), [("weight_only", 1), ("dynamic", 4)])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_dense_layers_of_an_onnx_file_have_blocks_of_the_size_asked_for(mode, level, bits, made, away):
    symmetry = "asymmetric" if bits == 2 else "symmetric"
    options = {"mode": mode, "bits": bits, "granularity": "block", "symmetry": symmetry}
    content, notes = made("onnx", **options, block_size=64)
    nodes = [node for node in onnx.load_from_string(content).graph.node if node.op_type == "MatMulNBits"]
    found = [{one.name: one.i for one in node.attribute} for node in nodes]
    assert [(one["bits"], one["block_size"], one["accuracy_level"]) for one in found] == [(bits, 64, level)] * 2
    assert bool(notes) == (mode == "weight_only")
    assert away("onnx", content) < LIMITS[bits]
    assert len(made("onnx", **options, block_size=16)[0]) > len(content)


def test_dense_layers_of_a_tflite_file_have_blocks_at_4_bits_in_mode_dynamic(made, away):
    content, notes = made("tflite", mode="dynamic", bits=4, granularity="block", block_size=64)
    assert "float16" in {weight.dtype for weight in exporters.get("tflite").weights(content)}
    assert any("no dense layer of a multiple of 64 inputs: stem, deep, wide, back, head" in note for note in notes)
    assert away("tflite", content) < LIMITS[4]
    with pytest.raises(StepFailed, match="LiteRT runs blocks at bits = 4 in mode dynamic alone"):
        made("tflite", mode="weight_only", bits=4, granularity="block")
    with pytest.raises(StepFailed, match="hidden: LiteRT runs blocks of 32, 64, 128, 256 at bits = 4 alone, not of 16"):
        made("tflite", mode="dynamic", bits=4, granularity="block", block_size=16)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_a_layer_has_bits_of_its_own_and_can_be_left_out(format_, made):
    own = {"head": {"bits": 8}, "deep": {"skip": True}}
    content, _ = made(format_, mode="weight_only", bits=4, layers=own)
    float_ = "float" if format_ == "onnx" else "float32"
    stored = {frozenset(w.shape): w.dtype for w in exporters.get(format_).weights(content) if len(w.shape) > 1}
    assert stored[frozenset({32, 4})] == "int8"
    assert stored[frozenset({32, 576})] == "int4"
    assert stored[frozenset({8, 1, 3}) if format_ == "onnx" else frozenset({1, 3, 8})] in {float_, "int4"}
    assert float_ in stored.values() or float_ in kinds(format_, content)
    with pytest.raises(UsageError, match=r"layers\.'heads': matches no layer; did you mean 'head'"):
        made(format_, mode="weight_only", layers={"heads": {"bits": 4}})


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
def test_weights_that_are_zero_stay_exactly_zero(bits, sparse, made):
    model, before = sparse
    zeros = (model.dense.weight == 0).numpy()
    for symmetry in ("symmetric", "asymmetric"):
        content, _ = made("onnx", before["onnx"], mode="weight_only", bits=bits, symmetry=symmetry)
        assert (value_of(content, "dense.weight")[zeros] == 0).all()
        content, _ = made("tflite", before["tflite"], mode="weight_only", bits=bits, symmetry=symmetry)
        x = np.zeros((1, 1, 12, 12), np.float32)
        still = outputs("tflite", content, x, plain_kernels=False)
        x[0, 0, 0, 0] = 1000
        assert np.array_equal(outputs("tflite", content, x, plain_kernels=False), still)


@pytest.mark.parametrize("mode", ["weight_only", "static"])
@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_zeros_that_rounding_made_are_counted(format_, mode, sparse, made):
    model, before = sparse
    content, _ = made(format_, before[format_], mode=mode, bits=2, samples=16)
    exact = int(torch.count_nonzero(model.dense.weight))
    counts = Counts(params=144 * 16 + 16, nonzero_params=exact + 16, macs=None)
    left = integers(model.dense.weight.detach().numpy(), 2, (0,)).values
    assert np.count_nonzero(left) < exact
    assert recount(counts, format_, before[format_], content).nonzero_params == np.count_nonzero(left) + 16


def test_recurrent_layers_have_few_bits_in_mode_weight_only_and_are_named_where_they_cannot(bench, made, away):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.LSTM(12, 8, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.cells(x.flatten(1, 2))[0][:, -1])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = exporters.get("onnx").export(Recurrent().eval(), bench.calibration(2))
    content, _ = made("onnx", before, mode="weight_only", bits=4)
    stored = [weight for weight in exporters.get("onnx").weights(content) if weight.dtype == "int4"]
    assert sorted(weight.shape for weight in stored) == [(1, 32, 8), (1, 32, 12), (4, 8)]
    assert 0 < away("onnx", content, before=before) < 0.3
    _, notes = made("onnx", before, mode="dynamic", bits=4)
    assert any("left at 8 bits, the fewest that ONNX Runtime's dynamic LSTM takes" in note for note in notes)
    _, notes = made("onnx", before, mode="static", samples=16)
    assert any(note.startswith("left in fp32, for which ONNX Runtime has no static integer kernel: ") for note in notes)


def test_a_file_without_weights_is_refused_with_what_it_has(bench, made):
    node = onnx.helper.make_node("Erf", ["x"], ["y"])
    info = [onnx.helper.make_tensor_value_info(name, 1, ["batch", 1, 12, 12]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", info[:1], info[1:])
    content = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(StepFailed, match="no operator of this file has weights that can be quantized; it has Erf"):
        made("onnx", content.SerializeToString(), mode="weight_only")


def test_shared_values_stay_as_many_with_one_scale_and_the_loss_is_named_otherwise(bench, made, net):
    clustered = technique.found()["cluster"](bits=3).apply_module(net, bench)
    content = exporters.get("onnx").export(clustered, bench.calibration(2))
    (whole, silent), (parted, notes) = (
        made("onnx", content, mode="weight_only", granularity=one) for one in ("tensor", "channel")
    )

    def most(file):
        tensors = onnx.load_from_string(file).graph.initializer
        return max(len(np.unique(onnx.numpy_helper.to_array(one))) for one in tensors if len(one.dims) > 1)

    assert most(whole) == 8 < most(parted)
    assert not silent
    assert notes[0].startswith("weights that shared values share fewer with a scale a channel: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fp16", "bits": 4}, "bits: needs another mode than fp16 and bf16"),
        ({"mode": "bf16", "equalize": "smooth"}, "equalize: needs another mode"),
        ({"mode": "dynamic", "activations": 16}, "activations: needs mode static"),
        ({"mode": "dynamic", "calibration": "mse"}, "calibration: needs mode static"),
        ({"mode": "static", "granularity": "block"}, "granularity: needs mode weight_only or dynamic for blocks"),
        ({"mode": "weight_only", "granularity": "block", "bits": 1}, "granularity: needs more than 1 bit for blocks"),
        ({"mode": "weight_only", "bits": 1, "symmetry": "asymmetric"}, "symmetry: needs more than 1 bit"),
        ({"mode": "weight_only", "bits": 1, "weight_range": "mse"}, "weight_range: needs more than 1 bit"),
        ({"mode": "weight_only", "bits": 1, "rounding": "adaround"}, "rounding: needs more than 1 bit"),
        ({"mode": "weight_only", "symmetry": "asymmetric", "rounding": "adaround"}, "rounding: needs symmetric"),
        ({"mode": "weight_only", "granularity": "block", "bias_correction": True}, "bias_correction: needs a scale"),
        ({"mode": "static", "bits": 4, "mixed": {"size": 0.5}}, "bits: needs no mixed"),
        ({"mode": "static", "mixed": {}}, "mixed: expected one of size and max_drop"),
        ({"mode": "static", "mixed": {"size": 0.5, "max_drop": 0.1}}, "mixed: expected one of size and max_drop"),
        ({"mode": "static", "mixed": {"size": 1.5}}, "mixed.size"),
        ({"mode": "static", "bits": 3}, "bits"),
        ({"mode": "static", "percentile": 20.0}, "percentile"),
        ({"mode": "static", "percentile": 99.0}, "percentile: needs calibration percentile"),
        ({"mode": "weight_only", "block_size": 16}, "block_size: needs granularity block"),
        ({"mode": "static", "alpha": 0.1}, "alpha: needs equalize smooth"),
        ({"mode": "static", "rounding_steps": 10}, "rounding_steps: needs rounding adaround"),
        ({"mode": "weight_only", "samples": 10}, "samples: needs mode static"),
        ({"mode": "static", "skip": True}, "skip: leaves every layer as it is"),
        ({"mode": "static", "samples": 0}, "samples"),
        ({"mode": "static", "alpha": 2.0, "equalize": "smooth"}, "alpha"),
    ],
)
def test_options_that_contradict_each_other_are_refused_by_name(options, message):
    with pytest.raises(UsageError, match=message):
        made_from(options)


@pytest.mark.parametrize(
    ("first", "second", "undone"),
    [
        ({"technique": "quantize", "mode": "fp16"}, {"technique": "quantize", "mode": "static"}, "the low-bit values"),
        (
            {"technique": "prune", "kind": "magnitude"},
            {"technique": "quantize", "mode": "weight_only", "bits": 1},
            "the zeros",
        ),
    ],
)
def test_an_order_in_which_quantizing_undoes_a_step_is_refused(first, second, undone):
    steps = ", ".join(
        "{"
        + ", ".join(f"{key} = {value if isinstance(value, int) else repr(value)}" for key, value in step.items())
        + "}"
        for step in (first, second)
    )
    text = "[model]\nsource = 'm:a'\n[data]\nsource = 'm:l'\n[[variant]]\nname = 'v'\n" + f"steps = [{steps}]\n"
    with pytest.raises(UsageError, match=rf"variant\[0\].steps\[1\]: quantize would undo {undone} that"):
        recipe.parse(text)
