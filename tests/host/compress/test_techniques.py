from __future__ import annotations

import compress_zoo
import msgspec
import numpy as np
import pytest
import torch
from edgepress_host import evaluate, exporters, technique
from edgepress_host.press import structure
from edgepress_host.press.data import Samples
from edgepress_host.press.loading import load_module
from edgepress_host.press.strict import convert, fields_of
from edgepress_host.technique import StepFailed
from edgepress_protocol.errors import UsageError
from torch import nn

FOUND = technique.found()
EXAMPLES = [(tag, options) for tag, kind in FOUND.items() for options in kind.examples]
IDS = [f"{tag}-{number}" for number, (tag, _) in enumerate(EXAMPLES)]
MODULE = [(tag, options) for tag, options in EXAMPLES if FOUND[tag].stage == "module"]
GRAPH = [
    (tag, options, format_) for tag, options in EXAMPLES if FOUND[tag].stage == "graph" for format_ in exporters.names()
]


def made_from(tag, options):
    return convert(options, FOUND[tag])


def test_every_file_of_the_folder_is_a_technique_with_examples():
    assert {"distill", "low_rank", "prune", "quantize"} <= set(FOUND)
    assert all(kind.examples for kind in FOUND.values())


@pytest.mark.parametrize(("tag", "options"), EXAMPLES, ids=IDS)
def test_options_come_back_as_they_went_and_are_frozen(tag, options):
    step = made_from(tag, options)
    assert step.tag == tag
    assert convert(fields_of(step), FOUND[tag]) == step
    with pytest.raises(AttributeError):
        step.reads = ()


@pytest.mark.parametrize(("tag", "options"), MODULE)
def test_a_module_step_works_on_a_copy_and_its_result_can_be_written_down(tag, options, bench):
    original, step = compress_zoo.build(), made_from(tag, options)
    before = structure.digest(original)
    result = step.apply_module(original, bench)
    assert structure.digest(original) == before
    assert structure.digest(result) != before
    base = original if step.base() is None else load_module(step.base())
    again = structure.rebuild(base, structure.describe(result), structure.tensors(result))
    x = torch.from_numpy(bench.calibration(4).copy())
    assert torch.equal(again(x), result(x))
    assert structure.digest(again) == structure.digest(result)


@pytest.mark.parametrize(("tag", "options"), MODULE)
def test_a_module_step_gives_the_same_weights_twice(tag, options, bench):
    results = [made_from(tag, options).apply_module(compress_zoo.build(), bench) for _ in range(2)]
    assert structure.digest(results[0]) == structure.digest(results[1])


@pytest.mark.parametrize(("tag", "options", "format_"), GRAPH)
def test_a_graph_step_gives_the_same_smaller_working_file_twice(tag, options, format_, bench, originals):
    step = made_from(tag, options)
    files = [step.apply_graph(format_, originals[format_], bench) for _ in range(2)]
    assert files[0] == files[1]
    assert len(files[0]) < len(originals[format_])
    score = evaluate.accuracy(format_, files[0], bench.split("validate"), evaluate.top1)
    assert score > evaluate.accuracy(format_, originals[format_], bench.split("validate"), evaluate.top1) - 0.1


def test_channel_pruning_takes_the_ratio_in_multiples_and_leaves_the_output():
    pruned = made_from("prune", {"ratio": 0.5, "round_to": 4}).apply_module(compress_zoo.build(), fresh_bench())
    assert (pruned.stem.out_channels, pruned.block.conv.out_channels, pruned.hidden.out_features) == (8, 8, 12)
    assert pruned.head.out_features == compress_zoo.CLASSES


def test_the_layers_that_make_the_output_are_found_behind_additions_and_activations():
    from edgepress_host.techniques.prune import output_layers

    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return torch.softmax(self.left(x) + self.right(x), dim=1)

    model = Forked()
    assert set(output_layers(model, torch.zeros(2, 4))) == {model.left, model.right}


def test_options_go_by_layer_name_before_layer_type_before_global():
    step = made_from(
        "prune",
        {"ratio": 0.5, "types": {"Conv2d": {"skip": True}}, "layers": {"block.c*": {"ratio": 0.25, "skip": False}}},
    )
    pruned = step.apply_module(compress_zoo.build(), fresh_bench())
    assert pruned.stem.out_channels == 16
    assert pruned.block.conv.out_channels == 12
    assert pruned.hidden.out_features == 12


@pytest.mark.parametrize(
    ("tag", "options"),
    [
        ("prune", {"layers": {"blocks.conv": {"ratio": 0.1}}}),
        ("low_rank", {"rank": 2, "layers": {"heads": {"rank": 1}}}),
        ("quantize", {"mode": "dynamic", "layers": {"heads": {"skip": True}}}),
    ],
)
def test_a_pattern_that_matches_no_layer_is_refused_with_the_nearest_name(tag, options, originals):
    step = made_from(tag, options)
    with pytest.raises(UsageError, match=r"matches no layer; did you mean '(block\.conv|head)'"):
        if step.stage == "module":
            step.apply_module(compress_zoo.build(), fresh_bench())
        else:
            step.apply_graph("onnx", originals["onnx"], fresh_bench())


def test_weights_that_magnitude_pruning_zeroed_stay_zero_while_later_steps_train(bench):
    sparse = made_from("prune", {"kind": "magnitude", "ratio": 0.8}).apply_module(compress_zoo.build(), bench)
    zeros = sparse.hidden.weight == 0
    assert 0.79 < zeros.float().mean() < 0.81
    trained = made_from("distill", {"samples": 128}).apply_module(sparse, bench)
    assert not torch.equal(trained.hidden.weight, sparse.hidden.weight)
    assert torch.equal(trained.hidden.weight == 0, zeros)


def test_temperature_leaves_the_size_of_the_gradient_as_it_is():
    from edgepress_host.press.soft import softened

    teacher = torch.tensor([[1.0, 0.0, -1.0]]) * 0.1
    sizes = []
    for temperature in (10.0, 40.0):
        student = torch.zeros(1, 3, requires_grad=True)
        softened(student, teacher, temperature).backward()
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_a_student_learns_from_the_teacher_alone(bench):
    step = made_from("distill", {"student": "compress_zoo:student", "alpha": 1.0, "epochs": 6, "lr": 5e-3})
    learned = step.apply_module(compress_zoo.build(), bench)
    assert learned.stem.out_channels == 8
    samples = bench.split("validate")
    with torch.no_grad():
        right = learned(torch.from_numpy(samples.x)).argmax(1).numpy() == samples.y
    assert right.mean() > 0.7


def test_what_are_no_class_scores_cannot_be_softened(bench):
    values = msgspec.structs.replace(
        bench, split=lambda name: Samples(bench.split(name).x, bench.split(name).y.astype(np.float32))
    )
    with pytest.raises(StepFailed, match="these labels are no classes"):
        made_from("distill", {"samples": 64}).apply_module(compress_zoo.build(), values)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_three_methods_of_calibration_give_three_different_files(format_, bench, originals):
    files = {
        made_from("quantize", {"mode": "static", "calibration": method}).apply_graph(format_, originals[format_], bench)
        for method in ("minmax", "entropy", "percentile")
    }
    assert len(files) == 3


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_a_layer_can_be_left_out_of_quantization(format_, bench, originals):
    all_ = made_from("quantize", {"mode": "static"}).apply_graph(format_, originals[format_], bench)
    left = made_from("quantize", {"mode": "static", "layers": {"hidden": {"skip": True}}}).apply_graph(
        format_, originals[format_], bench
    )
    shape = set(compress_zoo.build().hidden.weight.shape)

    def types(content):
        return {w.dtype for w in exporters.get(format_).weights(content) if set(w.shape) == shape}

    assert (types(all_), types(left)) in [({"int8"}, {"float"}), ({"int8"}, {"float32"})]


def test_integer_input_and_output_go_through_scale_and_zero_point(bench, originals):
    content = made_from("quantize", {"mode": "static", "io": "int8"}).apply_graph("tflite", originals["tflite"], bench)
    inputs, outputs = exporters.get("tflite").tensors(content)
    assert (inputs[0].dtype, outputs[0].dtype) == ("int8", "int8")
    assert inputs[0].quantization is not None
    samples = bench.split("validate")
    assert evaluate.accuracy("tflite", content, samples, evaluate.top1) > 0.8
    got = np.concatenate([outputs[0] for outputs in evaluate.predict("tflite", content, samples.x)])
    want = np.concatenate([outputs[0] for outputs in evaluate.predict("tflite", originals["tflite"], samples.x)])
    assert np.abs(got - want).mean() < 0.03 * np.abs(want).max()


def test_a_loss_that_is_not_finite_stops_with_one_line(bench):
    from edgepress_host.press.training import Diverged

    huge = msgspec.structs.replace(bench, split=lambda name: Samples(bench.split(name).x * 3e38, bench.split(name).y))
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) in epoch 1; lower lr"):
        made_from("prune", {"ratio": 0.5, "epochs": 1}).apply_module(compress_zoo.build(), huge)


def test_weights_that_the_last_step_of_an_epoch_broke_are_not_kept(bench):
    from edgepress_host.press.training import Diverged, Schedule, fit

    def loss_that_breaks_in(epoch):
        def loss(outputs, step):
            # The root of nought has no slope: the loss is finite, and its gradient is not.
            value = outputs.square().mean()
            return value + (outputs.sum() * 0).sqrt() if step.number + 1 == epoch * step.total // 2 else value

        return loss

    notes = []
    around = msgspec.structs.replace(bench, note=notes.append)
    schedule = Schedule(epochs=2, lr=1e-3, batch=32, samples=64)
    kept = fit(compress_zoo.build(), bench.split("train"), schedule, loss_that_breaks_in(2), around)
    assert all(bool(value.isfinite().all()) for value in kept.state_dict().values())
    assert notes[0].startswith("weights became infinite in epoch 2; lower lr")
    with pytest.raises(Diverged, match="weights became infinite in epoch 1"):
        fit(compress_zoo.build(), bench.split("train"), schedule, loss_that_breaks_in(1), around)


def test_nothing_to_train_is_one_line(bench):
    from edgepress_host.press.training import Untrainable

    step = made_from("distill", {})
    alone = msgspec.structs.replace(bench, split=lambda name: bench.split(name).first(1))
    with pytest.raises(Untrainable, match="training takes 2 samples or more, and the train split has 1"):
        step.apply_module(compress_zoo.build(), alone)
    fixed = nn.Sequential(nn.Flatten(), nn.AvgPool1d(36))
    with pytest.raises(Untrainable, match="the model has no weights that could learn"):
        step.apply_module(fixed, msgspec.structs.replace(bench, original=lambda: fixed))


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (np.full(64, 7, np.int8), r"the labels are classes from 7 to 7, .* output of shape \(4,\) has no scores"),
        (np.zeros(64, np.float32), r"the labels are float32 of shape \(\): no classes"),
    ],
)
def test_labels_that_say_nothing_about_the_output_are_one_line(labels, line, bench):
    from edgepress_host.press.training import Untrainable

    odd = msgspec.structs.replace(bench, split=lambda name: Samples(bench.split(name).x[:64], labels))
    with pytest.raises(Untrainable, match=line):
        made_from("prune", {"ratio": 0.5, "epochs": 1}).apply_module(compress_zoo.build(), odd)


def test_classes_may_be_integers_of_any_size(bench):
    learnt = [
        made_from("prune", {"ratio": 0.5, "epochs": 1, "samples": 64}).apply_module(
            compress_zoo.build(),
            msgspec.structs.replace(
                bench, split=lambda name, kind=kind: Samples(bench.split(name).x, bench.split(name).y.astype(kind))
            ),
        )
        for kind in (np.int64, np.int16)
    ]
    assert structure.digest(learnt[0]) == structure.digest(learnt[1])


@pytest.fixture
def plugged(monkeypatch):
    """Techniques as found with one more entry point."""

    def call(module):
        from importlib.metadata import EntryPoint

        entry = EntryPoint(name="soften", value=module, group=technique.GROUP)
        monkeypatch.setattr(technique, "entry_points", lambda *, group: [entry] if group == technique.GROUP else [])
        technique.found.cache_clear()
        return technique.found()

    yield call
    monkeypatch.undo()
    technique.found.cache_clear()


def test_a_technique_of_the_users_own_is_found_by_its_entry_point(plugged, press, tmp_path):
    from compress_recipes import HEAD, one

    assert set(plugged("compress_plugin")) == {*FOUND, "compress_plugin"}
    made = press(HEAD + one('{ technique = "compress_plugin", factor = 0.25 }'), tmp_path / "out")["v.onnx"]
    assert made.verdict == "ok"
    assert made.steps[0].notes == ("softened",)


def test_an_entry_point_that_does_not_import_is_named(plugged):
    with pytest.raises(UsageError, match=r"technique 'soften' \(compress_absent\) does not import: ModuleNotFound"):
        plugged("compress_absent")


def fresh_bench():
    from edgepress_host.press.data import Data

    data = Data(compress_zoo.load, key="compress_zoo:load")
    return technique.Workbench(
        original=compress_zoo.build,
        split=data.split,
        seed=0,
        say=lambda _: None,
        metric=evaluate.top1,
        augment=None,
        note=lambda _: None,
    )
