import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.runtime import stats

positive = st.floats(1.0, 1e6)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@settings(max_examples=30, deadline=None)
@given(st.lists(positive, min_size=3, max_size=25))
def test_median_interval_agrees_with_a_plain_loop(samples):
    generator = rng()
    medians = []
    for _ in range(1000):
        drawn = [samples[index] for index in generator.integers(0, len(samples), len(samples))]
        medians.append(sorted(drawn)[len(drawn) // 2] if len(drawn) % 2 else float(np.median(drawn)))
    expected = np.quantile(medians, [0.025, 0.975])
    np.testing.assert_allclose(stats.median_interval(samples, rng()), expected, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(positive, positive), min_size=3, max_size=15))
def test_ratio_interval_agrees_with_a_plain_loop(pairs):
    generator = rng()
    ratios = []
    for _ in range(200):
        drawn = [pairs[index] for index in generator.integers(0, len(pairs), len(pairs))]
        ratios.append(np.median([a for a, _ in drawn]) / np.median([b for _, b in drawn]))
    expected = np.quantile(ratios, [0.025, 0.975])
    first, second = zip(*pairs, strict=True)
    found = stats.ratio_interval(first, second, rng(), resamples=200)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_interval_covers_the_true_median_about_as_often_as_promised():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = stats.median_interval(generator.lognormal(0.0, 0.3, 41), generator, resamples=300)
        hits += low <= 1.0 <= high
    assert 180 <= hits <= 199  # 190 expected


def test_what_slows_whole_rounds_cancels_in_the_ratio():
    slow_rounds = np.random.default_rng(2).lognormal(0.0, 0.5, 60)
    low, high = stats.ratio_interval(80 * slow_rounds, 100 * slow_rounds, rng())
    assert 0.799 < low <= high < 0.801
    alone = stats.median_interval(80 * slow_rounds, rng())
    assert alone[1] / alone[0] > 1.1


def test_many_samples_are_resampled_in_blocks_of_bounded_size(monkeypatch):
    samples = rng().random(50)
    whole = stats.median_interval(samples, rng())
    monkeypatch.setattr(stats, "_BLOCK", 500)
    assert stats.median_interval(samples, rng()) == whole


def test_outliers_are_counted():
    assert stats.outliers([100, 101, 99, 100, 102, 98, 500]) == 1
    assert stats.outliers([100, 100, 100, 107]) == 1
    assert stats.outliers([100, 101, 99]) == 0


def test_samples_that_are_not_pairs_are_refused():
    with pytest.raises(ValueError, match="3 rounds against 2"):
        stats.ratio_interval([1, 2, 3], [1, 2], rng())
    with pytest.raises(ValueError, match="one row"):
        stats.median_interval([], rng())
