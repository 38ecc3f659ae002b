from __future__ import annotations

import compress_zoo
import msgspec
import numpy as np
import pytest
from edgepress_host import exporters
from edgepress_host.press.judge import judge, sum_up
from edgepress_host.press.loaded import loaded_bytes
from edgepress_host.variants import Measured, StepResult

SPARSE = Measured(accuracy=0.9, params=1000, nonzero_params=100, macs=None, file_bytes=4000, wire_bytes=900)


def verdict(after, **changes):
    given = {
        "tag": "distill",
        "before": SPARSE,
        "after": after,
        "kept": SPARSE,
        "original": SPARSE,
        "same": False,
        "max_drop": 0.05,
    }
    return judge(**given | changes)


def test_zeros_that_a_later_step_filled_are_the_verdict():
    word, reason = verdict(msgspec.structs.replace(SPARSE, nonzero_params=900))
    assert word == "sparsity lost"
    assert "10.0% of the weights zero, and there were 90.0%" in reason
    step = StepResult(technique="distill", options={}, verdict=word, reason=reason, seconds=0.0)
    assert sum_up((step,), kept=1, planned=1)[0] == "sparsity lost"


def test_zeros_that_went_while_the_guard_waited_are_the_verdict_of_the_step_that_brought_accuracy_back():
    dense = msgspec.structs.replace(SPARSE, nonzero_params=1000)
    assert verdict(dense, before=dense)[0] == "sparsity lost"


def test_zeros_that_stay_are_no_matter_and_more_of_them_neither():
    assert verdict(msgspec.structs.replace(SPARSE, nonzero_params=100))[0] == "ok"
    assert verdict(msgspec.structs.replace(SPARSE, nonzero_params=50))[0] == "ok"


def test_the_accuracy_guard_goes_first():
    assert verdict(msgspec.structs.replace(SPARSE, nonzero_params=900, accuracy=0.5))[0] == "accuracy guard"


@pytest.mark.parametrize("format_", exporters.names())
def test_loaded_memory_is_measured_and_grows_with_the_model(format_):
    example = np.zeros((2, 1, 12, 12), np.float32)
    small, large = (
        loaded_bytes(format_, exporters.get(format_).export(compress_zoo.Net(width).eval(), example))
        for width in (8, 256)
    )
    # The larger one holds 870,000 more weights of four bytes.
    assert large - small > 3_000_000


def test_a_file_that_does_not_load_is_one_line(tmp_path):
    with pytest.raises(RuntimeError, match="does not load in a process of its own") as caught:
        loaded_bytes("onnx", b"no model")
    assert "\n" not in str(caught.value)
