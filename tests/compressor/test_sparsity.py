"""Masks by counting, and pruning against the slow, exact ways and against plain magnitude."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics import sparsity
from edgepress.compressor.numerics.factors import DAMPINGS, ridge, row_errors
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.masks import Pattern, block_mask, n_m_mask, share_out
from edgepress.compressor.numerics.sparsity import predicted, prune_to_outputs, refit_kept
from edgepress.compressor.protocols import Array, Matrix

seeds = st.integers(0, 1000)


def moments(x: Matrix) -> Moments:
    found = Moments(x.shape[1], 0)
    found.update(x, np.zeros((len(x), 0)))
    return found


def inputs(seed: int, rows: int, width: int, stream: int = 0) -> Matrix:
    """Correlated, so that there is something to be made good."""
    mixing = np.random.default_rng(seed).standard_normal((max(width // 4, 1), width))
    rng = np.random.default_rng([seed, stream])
    return rng.standard_normal((rows, len(mixing))) @ mixing + 0.3 * rng.standard_normal((rows, width)) + 1


def error(weights: Matrix, other: Array, gram: Matrix) -> float:
    return float(row_errors(weights - other, gram).sum())


@given(seeds, st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_the_least_magnitudes_go_and_of_equal_ones_the_first(seed: int, count: int) -> None:
    weights = np.random.default_rng(seed).integers(-3, 4, (5, 8)).astype(np.float32)
    slow = sorted(range(40), key=lambda i: (abs(weights.flat[i]), i))[:count]
    gone = np.flatnonzero(~Pattern().mask(np.abs(weights), count).reshape(-1))
    assert gone.tolist() == sorted(slow)


@given(seeds, st.integers(1, 5), st.integers(0, 4), st.integers(1, 12), st.sampled_from([None, 3, 4, 6]))
@settings(max_examples=80, deadline=None)
def test_of_every_m_the_n_of_most_score_stay(
    seed: int, n: int, more: int, columns: int, run: int | None
) -> None:
    m = n + more
    scores = np.random.default_rng(seed).random((4, columns))
    stays = n_m_mask(scores, n, m, run)
    length = run or columns
    for start in range(0, columns, length):
        end = min(start + length, columns)
        for first in range(start, end, m):
            part = slice(first, min(first + m, end))
            assert (stays[:, part].sum(axis=1) == min(n, part.stop - part.start)).all()
            for row, kept in zip(scores[:, part], stays[:, part], strict=True):
                assert row[kept].min() >= row[~kept].max(initial=0.0)
    assert (~stays).sum() == Pattern(m, n, run).count(scores.shape, 0.0)


@given(seeds, st.integers(1, 5), st.integers(1, 12), st.sampled_from([None, 3, 5]), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_blocks_go_whole_and_those_with_the_least_sums(
    seed: int, block: int, columns: int, run: int | None, share: float
) -> None:
    scores = np.random.default_rng(seed).random((4, columns))
    pattern = Pattern(block, None, run)
    count = pattern.count(scores.shape, share)
    stays = block_mask(scores, block, count, run)
    held = [stays[:, g[g >= 0]] for g in pattern.groups(columns)]
    assert all((h.all(axis=1) | ~h.any(axis=1)).all() for h in held)
    whole = np.stack([h.all(axis=1) for h in held], axis=1)
    sums = np.stack([scores[:, g[g >= 0]].sum(axis=1) for g in pattern.groups(columns)], axis=1)
    assert (~whole).sum() == count
    assert sums[whole].min(initial=np.inf) >= sums[~whole].max(initial=0.0)


def test_one_threshold_for_all_and_nobody_gives_more_than_the_most() -> None:
    costs = [np.array([1.0, 2.0, 3.0]), np.array([[4.0, 5.0]]), np.array([6.0, 7.0])]
    assert share_out(costs, 4, [3, 2, 2]) == [3, 1, 0]
    assert share_out(costs, 4, [2, 1, 2]) == [2, 1, 1]
    assert share_out(costs, 0, [1, 1, 1]) == [0, 0, 0]
    assert share_out([], 0, []) == []


def slowly(weights: Matrix, gram: Matrix, strength: float, pattern: Pattern) -> Matrix:
    """Column after column with the inverse itself, of the columns left (Hassibi & Stork 1993); n of m."""
    left = weights.astype(np.float64).copy()
    groups = [g[g >= 0] for g in pattern.groups(len(gram))]
    groups.sort(key=lambda g: -np.diag(gram)[g].sum())
    alive = [int(c) for g in groups for c in g]
    gram = gram + np.eye(len(gram)) * strength
    for group in groups:
        costs = np.empty((len(left), len(group)))
        for place, column in enumerate(group):
            behind = alive[alive.index(column) :]
            costs[:, place] = left[:, column] ** 2 / np.linalg.inv(gram[np.ix_(behind, behind)])[0, 0]
        gone = np.argsort(np.argsort(costs, axis=1), axis=1) < len(group) - (pattern.keep or 0)
        for place, column in enumerate(group):
            inverse = np.linalg.inv(gram[np.ix_(alive, alive)])
            rows = gone[:, place]
            left[np.ix_(rows, alive)] -= np.outer(left[rows, column] / inverse[0, 0], inverse[0])
            left[rows, column] = 0
            alive.pop(0)
    return left


@given(st.integers(1, 3), st.integers(0, 3), st.integers(1, 70), st.sampled_from([None, 5, 7]), seeds)
@settings(max_examples=40, deadline=None)
def test_columns_one_after_another_give_what_exact_updates_give(
    n: int, more: int, width: int, run: int | None, seed: int
) -> None:
    gram = moments(inputs(seed, 400, width)).centred()[0]
    weights = np.random.default_rng(seed).standard_normal((5, width)).astype(np.float32)
    pattern, strength = Pattern(n + more, n, run), ridge(gram, 0.01, 0.0)
    found, kept = sparsity._swept(weights, gram, strength, pattern)
    exact = slowly(weights, gram, strength, pattern)
    np.testing.assert_array_equal(kept, exact != 0)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


def exactly(weights: Matrix, kept: Matrix, gram: Matrix) -> Matrix:
    """Least squares of each row on what stays, by a plain solve."""
    result = np.zeros(weights.shape)
    for row, mask in enumerate(kept):
        if mask.any():
            right = gram[np.ix_(mask, np.ones(len(gram), bool))] @ weights[row]
            result[row, mask] = np.linalg.solve(gram[np.ix_(mask, mask)], right)
    return result


@given(seeds, st.integers(1, 30), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_what_stays_is_fitted_by_least_squares(seed: int, width: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    gram = moments(inputs(seed, 300, width)).centred()[0]
    weights, kept = rng.standard_normal((6, width)), rng.random((6, width)) > share
    loaded = gram + 0.1 * np.eye(width)
    found = refit_kept(weights, weights * kept, kept, gram, 0.1, 50)
    assert not found[~kept].any()
    best, ours = error(weights, exactly(weights, kept, loaded), loaded), error(weights, found, loaded)
    assert best - 1e-9 <= ours <= 1.02 * best + 1e-9
    rows = [row_errors(weights - q, loaded) for q in (found, weights * kept)]
    assert (rows[0] <= rows[1] * (1 + 1e-9)).all()


def greedily(weights: Matrix, gram: Matrix, count: int) -> Matrix:
    """The weight that costs least goes, the others of its row are fitted, and so on: one at a time, exact."""
    kept = np.ones(weights.shape, bool)
    left = weights.copy()
    for _ in range(count):
        costs = np.full(weights.shape, np.inf)
        for row, mask in enumerate(kept):
            if mask.any():
                inverse = np.linalg.inv(gram[np.ix_(mask, mask)])
                costs[row, mask] = left[row, mask] ** 2 / np.diag(inverse)
        kept.flat[int(np.argmin(costs))] = False
        left = exactly(weights, kept, gram)
    return left


@pytest.mark.parametrize(("share", "factor"), [(0.3, 1.05), (0.5, 1.1), (0.7, 1.4)])
def test_on_the_whole_stages_lose_little_against_one_at_a_time(share: float, factor: float) -> None:
    ours, theirs, count = 0.0, 0.0, round(48 * share)
    for seed in range(12):
        x = moments(inputs(seed, 1000, 16))
        weights = np.random.default_rng(seed).standard_normal((3, 16))
        gram = x.centred()[0] + np.eye(16) * ridge(x.centred()[0], DAMPINGS[0], x.rounding())
        found = prune_to_outputs(weights, x, moments(np.zeros((0, 16))), Pattern(), count)
        ours += error(weights, found, gram)
        theirs += error(weights, greedily(weights, gram, count), gram)
    assert ours < factor * theirs


PATTERNS = [Pattern(), Pattern(4), Pattern(4, None, 6), Pattern(4, 2), Pattern(4, 1, 6), Pattern(16)]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(st.integers(2, 40), st.integers(4, 300), st.floats(0, 0.95), st.booleans(), st.booleans(), seeds)
@settings(max_examples=25, deadline=None)
def test_zeros_are_counted_and_it_is_never_worse_than_by_magnitude(
    pattern: Pattern, width: int, rows: int, share: float, by_outputs: bool, compensate: bool, seed: int
) -> None:
    fit, held = moments(inputs(seed, rows, width)), moments(inputs(seed, max(rows // 4, 2), width, 1))
    weights = np.random.default_rng(seed).standard_normal((6, width))
    count = pattern.count(weights.shape, share)
    q = prune_to_outputs(
        weights, fit, held, pattern, count, by_outputs=by_outputs, compensate=compensate
    )  # fmt: skip
    plain = np.where(pattern.mask(np.abs(weights), count), weights, 0)
    assert (q == 0).sum() == (plain == 0).sum() or pattern.run or width % pattern.width
    groups = pattern.groups(width)
    held_back = np.where(groups < 0, 0, q[:, groups] != 0).sum(axis=2)
    if pattern.keep is None:
        assert (held_back == 0).sum() == count
    else:
        assert (held_back <= pattern.keep).all()
    gram = (fit + held).centred()[0]
    ours, theirs = (row_errors(weights - each, gram) for each in (q, plain))
    slack = 1e-6 * float(row_errors(weights, gram).sum())
    if pattern.keep is not None:
        assert (ours <= theirs + slack).all()
    assert ours.sum() <= theirs.sum() + slack
    if not compensate:
        np.testing.assert_allclose(q[q != 0], weights[q != 0], rtol=1e-6)


@pytest.mark.parametrize("rows", [2000, 150])
@pytest.mark.parametrize(
    ("pattern", "share", "factor"),
    [(Pattern(), 0.5, 0.1), (Pattern(), 0.7, 0.1), (Pattern(4, 2), 0, 0.1), (Pattern(4), 0.5, 0.15)],
)
def test_other_rows_of_correlated_inputs_come_out_much_better(
    pattern: Pattern, share: float, factor: float, rows: int
) -> None:
    fit, held = moments(inputs(3, rows, 96)), moments(inputs(3, rows // 4, 96, 1))
    weights = np.random.default_rng(3).standard_normal((32, 96))
    count = pattern.count(weights.shape, share)
    found = prune_to_outputs(weights, fit, held, pattern, count)
    plain = np.where(pattern.mask(np.abs(weights), count), weights, 0)
    unseen = moments(inputs(3, 4000, 96, 2)).centred()[0]
    assert error(weights, found, unseen) < factor * error(weights, plain, unseen)


def test_few_rows_are_not_believed() -> None:
    """With fewer rows than inputs all errors could be hidden; other rows would bring them back."""
    rng = np.random.default_rng(0)
    seen, held, others = (rng.standard_normal((n, 256)) for n in (40, 10, 4000))
    weights = rng.standard_normal((32, 256))
    count = weights.size // 2
    found = prune_to_outputs(weights, moments(seen), moments(held), Pattern(), count)
    plain = weights * Pattern().mask(np.abs(weights), count)
    gram = others.T @ others / len(others)
    assert error(weights, found, gram) < 1.02 * error(weights, plain, gram)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_scale_of_weights_and_inputs_does_not_matter(pattern: Pattern, scale: float) -> None:
    x, weights = inputs(1, 500, 24), np.random.default_rng(1).standard_normal((8, 24)).astype(np.float32)
    count = pattern.count(weights.shape, 0.5)
    one = prune_to_outputs(weights, moments(x), moments(x[:50]), pattern, count)
    factor = np.float32(2.0) ** round(np.log2(scale))
    other = prune_to_outputs(weights * factor, moments(x * scale), moments(x[:50] * scale), pattern, count)
    np.testing.assert_allclose(other / factor, one, rtol=0, atol=2e-2)


def test_zeros_and_constant_inputs_are_no_trouble() -> None:
    flat = moments(np.ones((50, 8)))
    for pattern in PATTERNS:
        for weights in (np.zeros((3, 8)), np.eye(8)):
            count = pattern.count(weights.shape, 0.5)
            q = prune_to_outputs(weights, flat, flat, pattern, count)
            assert np.isfinite(q).all()
            assert pattern.met(q, count)


def test_what_is_predicted_is_what_one_loss_costs() -> None:
    x = moments(inputs(2, 4000, 12))
    weights = np.random.default_rng(2).standard_normal((4, 12))
    gram = x.centred()[0]
    loaded = gram + np.eye(12) * ridge(gram, DAMPINGS[0], x.rounding())
    total = float(row_errors(weights, gram).sum())
    for pattern in (Pattern(), Pattern(4), Pattern(4, None, 6)):
        found, bare = (predicted(weights, x, pattern, compensate=each) for each in (True, False))
        for g, columns in enumerate(pattern.groups(12)):
            for row in range(4):
                kept = np.ones((4, 12), bool)
                kept[row, columns[columns >= 0]] = False
                best = error(weights, exactly(weights, kept, loaded), loaded) / total
                assert found[row, g] == pytest.approx(best, rel=1e-3)
                assert bare[row, g] == pytest.approx(error(weights, weights * kept, gram) / total, rel=1e-3)


def test_where_the_choice_by_outputs_is_worse_magnitude_it_is() -> None:
    """Costs of single weights say nothing of what they do together: the two are compared."""
    worse = 0
    for seed in range(40):
        x, weights = moments(inputs(seed, 200, 8)), np.random.default_rng(seed).standard_normal((2, 8))
        gram = x.centred()[0]
        plain = weights * Pattern().mask(np.abs(weights), 8)
        ours = weights * Pattern().mask(np.abs(weights * np.sqrt(np.diag(gram))), 8)
        found = prune_to_outputs(weights, x, x, Pattern(), 8, compensate=False)
        better = error(weights, ours, gram) <= error(weights, plain, gram)
        np.testing.assert_allclose(found, ours if better else plain, rtol=1e-6)
        worse += not better
    assert worse > 3
