"""Rounding to few bits against the slow, exact way, and against rounding to nearest."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics.grids import Grid, integer_grid
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.rounding import DAMPINGS, ENOUGH, round_to_outputs, row_errors
from edgepress.compressor.protocols import Matrix


def rounded(*args: Any, **fields: Any) -> tuple[Matrix, Matrix]:
    """Integers, and a scale for each row."""
    q, steps = round_to_outputs(*args, **fields)
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


@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 70), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_it_is_what_the_exact_updates_give(bits: int, rows: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = integer_grid(bits, signed=True, symmetric=True)
    fit = moments(inputs(rng, 2 * ENOUGH * width + 8, width))
    held = moments(np.zeros((0, width)))
    weights = rng.standard_normal((rows, width))
    q, scales = rounded(weights, fit, held, grid, ratios=(1.0,))
    gram = fit.centred()[0]
    ridge = DAMPINGS[0] * np.trace(gram) / width + width * fit.rounding()
    exact = slowly(weights, gram + np.eye(width) * ridge, scales, grid)
    nearest = np.clip(np.rint(weights / scales[:, None]), grid.qmin, grid.qmax)
    ours, theirs, plain = (error(weights, each, scales, gram) for each in (q, exact, nearest))
    np.testing.assert_allclose(ours, np.minimum(theirs, plain), rtol=0.02, atol=1e-9)


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
