"""Ranges behind pools: hulls hold whatever lines are tried, and are narrower than what taps' ranges tell."""

from dataclasses import replace

import numpy as np
import pytest
from certifynets import box_of, net, points
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.certify import hull
from edgepress.compressor.certify.backward import tightened
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.program import Program, read
from edgepress.compressor.protocols import Array

STACKS = ["no pool", "no rectifier", "pool between", "pool first", "padding on padding"]


def program_of(name: str, seed: int = 0) -> tuple[Program, str]:
    """A net, and the value behind its second convolution."""
    program = read(net(name, seed))
    return program, next(step.output for step in program.steps if hull.stack(program, step.output))


def values(program: Program, name: str, x: Array) -> Array:
    """Of one value for each input, [N, *row]; exact but for rounding."""
    return program.ranges(Interval(x, x))[name].centred()[0]


@pytest.mark.parametrize("name", STACKS)
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.floats(-1, 0.5), st.floats(0.01, 1.5))
def test_a_hull_holds_every_value_and_no_more_than_intervals(
    name: str, seed: int, low: float, width: float
) -> None:
    program, behind = program_of(name, seed)
    box = box_of(net(name, seed), low, low + width)
    found = tightened(program, box)[behind]
    seen = values(program, behind, points(box, seed).astype(np.float64).clip(box.lo, box.hi))
    assert (found.lo <= seen + 1e-12).all()
    assert (seen - 1e-12 <= found.hi).all()
    plain = program.ranges(box)[behind]
    assert (plain.lo <= found.lo).all()
    assert (found.hi <= plain.hi).all()


@pytest.mark.parametrize("name", STACKS)
def test_a_hull_is_narrower_than_intervals(name: str) -> None:
    program, behind = program_of(name)
    box = box_of(net(name), 0.0, 1.0)
    assert tightened(program, box)[behind].width.mean() < 0.93 * program.ranges(box)[behind].width.mean()


@pytest.mark.parametrize("name", STACKS)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_any_lines_and_shares_give_a_bound(name: str, seed: int) -> None:
    program, behind = program_of(name, seed)
    rng = np.random.default_rng(seed)
    lo = rng.normal(size=(1, *program.row))
    box = Interval(lo, lo + rng.uniform(0, 1, lo.shape) * rng.integers(0, 2, lo.shape))
    of = hull.stack(program, behind)
    assert of is not None
    seen = values(program, behind, box.lo + rng.random((300, *program.row)) * (box.hi - box.lo))
    corners = values(program, behind, np.where(rng.random((300, *program.row)) < 0.5, box.lo, box.hi))
    most = np.maximum(seen.max(0), corners.max(0)).reshape(len(of.back_bias), -1)
    for place, numbers in hull.places(of, box):
        k = of.back.weight.reshape(*of.back.weight.shape[:2], -1).transpose(0, 2, 1) * place.there[:, None]
        lines = (
            rng.normal(size=(*k.shape, place.weight.shape[-1])) * (place.pixels < len(place.lo) - 1)[:, None]
        )
        shares = rng.dirichlet(np.ones(place.weight.shape[2]), k.shape)
        assert (hull.proved(place, k, of.back_bias, lines, shares)[:, None] >= most[:, numbers] - 1e-12).all()


def test_a_bound_that_forgets_a_tap_is_found_out() -> None:
    program, behind = program_of("pool between")
    box = box_of(net("pool between"), 0.5, 0.5)
    of = hull.stack(program, behind)
    assert of is not None
    value = values(program, behind, box.lo).reshape(len(of.back_bias), -1)
    missed = []
    for place, numbers in hull.places(of, box):
        k = of.back.weight.reshape(*of.back.weight.shape[:2], -1).transpose(0, 2, 1) * place.there[:, None]
        fewer = replace(place, weight=place.weight[:, :, :1], bias=place.bias[:, :1])
        none = np.zeros(k.shape[-1])
        whole, part = (hull.most_of(each, k, of.back_bias, none)[:, None] for each in (place, fewer))
        assert (whole >= value[:, numbers] - 1e-9).all()
        missed.append((part < value[:, numbers] - 1e-9).any())
    assert any(missed)


def test_a_box_that_differs_everywhere_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    program, behind = program_of("pool between")
    of = hull.stack(program, behind)
    assert of is not None
    lo = np.random.default_rng(0).normal(size=(1, *program.row))
    monkeypatch.setattr(hull, "PLACES", 3)
    assert hull.places(of, Interval(lo, lo + 1)) == []
    assert hull.places(of, Interval(np.tile(lo, (2, 1, 1, 1)), np.tile(lo, (2, 1, 1, 1)))) == []
