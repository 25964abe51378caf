"""The fast bounds against exact plain intervals, worked out by other code in whole numbers."""

from fractions import Fraction

import models
import numpy as np
import onnx_ir as ir
import pytest
from certifynets import BODIES, box_of, net, nudged, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.certify import recheck
from edgepress.compressor.certify.certificate import bound
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.program import read
from edgepress.compressor.certify.rational import exactly, reciprocal
from edgepress.compressor.normalize import normalize

ROUNDED = 1e-11
"""How much wider than exact a bound may be, as a share of the largest: rounding, and no more."""
REFUSED = {"sigmoid", "tanh", "norm", "joined", "softmax inside", "prelu of any slope"}


def assert_just_outside(model: ir.Model, changed: ir.Model, box: Interval) -> None:
    """Fast plain intervals hold the exact ones, and are hardly wider."""
    (exact,) = recheck.changes(model, changed, box)
    lo, hi = exact.fractions()
    (fast,) = bound(read(model), read(changed), box, float32=False, tight=False).changes
    low, high = ([Fraction(float(x)) for x in end.reshape(-1)] for end in (fast.lo, fast.hi))
    assert all(a <= b for a, b in zip(low, lo, strict=True))
    assert all(a >= b for a, b in zip(high, hi, strict=True))
    slack = ROUNDED * float(max(1, *map(abs, lo), *map(abs, hi)))
    assert all(abs(float(a - b)) <= slack for a, b in zip([*low, *high], [*lo, *hi], strict=True))


@pytest.mark.parametrize("name", sorted(BODIES.keys() - REFUSED))
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.2, 0.3), (0.1, 0.1)])
def test_fast_bounds_are_exact_ones_but_for_rounding(name: str, ends: tuple[float, float]) -> None:
    model = net(name)
    assert_just_outside(model, nudged(model), box_of(model, *ends))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_so_they_are_for_any_tiny_net(data: st.DataObject) -> None:
    model = tiny(data, ("Relu", "LeakyRelu"))
    low = data.draw(st.floats(-2, 1))
    box = box_of(model, low, low + data.draw(st.floats(0, 2)))
    assert_just_outside(model, nudged(model, data.draw(st.integers(0, 99))), box)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_has_no_exact_rule_is_too_hard(name: str) -> None:
    model = net(name)
    with pytest.raises(recheck.TooHardError):
        recheck.changes(model, nudged(model), box_of(model))


@pytest.mark.parametrize(
    ("other", "said"), [("relu, max pool", "differently"), ("max pool, size rounded up", "another in the")]
)
def test_nets_that_are_built_differently_are_too_hard(other: str, said: str) -> None:
    model = net("max pool over the edge")
    with pytest.raises(recheck.TooHardError, match=said):
        recheck.changes(model, net(other), box_of(model))


def test_a_change_that_is_worked_out_by_hand() -> None:
    """y = relu(2 x − 1) and w = relu(3 x − 1) for x in [0, 1]: what differs is λ x, 0 ≤ λ ≤ 1."""
    header, body = "(float[N, 1] x) => (float[N, 1] y)", "h = Gemm(x, w, b) y = Relu(h)"
    weights = [{"w": models.array(slope).reshape(1, 1), "b": models.array(-1)} for slope in (2, 3)]
    model, other = (normalize(models.text(header, body, each)).model for each in weights)
    (found,) = recheck.changes(model, other, box_of(model, 0.0, 1.0))
    assert found.fractions() == ([Fraction(0)], [Fraction(1)])


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-4, 4), min_size=1, max_size=5))
def test_floats_become_the_very_numbers_that_they_are(values: list[float]) -> None:
    found = exactly(np.array(values))
    assert [Fraction(top, found.den) for top in found.tops] == [Fraction(value) for value in values]
    if all(values):
        turned = reciprocal(found)
        assert [Fraction(top, turned.den) for top in turned.tops] == [1 / Fraction(value) for value in values]
