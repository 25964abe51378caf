"""Scales and zero points for weights: what is in range comes back within half a step, whatever shares a scale."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics.grids import integer_grid
from edgepress.compressor.numerics.rounding import levels_at, nearest_codes
from edgepress.compressor.numerics.steps import Granularity, Steps, best_steps, block_width
from edgepress.compressor.protocols import Array


def matrix(seed: int, rows: int, inputs: int, shift: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, inputs)) * np.exp(rng.normal(0, 3, (rows, 1))) + shift
    return values.astype(np.float32)


def shared(granularity: str, block: int, rows: int, inputs: int) -> list[tuple[slice, slice]]:
    """The parts that have a scale in common, by loops."""
    if granularity == "tensor":
        return [(slice(None), slice(None))]
    width = block if granularity == "block" and block < inputs and inputs % block == 0 else inputs
    return [(slice(r, r + 1), slice(c, c + width)) for r in range(rows) for c in range(0, inputs, width)]


def numbers(steps: Steps, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Scale and zero point of each weight."""
    scales, zeros = steps.at()
    return np.broadcast_to(scales.T if scales.ndim == 2 else scales[:, None], shape), np.broadcast_to(
        zeros.T if zeros.ndim == 2 else zeros[:, None], shape
    )


@given(
    st.integers(2, 8), st.booleans(), st.sampled_from(get_args(Granularity)), st.integers(1, 4),
    st.sampled_from([1, 3, 8, 12]), st.sampled_from([2, 4, 5]), st.sampled_from([0.0, 5.0, -5.0]),
    st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_what_is_in_range_comes_back_within_half_a_step(
    bits: int, symmetric: bool, kind: Granularity, rows: int, inputs: int, block: int, shift: float, seed: int
) -> None:
    weights, grid = matrix(seed, rows, inputs, shift), integer_grid(bits, signed=True, symmetric=symmetric)
    steps = best_steps(weights, grid, block_width(kind, block, inputs), ratios=(1.0,))
    codes = nearest_codes(weights, steps)
    scales, zeros = numbers(steps, weights.shape)
    assert codes.min() >= grid.qmin
    assert codes.max() <= grid.qmax
    assert (np.abs(levels_at(codes, steps) - weights) <= scales * 0.5001).all()
    assert (np.rint(zeros) == zeros).all()
    assert not zeros.any() or not symmetric
    for part in shared(kind, block, rows, inputs):
        low, high = min(weights[part].min(), 0), max(weights[part].max(), 0)
        wanted = max(-low, high) / grid.qmax if symmetric else (high - low) / grid.levels
        np.testing.assert_allclose(scales[part], wanted, rtol=1e-5)


@given(st.integers(2, 6), st.booleans(), st.sampled_from(get_args(Granularity)), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_of_the_ranges_tried_the_best_is_taken(
    bits: int, symmetric: bool, kind: Granularity, seed: int
) -> None:
    """Part by part, by trying each alone."""
    weights, grid = matrix(seed, 3, 12), integer_grid(bits, signed=True, symmetric=symmetric)
    power, width = np.random.default_rng(seed).random(12), block_width(kind, 4, 12)
    errors = []
    for ratio in (1.0, 0.7, 0.4):
        steps = best_steps(weights, grid, width, power=power, ratios=(ratio,))
        error = np.square(levels_at(nearest_codes(weights, steps), steps) - weights) * power
        errors.append([error[part].sum() for part in shared(kind, 4, 3, 12)])
    steps = best_steps(weights, grid, width, power=power, ratios=(1.0, 0.7, 0.4))
    error = np.square(levels_at(nearest_codes(weights, steps), steps) - weights) * power
    found = [error[part].sum() for part in shared(kind, 4, 3, 12)]
    np.testing.assert_allclose(found, np.min(errors, axis=0), rtol=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_have_a_scale_and_stay_zero(symmetric: bool) -> None:
    weights = np.zeros((3, 4), np.float32)
    weights[1] = [0.5, -2.0, 1.0, 0.0]
    for each in (weights, np.zeros((2, 2), np.float32)):
        steps = best_steps(each, integer_grid(4, signed=True, symmetric=symmetric), each.shape[1])
        assert (steps.scales > 0).all()
        assert not levels_at(nearest_codes(each, steps), steps)[each == 0].any()


def test_a_zero_point_makes_the_most_of_one_sided_weights() -> None:
    weights = np.abs(matrix(0, 4, 64))
    lost = []
    for symmetric in (True, False):
        steps = best_steps(weights, integer_grid(4, signed=True, symmetric=symmetric), 64)
        lost.append(np.square(levels_at(nearest_codes(weights, steps), steps) - weights).sum())
    assert lost[1] < 0.4 * lost[0]


def test_clipping_helps_few_bits() -> None:
    weights, grid = matrix(0, 4, 1000), integer_grid(3, signed=True, symmetric=True)
    assert (
        best_steps(weights, grid, 1000).scales < best_steps(weights, grid, 1000, ratios=(1.0,)).scales
    ).all()
