"""Files of every shape that models have, each in a real child: states, several tensors, free dimensions, integers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from edgepress_agent.measure import check
from edgepress_agent.measure.pipe import CheckGolden, Evaluate, Evaluated, GoldenChecked, Open, Opened
from edgepress_agent.measure.worker import Ended, Worker
from edgepress_agent.runtimes import _external
from edgepress_protocol.manifest import Carried, EvaluationSet
from edgepress_protocol.transfer import describe
from hypothesis import given
from hypothesis import strategies as st
from measure_lab import MODELS, QUICK, Lab, Variant


def passes(lab: Lab, variant: Variant, **changes):
    manifest = msgspec.structs.replace(variant.manifest, **changes)
    done = check.golden(manifest, variant.model, variant.golden, timeout_s=240, work_dir=lab.folder / "work")
    return asyncio.run(done)


def evaluated(lab: Lab, variant: Variant, evaluation: Path) -> float:
    """Accuracy over a set, after the golden vectors have left their state behind."""
    wanted = EvaluationSet(describe(evaluation.read_bytes())[0], samples=6)

    async def ask() -> float:
        async with Worker(lab.folder / "work") as child:
            files = {"golden": str(variant.golden), "evaluation": str(evaluation)}
            await child.ask(Open(variant.manifest, str(variant.model), **files), Opened)
            assert (await child.ask(CheckGolden(), GoldenChecked)).wrong == ""
            return (await child.ask(Evaluate(wanted), Evaluated)).value

    return asyncio.run(ask())


@pytest.mark.parametrize("name", ["carried", "variables", "resource", "pair", "free"])
def test_outputs_are_those_that_numpy_computes(lab: Lab, name):
    assert passes(lab, Variant(name)) is None


@pytest.mark.parametrize("name", ["carried", "variables", "resource"])
def test_a_state_starts_anew_with_each_sequence_and_goes_from_step_to_step(lab: Lab, name):
    # Two of six labels are wrong on purpose.
    assert evaluated(lab, Variant(name), MODELS / f"{name}.top1.safetensors") == pytest.approx(4 / 6)


def test_several_inputs_are_evaluated(lab: Lab):
    assert evaluated(lab, Variant("pair"), MODELS / "pair.top1.safetensors") == pytest.approx(6 / 8)


@pytest.mark.parametrize("name", ["carried", "variables"])
def test_a_model_with_a_state_takes_one_sample_at_a_time(lab: Lab, name):
    variant = Variant(name)

    async def ask() -> str:
        async with Worker(lab.folder / "work") as child:
            with pytest.raises(Ended) as end:
                await child.ask(Open(variant.manifest, str(variant.model), batch=2), Opened)
            return end.value.outcome.detail

    assert asyncio.run(ask()) == "the model keeps a state from run to run, so that its batch is 1; 2 was asked for"


@pytest.mark.parametrize("name", ["free", "pair"])
def test_a_free_dimension_takes_what_comes(lab: Lab, name):
    variant = Variant(name)

    async def ask() -> tuple[int, str]:
        async with Worker(lab.folder / "work") as child:
            question = Open(variant.manifest, str(variant.model), batch=3, golden=str(variant.golden))
            opened = await child.ask(question, Opened)
            return opened.batch, (await child.ask(CheckGolden(), GoldenChecked)).wrong

    assert asyncio.run(ask()) == (3, "")


def test_integers_are_fed_and_read_by_their_scale_and_zero_point(lab: Lab, tmp_path):
    """Reals go in: accuracy is that of the golden vectors' own labels, less the two that are wrong on purpose."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    variant = Variant("int8")
    source, vectors = variant.manifest.inputs[0], load_file(variant.golden)
    assert source.dtype == "int8"
    x = (vectors["input.0"].astype(np.float32) - source.quantization.zero_point) * source.quantization.scale
    labels = vectors["output.0"].argmax(1).astype(np.int64)
    labels[:2] = (labels[:2] + 1) % 4
    save_file({"x": x.astype(np.float32), "y": labels}, tmp_path / "set")
    assert evaluated(lab, variant, tmp_path / "set") == pytest.approx(6 / 8)


@pytest.mark.parametrize(
    ("carried", "said"),
    [
        (Carried("h", "nowhere"), "the manifest carries 'nowhere' to 'h', and names no such tensors"),
        (Carried("x", "h_next"), "output 'h_next' does not fit input 'x', which takes its state"),
    ],
)
def test_a_state_that_fits_no_tensor_is_rejected(lab: Lab, carried, said):
    outcome = passes(lab, Variant("carried"), carried=(carried,))
    assert (outcome.kind, outcome.detail) == ("rejected", said)


def test_a_file_that_keeps_its_weights_elsewhere_is_rejected_before_the_runtime_sees_it(lab: Lab):
    (lab.folder / "outside.bin").write_bytes(bytes(64))
    variant = Variant("outside")
    done = check.golden(variant.manifest, variant.model, None, timeout_s=240, work_dir=lab.folder / "work")
    outcome = asyncio.run(done)
    assert outcome.kind == "rejected"
    assert outcome.detail == (
        "the file keeps tensors in another file, '../../outside.bin'; a variant is one file: save it as one"
    )


def test_only_references_count_as_such():
    assert _external.first_outside(MODELS / "outside.onnx") == "../../outside.bin"
    assert _external.first_outside(MODELS / "tiny.onnx") is None
    assert _external.references((MODELS / "carried.onnx").read_bytes() + b"location") == []


@given(st.binary(max_size=200))
def test_no_bytes_upset_the_search(data):
    assert isinstance(_external.references(data), list)


@given(st.integers(0, 151), st.integers(0, 255))
def test_no_altered_file_upsets_the_search(at, value):
    data = bytearray((MODELS / "outside.onnx").read_bytes())
    data[at] = value
    assert isinstance(_external.references(bytes(data)), list)


def test_a_provider_that_is_not_there_is_told_beside_what_was_measured(lab: Lab):
    variant = Variant("tiny")
    options = msgspec.structs.replace(QUICK, providers=("tensorrt", "cuda"))
    result = lab.profile(variant.manifest, variant.model, options).measurement
    assert result.providers == ("cpu",)
    assert f"asked for tensorrt, cuda, which {result.runtime.name} could not start here: it ran on cpu" in result.notes
    # A GPU's driver reserves more address space than there is memory.
    assert "address-space" not in result.guards
