"""Half precision holds numbers up to 65,504."""

from __future__ import annotations

import compress_zoo
import pytest
import torch
from edgepress_host import exporters
from edgepress_host.technique import StepFailed, found
from qat_lab import bench


@pytest.mark.parametrize("format_", exporters.names())
def test_weights_beyond_half_precision_are_refused_by_name(format_):
    model = compress_zoo.build()
    with torch.no_grad():
        model.hidden.weight[0, 0] = 1e6
    content = exporters.get(format_).export(model, bench().split("calibrate").x[:2])
    with pytest.raises(StepFailed, match=r"hidden: a weight of 1e\+06 is beyond half precision"):
        found()["quantize"](mode="fp16").apply_graph(format_, content, bench())
