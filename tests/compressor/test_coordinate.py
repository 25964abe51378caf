"""Coordinate descent on the output error, against all roundings there are."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics.coordinate import descend
from edgepress.compressor.numerics.factors import ENOUGH, row_errors
from edgepress.compressor.numerics.grids import integer_grid
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.rounding import (
    best_damping,
    damped,
    levels_at,
    nearest_codes,
    round_to_outputs,
)
from edgepress.compressor.numerics.steps import best_steps
from edgepress.compressor.protocols import Matrix


def gram_of(rng: np.random.Generator, width: int) -> Matrix:
    x = rng.standard_normal((4 * width + 4, width)) @ rng.standard_normal((width, width))
    gram: Matrix = x.T @ x / len(x) + 1e-3 * np.eye(width)
    return gram


@given(
    st.integers(2, 3), st.booleans(), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.booleans(),
    st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_single_move_helps_and_nothing_beats_all_roundings(
    bits: int, symmetric: bool, rows: int, width: int, blocks: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    grid, weights = integer_grid(bits, signed=True, symmetric=symmetric), rng.standard_normal((rows, width))
    gram = gram_of(rng, width)
    steps = best_steps(weights, grid, width // 2 if blocks and width > 1 else width)
    start = nearest_codes(weights, steps)
    found = descend(weights, gram, start, steps, rounds=1000)
    every = np.array(list(itertools.product(range(grid.qmin, grid.qmax + 1), repeat=width)), np.float64)
    for row in range(rows):

        def error(codes: Matrix, row: int = row) -> Matrix:
            levels = np.concatenate([levels_at(c[None], steps.part(slice(row, row + 1))) for c in codes])
            return row_errors(weights[row] - levels, gram)

        ours, best = error(found[row : row + 1])[0], error(every).min()
        assert best <= ours * (1 + 1e-9)
        assert ours <= error(start[row : row + 1])[0] * (1 + 1e-9)
        for column in range(width):  # the best of all values of one weight, the others as they are
            tries = np.repeat(found[row : row + 1], grid.levels + 1, axis=0)
            tries[:, column] = np.arange(grid.qmin, grid.qmax + 1)
            assert ours <= error(tries).min() * (1 + 1e-6) + 1e-12


@given(
    st.integers(2, 6), st.booleans(), st.sampled_from([5, 40, 70]), st.integers(8, 400), st.integers(0, 10**6)
)
@settings(max_examples=40, deadline=None)
def test_it_is_never_worse_than_columns_nor_nearest(
    bits: int, symmetric: bool, width: int, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    grid, mixing = integer_grid(bits, signed=True, symmetric=symmetric), rng.standard_normal((width, width))
    fit, held = Moments(width, 0), Moments(width, 0)
    for some, count in ((fit, rows), (held, max(rows // 4, 2))):
        some.update(rng.standard_normal((count, width)) @ mixing, np.zeros((count, 0)))
    weights = rng.standard_normal((6, width))
    codes, steps = {}, None
    for how in ("nearest", "gptq", "coordinate"):
        codes[how], steps = round_to_outputs(weights, [(fit, held)], grid, how=how)  # type: ignore[arg-type]
    assert steps is not None
    assert codes["coordinate"].min() >= grid.qmin
    assert codes["coordinate"].max() <= grid.qmax
    damping = best_damping(weights, fit, held, steps)
    both = fit + held
    gram = both.centred()[0] if damping is None else damped(both.centred()[0], damping, both.rounding())
    errors = {how: row_errors(weights - levels_at(each, steps), gram) for how, each in codes.items()}
    if both.rows < ENOUGH * width:  # so few would be fitted by their noise
        np.testing.assert_array_equal(codes["coordinate"], codes["gptq"])
        return
    assert (errors["coordinate"] <= np.minimum(errors["gptq"], errors["nearest"]) * (1 + 1e-9)).all()


def test_it_makes_good_what_columns_leave() -> None:
    rng = np.random.default_rng(0)
    gram, weights = gram_of(rng, 64), rng.standard_normal((32, 64))
    steps = best_steps(weights, integer_grid(3, signed=True, symmetric=True), 64)
    start = nearest_codes(weights, steps)
    found = descend(weights, gram, start, steps)
    before, after = (row_errors(weights - levels_at(c, steps), gram).sum() for c in (start, found))
    assert after < 0.5 * before
