"""Bits of each layer by its measured sensitivity."""

from __future__ import annotations

import compress_zoo
import msgspec
import numpy as np
import onnx
import pytest
from edgepress_host import evaluate, exporters, technique
from edgepress_host.press.strict import convert
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.quantize.grid import found_bits, integers
from onnx import numpy_helper
from quantize_lab import run, seeded
from torch import nn


def test_files_store_the_very_integers_of_the_learned_rounding_and_the_bits_that_were_chosen(paired, prepare, bench):
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


def test_bits_by_sensitivity_keep_within_the_size_and_say_what_is_out_of_reach(paired, prepare):
    for size in (0.75, 0.5):
        _, notes = prepare(mixed={"size": size})
        assert float(notes[0].partition(", ")[2].partition(" ")[0]) <= size
    with pytest.raises(
        StepFailed, match=r"mixed\.size: 0\.1 is out of reach; the least that these layers take is 0\.25"
    ):
        prepare(mixed={"size": 0.1})


def test_bits_by_sensitivity_keep_within_the_accuracy_and_use_it(bench):
    model, samples = compress_zoo.build(), bench.split("validate")
    exact = run(model, samples.x)

    def nearness(outputs, _labels):
        return 1 - float(np.square(outputs - exact).mean() / np.square(exact).mean())

    shares = []
    for drop in (1e-4, 3e-3, 0.1, 1.0):
        step = convert({"mode": "weight_only", "mixed": {"max_drop": drop}}, technique.found()["quantize"])
        notes = []
        around = msgspec.structs.replace(bench, note=notes.append, metric=nearness)
        made = step.prepared().apply_module(model, around)
        assert nearness(run(made, samples.x), samples.y) >= 1 - drop
        shares.append(float(notes[0].partition(", ")[2].partition(" ")[0]))
    assert shares[0] > shares[1] > shares[2] >= shares[3] == 0.25


class Twins(nn.Module):
    """Two layers alike, of which one has hardly a say in the answer."""

    def __init__(self, quiet):
        super().__init__()
        self.left, self.right = (nn.Linear(144, 8) for _ in range(2))
        self.quiet = quiet

    def forward(self, x):
        shares = {"left": 1.0, "right": 1.0, self.quiet: 1e-3}
        return sum(share * self.get_submodule(name)(x.flatten(1)) for name, share in shares.items())


@pytest.mark.parametrize("quiet", ["left", "right"])
def test_the_least_sensitive_layer_gets_the_fewest_bits(quiet, prepare):
    loud = "left" if quiet == "right" else "right"
    for size, bits in ((0.75, (4, 8)), (0.625, (2, 8)), (0.5, (2, 4)), (0.25, (2, 2))):
        made, notes = prepare(seeded(lambda: Twins(quiet)), mixed={"size": size})
        assert f"{quiet} {bits[0]}" in notes[0]
        assert f"{loud} {bits[1]}" in notes[0]
        for name, wanted in zip((quiet, loud), bits, strict=True):
            assert found_bits(made.get_submodule(name).weight.detach().numpy(), (0,)) == wanted


@pytest.mark.parametrize("given", [8, 4])
def test_bits_that_a_layer_was_given_are_not_chosen_anew(given, prepare):
    model = seeded(lambda: Twins("left"))
    _, notes = prepare(model, mixed={"size": 0.63}, layers={"left": {"bits": given}})
    # Were it not for that, the quiet one alone would go down.
    assert notes[0].endswith(f": left {given}, right {2 if given == 8 else 4}")
    _, notes = prepare(model, mixed={"size": 0.5}, layers={"left": {"skip": True}})
    assert notes == ["bits by sensitivity, 0.50 of the size at 8 bits: right 4"]
