from __future__ import annotations

import compress_zoo
import pytest
from compress_recipes import HEAD
from edgepress_host import technique
from edgepress_host.press.strict import convert
from edgepress_host.recipe import parse
from edgepress_protocol.errors import UsageError

FOUND = technique.found()
VARIANT = '[[variant]]\nname = "v"\nformats = ["onnx"]\nsteps = [{}]\n'
PATTERN = '{ technique = "prune", kind = "magnitude", pattern = "2:4" }'


@pytest.mark.parametrize("kind", ["channel", "heads", "hidden"])
def test_what_takes_inputs_away_after_a_pattern_is_refused(kind):
    later = f'{{ technique = "prune", kind = "{kind}", ratio = 0.5 }}'
    with pytest.raises(UsageError, match=r"steps\[1\]: prune would undo the N:M pattern of zeros that prune \(steps\["):
        parse(HEAD + VARIANT.format(f"{PATTERN}, {later}"))
    assert parse(HEAD + VARIANT.format(f"{later}, {PATTERN}")).variants[0].name == "v"


def test_a_pattern_lives_on_where_no_inputs_go():
    for later in (
        '{ technique = "prune", kind = "block", count = 1 }',
        '{ technique = "prune", kind = "magnitude", ratio = 0.9 }',
        '{ technique = "distill" }',
        '{ technique = "quantize", mode = "static" }',
    ):
        assert parse(HEAD + VARIANT.format(f"{PATTERN}, {later}"))
    # Zeros in no pattern are counted by the verdict.
    free = '{ technique = "prune", kind = "magnitude", ratio = 0.5 }'
    assert parse(HEAD + VARIANT.format(f'{free}, {{ technique = "prune", ratio = 0.5 }}'))


def test_evbmf_by_name_with_cp_by_type_is_refused(bench):
    step = convert(
        {
            "energy": 0.9,
            "types": {"Conv2d": {"method": "cp"}},
            "layers": {"stem": {"evbmf": True}},
        },
        FOUND["low_rank"],
    )
    step.check()
    with pytest.raises(UsageError, match=r"layers.'stem'.evbmf: it finds ranks of matrices, .*; not for cp"):
        step.apply_module(compress_zoo.build(), bench)
