import math
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepress.compressor.numerics import ranges as rg
from edgepress.compressor.numerics.grids import dequantize, integer_grid, quantize

UINT8 = integer_grid(8, signed=False)
ARRAYS = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e5, 1e5, width=32))

Floats = npt.NDArray[np.float32]


def seen(*batches: Floats) -> rg.Histogram:
    h = rg.empty()
    for batch in batches:
        h = rg.observe(h, batch)
    return h


@given(st.lists(ARRAYS, min_size=1, max_size=5))
def test_counts_are_those_of_all_values_at_once(batches: list[Floats]) -> None:
    h = seen(*batches)
    together = np.concatenate(batches)
    assert (h.minimum, h.maximum) == (together.min(), together.max())
    expected = np.zeros(rg.BINS, np.int64)
    for x in together.tolist():
        expected[math.floor(x / 2.0**h.exponent) - h.first] += 1
    np.testing.assert_array_equal(h.counts, expected)


@given(st.lists(ARRAYS, min_size=1, max_size=5), st.randoms())
def test_neither_order_nor_batches_matter(batches: list[Floats], random: Random) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)
    for other in (seen(*shuffled), seen(np.concatenate(batches))):
        h = seen(*batches)
        assert (h.first, h.exponent) == (other.first, other.exponent)
        np.testing.assert_array_equal(h.counts, other.counts)


def test_large_batches_are_sampled_but_extremes_are_not_missed() -> None:
    x = np.zeros(1_000_000, np.float32)
    x[123_457], x[77] = 9.0, -4.0
    h = rg.observe(rg.empty(), x)
    assert h.counts.sum() <= rg.SAMPLE
    assert (h.minimum, h.maximum) == (-4.0, 9.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_remembered(bad: float) -> None:
    h = seen(np.ones(3, np.float32), np.array([1.0, bad], np.float32), np.ones(3, np.float32))
    assert not h.finite
    assert not rg.empty().finite
    assert seen(np.zeros(2, np.float32)).finite


def test_minmax_takes_all_and_percentile_leaves_outliers() -> None:
    x = np.random.default_rng(1).uniform(0, 1, 50_000).astype(np.float32)
    x[:2] = 100.0
    h = seen(x)
    assert rg.minmax(h, UINT8) == (x.min(), 100.0)
    low, high = rg.percentile(h, UINT8)
    assert low >= 0
    assert 0.9 < high < 1.2


@given(ARRAYS)
def test_every_choice_stays_inside_what_was_seen(x: Floats) -> None:
    h = seen(x)
    for choose in rg.CHOICES.values():
        low, high = choose(h, UINT8)
        assert h.minimum <= low <= high <= h.maximum or (low <= 0 <= high and low >= min(h.minimum, 0))


def test_least_error_beats_minmax_on_what_it_saw() -> None:
    grid = integer_grid(4, signed=False)
    x = np.random.default_rng(2).laplace(size=60_000).astype(np.float32)
    h = seen(x)

    def error(low: float, high: float) -> float:
        params = rg.affine(low, high, grid)
        q = quantize(x, params.scale, grid, params.zero_point)
        return float(np.square(dequantize(q, params.scale, params.zero_point) - x).sum())

    found = rg.least_error(h, grid)
    assert error(*found) < 0.5 * error(*rg.minmax(h, grid))
    assert rg.rounding_error(h, *found, grid) == pytest.approx(error(*found), rel=0.05)


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.integers(0, 99),
)
def test_patch_sums_are_sums_of_patches(
    shape: tuple[int, int, int], pads: tuple[int, int], seed: int
) -> None:
    (kernel, dilation, stride), (before, after) = shape, pads
    x = np.random.default_rng(seed).standard_normal((2, 6, 7))
    window = rg.Window((kernel, 2), (stride, 1), (dilation, 1), ((before, after), (1, 0)))
    sums, count = rg.patch_sums(x, window)
    padded = np.pad(x, ((0, 0), (before, after), (1, 0)))
    expected, positions = np.zeros((2, kernel, 2)), 0
    for i in range(0, padded.shape[1] - (kernel - 1) * dilation, stride):
        for j in range(padded.shape[2] - 1):
            positions += 1
            expected += padded[:, i : i + (kernel - 1) * dilation + 1 : dilation, j : j + 2]
    assert count == positions
    np.testing.assert_allclose(sums, expected, atol=1e-9)
