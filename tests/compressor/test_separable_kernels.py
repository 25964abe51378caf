"""Separable kernels: exact where they are made so, and no better ones to be found where not."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics.separable import (
    composed,
    loaded,
    lost,
    most_multiplier,
    split_depthwise,
    split_to_share,
)
from edgepress.compressor.protocols import Matrix

SEEDS = st.integers(0, 10_000)


def correlated(rng: np.random.Generator, size: int) -> Matrix:
    """G [size, size] of inputs with strong and weak directions."""
    x = rng.standard_normal((3 * size, size)) @ (
        rng.standard_normal((size, size)) * rng.choice([0.1, 1, 3], size)
    )
    return np.asarray(x.T @ x / len(x))


def error(change: Matrix, gram: Matrix) -> float:
    """E|change x|²."""
    flat = change.reshape(len(change), -1)
    return float(np.trace(flat @ gram @ flat.T))


@given(SEEDS, st.integers(1, 3), st.sampled_from([(10, 3, 4), (3, 4, 9), (6, 1, 5)]))
@settings(max_examples=30, deadline=None)
def test_kernels_of_low_rank_are_found(seed: int, rank: int, shape: tuple[int, int, int]) -> None:
    out, inputs, taps = shape
    kernel = oracles.separable_kernel(seed, out, inputs, (taps,), rank).astype(np.float64)
    gram = loaded(kernel, correlated(np.random.default_rng(seed), inputs * taps))
    mixed, filters = split_depthwise(kernel, gram, rank)
    assert (mixed.shape, filters.shape) == ((out, inputs, rank), (inputs, rank, taps))
    np.testing.assert_allclose(
        composed(mixed, filters), kernel.reshape(out, -1), atol=1e-6 * np.abs(kernel).max()
    )


@given(SEEDS, st.sampled_from([(10, 3, 4), (3, 4, 9), (4, 4, 4)]))
@settings(max_examples=20, deadline=None)
def test_as_many_filters_as_taps_or_outputs_lose_nothing(seed: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    kernel, gram = rng.standard_normal(shape), correlated(rng, shape[1] * shape[2])
    found = split_depthwise(kernel, loaded(kernel, gram), min(shape[0], shape[2]))
    np.testing.assert_allclose(composed(*found), kernel.reshape(len(kernel), -1), atol=1e-7)


@given(SEEDS, st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_less_is_lost_than_by_the_plain_svd_and_less_the_more_filters(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, gram = rng.standard_normal((7, 3, 5)), correlated(rng, 15)
    regular = loaded(kernel, gram)
    ours, more = (split_depthwise(kernel, regular, m) for m in (rank, rank + 1))
    assert lost(kernel, regular, *more) <= lost(kernel, regular, *ours) + 1e-9
    share = error(kernel.reshape(7, -1) - composed(*ours), regular) / error(kernel, regular)
    assert lost(kernel, regular, *ours) == pytest.approx(share, abs=1e-12)
    assert share <= error(kernel - oracles.channel_svd(kernel, rank), regular) / error(kernel, regular) + 1e-9


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_one_channel_is_the_best_low_rank_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, gram = rng.standard_normal((8, 1, 6)), correlated(rng, 6)
    regular = loaded(kernel, gram)
    found = composed(*split_depthwise(kernel, regular, 2))
    least, full = oracles.rank_error(kernel[:, 0], regular, 2), error(kernel, regular)
    assert least * (1 - 1e-6) <= error(kernel.reshape(8, -1) - found, regular) <= least + 1e-3 * full


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_channels_that_know_nothing_of_one_another_stand_alone(seed: int) -> None:
    """With a block-diagonal G the rounds have nothing to make good."""
    rng = np.random.default_rng(seed)
    kernel, gram = rng.standard_normal((7, 2, 5)), np.zeros((10, 10))
    gram[:5, :5], gram[5:, 5:] = correlated(rng, 5), correlated(rng, 5)
    regular = loaded(kernel, gram)
    alone, rounds = (composed(*split_depthwise(kernel, regular, 2, rounds)) for rounds in (0, 10))
    assert error(alone - rounds, regular) <= 1e-3 * error(kernel, regular)
    least = sum(
        oracles.rank_error(kernel[:, c], regular[5 * c : 5 * c + 5, 5 * c : 5 * c + 5], 2) for c in (0, 1)
    )
    assert error(kernel.reshape(7, -1) - alone, regular) <= least + 2e-3 * error(kernel, regular)


@given(SEEDS, st.integers(1, 2))
@settings(max_examples=20, deadline=None)
def test_no_pointwise_part_is_better_and_no_single_channel(seed: int, rank: int) -> None:
    """Where the rounds end, least squares over all features finds nothing more, nor a search around one channel."""
    rng = np.random.default_rng(seed)
    kernel, gram = rng.standard_normal((6, 3, 4)), correlated(rng, 12)
    regular, flat = loaded(kernel, gram), kernel.reshape(6, -1)
    mixed, filters = split_depthwise(kernel, regular, rank, 300)
    best = error(flat - composed(mixed, filters), regular)
    root = np.linalg.cholesky(regular)
    features = np.zeros((3 * rank, 12))
    for c in range(3):
        features[rank * c : rank * (c + 1), 4 * c : 4 * c + 4] = filters[c]
    u = np.linalg.lstsq((features @ root).T, (flat @ root).T, rcond=None)[0].T
    assert best <= error(flat - u @ features, regular) * (1 + 1e-5) + 1e-12
    for _ in range(20):
        other = filters + 1e-3 * rng.standard_normal(filters.shape)
        assert best <= error(flat - composed(mixed, other), regular) + 0.05 * best


def test_rounds_lose_less_where_channels_are_correlated() -> None:
    rng = np.random.default_rng(0)
    kernel, gram = rng.standard_normal((16, 6, 9)), correlated(rng, 54)
    regular = loaded(kernel, gram)
    losses = [lost(kernel, regular, *split_depthwise(kernel, regular, 2, rounds)) for rounds in (0, 1, 4)]
    assert losses[1] < 0.9 * losses[0]
    assert losses[2] < losses[1]


@given(SEEDS, st.sampled_from([0.3, 0.6, 0.9, 0.99]))
@settings(max_examples=20, deadline=None)
def test_energy_takes_the_fewest_filters(seed: int, energy: float) -> None:
    rng = np.random.default_rng(seed)
    kernel, gram = rng.standard_normal((9, 2, 5)), correlated(rng, 10)
    regular = loaded(kernel, gram)
    enough = [lost(kernel, regular, *split_depthwise(kernel, regular, m)) <= 1 - energy for m in (1, 2, 3)]
    found = split_to_share(kernel, regular, energy, 3)
    assert (found is None) == (not any(enough))
    if found is not None:
        assert found[1].shape[1] == enough.index(True) + 1


@given(st.integers(1, 300), st.integers(2, 49))
def test_the_most_filters_are_the_last_that_make_it_smaller(out: int, taps: int) -> None:
    most = most_multiplier(out, taps)
    assert most == sum(m * (taps + out) < out * taps for m in range(1, 50))


@pytest.mark.parametrize("kernel", [np.zeros((4, 2, 3)), np.ones((4, 2, 3))])
@pytest.mark.parametrize("gram", [np.zeros((6, 6)), np.ones((6, 6))])
def test_nothing_that_varies_and_nothing_that_weighs_are_borne(kernel: Matrix, gram: Matrix) -> None:
    mixed, filters = split_depthwise(kernel, loaded(kernel, gram), 1)
    np.testing.assert_allclose(composed(mixed, filters), kernel.reshape(4, -1), atol=1e-6)
