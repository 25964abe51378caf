"""What says which units matter, against the same on explicit activations."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics.saliency import (
    Activity,
    Reader,
    expressed,
    fisher,
    outliers,
    pivots,
    rounded_up,
    weighted_gram,
)
from edgepress.compressor.protocols import Array, Matrix

seeds = st.integers(0, 10_000)


def layer(seed: int, units: int, taps: int, rows: int = 60) -> tuple[Matrix, Matrix, Array]:
    """X [rows, units · taps], W [units · taps, 4] and the unit of each column, columns in no order."""
    rng = np.random.default_rng(seed)
    unit_of = rng.permutation(np.repeat(np.arange(units), taps))
    x = rng.standard_normal((rows, len(unit_of))) @ rng.standard_normal((len(unit_of), len(unit_of)))
    return x - x.mean(0), rng.standard_normal((len(unit_of), 4)), unit_of


@given(seeds, st.integers(2, 12), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_pivots_are_those_of_qr_on_stacked_activations(seed: int, units: int, taps: int, count: int) -> None:
    layers = [layer(seed + i, units, taps) for i in range(count)]
    readers = [Reader(x.T @ x / len(x), w, ids, 0.5 + i, 0.0) for i, (x, w, ids) in enumerate(layers)]
    blocks = []
    for reader, (x, w, ids) in zip(readers, layers, strict=True):
        columns = [np.flatnonzero(ids == unit) for unit in range(units)]
        for tap in range(taps):
            scaled = [x[:, at[tap]] * np.linalg.norm(w[at[tap]]) for at in columns]
            blocks.append(np.sqrt(reader.weight / len(x)) * np.stack(scaled, axis=1))
    _, upper, expected = scipy.linalg.qr(np.vstack(blocks), pivoting=True, mode="economic")
    order, left = pivots(weighted_gram(readers, units))
    diagonal = np.diag(upper) ** 2
    if (np.abs(np.diff(diagonal)) > 1e-6 * diagonal[0]).all():  # no ties
        assert order.tolist() == expected.tolist()
    np.testing.assert_allclose(left, diagonal, rtol=1e-6, atol=1e-8 * diagonal[0])


@given(seeds, st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_units_that_others_span_are_the_last_pivots(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((50, rank)) @ rng.standard_normal((rank, rank + 4))
    order, left = pivots(a.T @ a)
    assert sorted(order.tolist()) == list(range(rank + 4))
    assert np.linalg.matrix_rank(a[:, order[:rank]], tol=1e-6) == rank
    assert left[rank:].max() < 1e-9 * left[0]


@given(seeds, st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_fisher_is_the_expected_square_of_the_gradient_to_a_gate(seed: int, units: int, taps: int) -> None:
    """Of log N(y; Σ m_u W_uᵀ x_u, v) at m = 1, over rows and over y drawn from that: in closed form |W_uᵀ x_u|² / v."""
    x, w, unit_of = layer(seed, units, taps)
    variance = float(np.sum((x @ w) ** 2) / len(x))
    found = fisher([Reader(x.T @ x / len(x), w, unit_of, 1 / variance, 0.0)], units)
    rng = np.random.default_rng(seed)
    for unit in range(units):
        at = unit_of == unit
        part = x[:, at] @ w[at]  # (rows, out)
        assert found[unit] == pytest.approx(np.sum(part**2) / len(x) / variance)
    noise = rng.standard_normal((4000, *(x @ w).shape)) * np.sqrt(variance)
    gradient = np.einsum("kro,ro->kr", noise, x[:, unit_of == 0] @ w[unit_of == 0]) / variance
    assert found[0] == pytest.approx(float(np.mean(gradient**2)), rel=0.1)


def test_fisher_adds_up_over_readers_and_leaves_out_columns_of_nobody() -> None:
    gram, w = np.diag([1.0, 2.0, 4.0]), np.ones((3, 2))
    one = Reader(gram, w, np.array([0, -1, 1]), 1.0, 0.0)
    two = Reader(gram, w, np.array([1, 1, 0]), 10.0, 0.0)
    assert fisher([one, two], 2).tolist() == [2 + 80, 8 + 60]


@given(seeds, st.integers(1, 4), st.lists(st.integers(1, 7), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_activity_streams_to_what_all_activations_give(seed: int, units: int, batches: list[int]) -> None:
    rng = np.random.default_rng(seed)
    unit_of = rng.integers(-1, units, size=6)
    whole = np.maximum(rng.standard_normal((6, sum(batches), 3)) - 0.3, 0).astype(np.float32)
    seen = Activity(units)
    for part in np.split(whole, np.cumsum(batches)[:-1], axis=1):
        seen.update(part, unit_of)
    for unit in range(units):
        own = whole[unit_of == unit]
        if own.size:
            assert seen.zero_rate()[unit] == pytest.approx(np.mean(own == 0))
            assert seen.strength()[unit] == pytest.approx(np.mean(np.abs(own)), rel=1e-5)
        else:
            assert seen.zero_rate()[unit] == 1
            assert seen.strength()[unit] == 0


def test_activations_that_are_no_numbers_are_never_weak() -> None:
    seen = Activity(3)
    seen.update(np.array([[np.nan, 0.0], [1.0, 1.0], [np.inf, 1.0]], np.float32), np.arange(3))
    assert seen.strength().tolist() == [np.inf, 1.0, np.inf]
    assert not outliers(seen.strength(), 2.0).any()
    assert not outliers(np.full(3, np.inf), 2.0).any()


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_outliers_are_below_mean_minus_sigmas(values: list[float], sigmas: float) -> None:
    a = np.array(values)
    expected = [v < a.mean() - sigmas * a.std() for v in a]
    assert outliers(a, sigmas).tolist() == expected


def test_a_single_weak_unit_among_many_is_an_outlier() -> None:
    assert np.flatnonzero(outliers(np.array([5.0] * 20 + [1.0]), 2.0)).tolist() == [20]


@given(seeds, st.integers(2, 8), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_what_stays_tells_what_goes_by_least_squares(seed: int, units: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, units)) @ rng.standard_normal((units, units))
    gone = np.arange(units) < min(count, units - 1)
    told = expressed(x.T @ x / len(x), gone, 0.0)
    direct = np.linalg.lstsq(x[:, ~gone], x[:, gone], rcond=None)[0].T
    left, least = (np.sum((x[:, gone] - x[:, ~gone] @ a.T) ** 2) for a in (told, direct))
    assert left <= least * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize(
    ("keep", "full", "multiple", "width"),
    [
        (33, 64, 16, 48),
        (64, 64, 16, 64),
        (5, 64, 16, 16),
        (10, 12, 16, 12),  # 16, 16 and 12 are no narrower
        (7, 12, 16, 8),
        (3, 12, 16, 8),
        (3, 12, 1, 3),
        (3, 12, 3, 3),
        (0, 6, 4, 4),
    ],
)
def test_widths_are_rounded_up_to_what_kernels_like(keep: int, full: int, multiple: int, width: int) -> None:
    assert rounded_up(keep, full, multiple) == width
