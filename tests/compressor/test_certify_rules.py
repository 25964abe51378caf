"""Operators one by one: curves, linear operators; and bounds that a wrong one breaks."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from certifynets import (
    assert_change_holds,
    assert_range_holds,
    box_of,
    one_layer,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.certify import curves
from edgepress.compressor.certify.intervals import UNIT32, Interval, add
from edgepress.compressor.certify.linear import (
    ConvMap,
    MatrixMap,
    MeanMap,
    ScaleMap,
    SpreadMap,
    TransposedMap,
)
from edgepress.compressor.certify.rules import Pair

FAULTS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "a grid with a quarter step": (curves.Grid, "_half", lambda self, x, unit: np.asarray(0.25 * self.step)),
    "a slope that may not be 0": (curves.Bent, "slopes", lambda self, x: (0.6 + 0 * x.lo, 1.0 + 0 * x.lo)),
    "a chord too low": (
        curves.Bent,
        "lines",
        lambda self, x: curves.Lines(0 * x.lo, 0 * x.lo, 0 * x.lo, 0.2 * x.hi),
    ),
    "no upper end": (
        curves.Bent,
        "forward",
        lambda self, xs, unit: Interval(self.value(xs[0].lo), 0.7 * xs[0].hi),
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_an_unsound_rule_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = one_layer()
    changed = one_layer(quantized=True) if "grid" in fault else one_layer(shift=0.1)
    box = box_of(model)

    def both() -> None:
        assert_range_holds(model, box)
        assert_change_holds(model, changed, box)

    both()
    monkeypatch.setattr(FAULTS[fault][0], FAULTS[fault][1], FAULTS[fault][2])
    with pytest.raises(AssertionError):
        both()


CURVES: dict[str, curves.Curve] = {
    "relu": curves.Bent(),
    "leaky": curves.Bent(below=0.3),
    "clip": curves.Bent(-0.5, 0.8),
    "sigmoid": curves.Smooth("Sigmoid"),
    "tanh": curves.Smooth("Tanh"),
}


@pytest.mark.parametrize("name", sorted(CURVES))
@settings(max_examples=60, deadline=None)
@given(
    ends=st.tuples(st.floats(-3, 3), st.floats(-3, 3)), moved=st.tuples(st.floats(-1, 1), st.floats(-1, 1))
)
def test_lines_and_slopes_hold_at_every_point(
    name: str, ends: tuple[float, float], moved: tuple[float, float]
) -> None:
    curve = CURVES[name]
    x = Interval(np.array([min(ends)]), np.array([max(ends)]))
    d = Interval(np.array([min(moved)]), np.array([max(moved)]))
    at = np.linspace(x.lo, x.hi, 41)
    lines = curve.lines(x)
    assert (lines.low_slope * at + lines.low <= curve.value(at) + 1e-15).all()
    assert (curve.value(at) <= lines.high_slope * at + lines.high + 1e-15).all()
    by = np.linspace(d.lo, d.hi, 21)[:, None]
    change = curve.value(at + by) - curve.value(at)
    pair = Pair(x, add(x, d), d)
    found = curve.difference(curve, [pair], 0.0)
    assert (found.lo <= change + 1e-15).all()
    assert (change <= found.hi + 1e-15).all()
    for sign in (1.0, -1.0):
        (form,), _, number = curve.backward_difference(curve, np.full((1, 1, 1), sign), [pair], 0.0)
        assert (form[0, 0, 0] * by + number[0, 0] <= sign * change + 1e-14).all()


def test_both_nets_round_the_product_of_a_slope() -> None:
    rng = np.random.default_rng(0)
    x = -rng.uniform(0.5, 2, 200).astype(np.float32)
    z, slope = np.nextafter(x, np.float32(0)), np.float32(0.3)
    curve, wide = curves.Bent(below=float(slope)), [part.astype(float) for part in (x, z)]
    moved = (slope * z).astype(float) - (slope * x).astype(float)
    pair = Pair(*(Interval(part[None], part[None]) for part in (*wide, wide[1] - wide[0])))
    found = curve.difference(curve, [pair], UNIT32)
    assert (found.lo <= moved).all()
    assert (moved <= found.hi).all()
    assert (found.width <= 1e-6).all()
    for sign in (1.0, -1.0):
        forms = sign * np.eye(200)[None]
        (form,), _, number = curve.backward_difference(curve, forms, [pair], UNIT32)
        assert (form[0] @ (wide[1] - wide[0]) + number[0] <= sign * moved).all()


def maps() -> Iterator[tuple[Any, tuple[int, ...]]]:
    rng = np.random.default_rng(3)
    yield MatrixMap(rng.normal(size=(4, 3))), (2, 4)
    yield MatrixMap(rng.normal(size=(3, 4)), transposed=True), (4,)
    yield ConvMap(rng.normal(size=(4, 3, 2, 3)), (5, 6), (2, 1), ((1, 0), (0, 2)), (1, 2)), (3, 5, 6)
    yield ConvMap(rng.normal(size=(4, 2, 3)), (7,), (2,), ((1, 1),), (1,), 2), (4, 7)
    yield ScaleMap(rng.normal(size=(2, 3))), (2, 3)
    yield TransposedMap(rng.normal(size=(4, 3, 2, 3)), (5, 6), (2, 1), ((1, 0), (0, 2)), (1, 2)), (4, 3, 4)
    yield TransposedMap(rng.normal(size=(4, 3, 2)), (7,), (3,), ((0, 1),), (1,), 2), (4, 3)
    yield SpreadMap((3, 1, 1), (3, 4, 5), np.ones(1)), (3, 1, 1)
    yield MeanMap((3, 4, 5), (1, 2), np.full(1, 1 / 20)), (3, 4, 5)


@pytest.mark.parametrize("number", range(9))
def test_adjoints_and_gradients_belong_to_their_operator(number: int) -> None:
    op, row = list(maps())[number]
    rng = np.random.default_rng(number)
    x = rng.normal(size=(3, *row))
    y = op.apply(x)
    a = rng.normal(size=y.shape)
    assert np.isclose((a * y).sum(), (op.adjoint(a) * x).sum(), rtol=1e-12)
    if not isinstance(op, MeanMap | SpreadMap):
        moved = rng.normal(size=op.weight.shape)
        found = (op.gradient(x[0], a[:1]) * moved).sum()
        assert np.isclose((a[0] * op.with_weight(moved).apply(x[:1])[0]).sum(), found, rtol=1e-12)
