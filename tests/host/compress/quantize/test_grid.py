"""Weights as integers: what holds for any of them."""

from __future__ import annotations

import numpy as np
from edgepress_host.techniques.quantize.grid import found_bits, integers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays


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
