"""Rounding to few bits against the slow, exact way, and against rounding to nearest."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics import rounding
from edgepress.compressor.numerics.blocks import fit_blocks
from edgepress.compressor.numerics.grids import Grid, integer_grid
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.rounding import (
    DAMPINGS,
    ENOUGH,
    best_damping,
    levels_at,
    nearest_codes,
    round_to_outputs,
    row_errors,
)
from edgepress.compressor.numerics.steps import best_steps
from edgepress.compressor.protocols import Matrix


def rounded(weights: Matrix, fit: Moments, held: Moments, *args: Any, **fields: Any) -> tuple[Matrix, Matrix]:
    """Integers, and a scale for each row."""
    q, steps = round_to_outputs(weights, [(fit, held)], *args, **fields)
    return q, steps.scales[:, 0]


def moments(x: Matrix) -> Moments:
    found = Moments(x.shape[1], 0)
    found.update(x, np.zeros((len(x), 0)))
    return found


def error(weights: Matrix, q: Matrix, scales: Matrix, gram: Matrix) -> Matrix:
    return row_errors(weights - q.astype(np.float64) * scales.astype(np.float64)[:, None], gram)


def inputs(rng: np.random.Generator, rows: int, width: int) -> Matrix:
    """Correlated, so that there is something to be made good."""
    return rng.standard_normal((rows, width)) @ rng.standard_normal((width, width)) + rng.standard_normal(
        width
    )


def slowly(weights: Matrix, gram: Matrix, scales: Matrix, grid: Grid) -> Matrix:
    """Column by column with the inverse itself: after each, that of the columns left (Hassibi & Stork 1993)."""
    left, order = weights.astype(np.float64).copy(), np.argsort(-np.diag(gram), kind="stable")
    alive = list(order)
    result = np.zeros_like(left)
    while alive:
        inverse = np.linalg.inv(gram[np.ix_(alive, alive)])
        column = alive[0]
        result[:, column] = np.clip(np.rint(left[:, column] / scales), grid.qmin, grid.qmax)
        error = (left[:, column] - result[:, column] * scales) / inverse[0, 0]
        left[:, alive] -= np.outer(error, inverse[0])
        alive.pop(0)
    return result


@given(
    st.integers(2, 6),
    st.integers(1, 5),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_it_is_what_the_exact_updates_give(bits: int, rows: int, widths: list[int], seed: int) -> None:
    """Of all inputs at once; and where they are seen in parts, of each part by itself."""
    rng = np.random.default_rng(seed)
    grid = integer_grid(bits, signed=True, symmetric=True)
    seen = [
        (moments(inputs(rng, 2 * ENOUGH * width + 8, width)), moments(np.zeros((0, width))))
        for width in widths
    ]
    whole = rng.standard_normal((rows, sum(widths)))
    codes, steps = round_to_outputs(whole, seen, grid, ratios=(1.0,))
    scales, start = steps.scales[:, 0], 0
    for width, (fit, _) in zip(widths, seen, strict=True):
        weights, q = (each[:, start : start + width] for each in (whole, codes))
        gram = fit.centred()[0]
        ridge = DAMPINGS[0] * np.trace(gram) / width + width * fit.rounding()
        exact = slowly(weights, gram + np.eye(width) * ridge, scales, grid)
        nearest = np.clip(np.rint(weights / scales[:, None]), grid.qmin, grid.qmax)
        ours, theirs, plain = (error(weights, each, scales, gram) for each in (q, exact, nearest))
        np.testing.assert_allclose(ours, np.minimum(theirs, plain), rtol=0.02, atol=1e-9)
        start += width


@given(st.integers(2, 6), st.integers(2, 40), st.integers(4, 400), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_no_row_is_worse_than_to_nearest(bits: int, width: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = integer_grid(bits, signed=True, symmetric=True)
    fit, held = moments(inputs(rng, rows, width)), moments(inputs(rng, max(rows // 4, 2), width))
    weights = rng.standard_normal((6, width))
    q, scales = rounded(weights, fit, held, grid)
    assert q.min() >= grid.qmin
    assert q.max() <= grid.qmax
    gram = (fit + held).centred()[0]
    nearest = np.clip(np.rint(weights / scales[:, None]), grid.qmin, grid.qmax)
    ours, plain = (error(weights, each, scales, gram) for each in (q, nearest))
    assert (ours <= plain * (1 + 1e-9)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_few_rows_are_not_believed(bits: int) -> None:
    """With fewer rows than inputs all errors could be hidden; other rows would bring them back."""
    rng = np.random.default_rng(0)
    grid = integer_grid(bits, signed=True, symmetric=True)
    mix = rng.standard_normal((256, 256)) / 16
    seen, held, others = (rng.standard_normal((n, 256)) @ mix for n in (60, 15, 4000))
    weights = rng.standard_normal((32, 256))
    q, scales = rounded(weights, moments(seen), moments(held), grid)
    nearest = np.clip(np.rint(weights / scales[:, None]), grid.qmin, grid.qmax)
    gram = others.T @ others / len(others)
    ours, plain = (error(weights, each, scales, gram).sum() for each in (q, nearest))
    assert ours < 1.02 * plain


def test_correlated_inputs_make_much_good() -> None:
    rng = np.random.default_rng(1)
    grid = integer_grid(3, signed=True, symmetric=True)
    mix = rng.standard_normal((8, 64))
    x = rng.standard_normal((2000, 8)) @ mix + 0.05 * rng.standard_normal((2000, 64))
    weights = rng.standard_normal((16, 64))
    q, scales = rounded(weights, moments(x[:1600]), moments(x[1600:]), grid)
    nearest = np.clip(np.rint(weights / scales[:, None]), grid.qmin, grid.qmax)
    gram = moments(x).centred()[0]
    ours, plain = (error(weights, each, scales, gram).sum() for each in (q, nearest))
    assert ours < 0.15 * plain


def test_zeros_and_constant_inputs_are_no_trouble() -> None:
    grid = integer_grid(4, signed=True, symmetric=True)
    flat = moments(np.ones((50, 5)))
    q, scales = rounded(np.zeros((3, 5)), flat, flat, grid)
    assert not q.any()
    assert (scales > 0).all()
    q, scales = rounded(np.eye(5), flat, flat, grid)
    np.testing.assert_allclose(q * scales[:, None], np.eye(5), atol=1e-6)


@pytest.mark.parametrize("block", [4, 6, 24])
def test_levels_of_some_columns_are_those_of_all(block: int) -> None:
    rng, grid = np.random.default_rng(0), integer_grid(4, signed=True, symmetric=False)
    weights = rng.standard_normal((5, 24))
    for levels in (best_steps(weights, grid, block), fit_blocks(weights, 4, block, symmetric=False)):
        whole = nearest_codes(weights, levels)
        for some in (slice(0, 12), slice(12, 24), slice(8, 24), slice(5, 7)):
            there = levels.span(some)
            codes = nearest_codes(weights[:, some], there)
            np.testing.assert_array_equal(codes, whole[:, some])
            np.testing.assert_array_equal(levels_at(codes, there), levels_at(whole, levels)[:, some])
            column = there.codes(weights[:, some.start], 0)
            np.testing.assert_array_equal(column, whole[:, some.start])


def test_damping_is_told_by_some_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as by all, where rows are alike; and then not all are looked at."""
    rng, grid = np.random.default_rng(0), integer_grid(3, signed=True, symmetric=True)
    fit, held = moments(inputs(rng, 30, 12)), moments(inputs(rng, 10, 12))
    weights = np.tile(rng.standard_normal((8, 12)), (12, 1))
    steps, looked = best_steps(weights, grid, 12), []
    whole = best_damping(weights, fit, held, steps)
    monkeypatch.setattr(rounding, "ROWS", 8)
    kept = rounding.nearest_codes
    monkeypatch.setattr(
        rounding, "nearest_codes", lambda w, levels: (looked.append(len(w)), kept(w, levels))[1]
    )
    assert best_damping(weights, fit, held, steps) == whole
    assert sum(looked) == 8 * rounding.MOST_PARTS < len(weights)
