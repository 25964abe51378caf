"""Optimal brain surgeon on short rows, against trying every weight at every step."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics.elimination import Groups, prune_groups
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.masks import Pattern, least_of
from edgepress.compressor.protocols import Matrix

seeds = st.integers(0, 1000)


def problem(seed: int, groups: int, rows: int, width: int) -> Groups:
    rng = np.random.default_rng(seed)
    moments = []
    for _ in range(groups):
        x = rng.standard_normal((200, width)) @ rng.standard_normal((width, width)) + 1
        found = Moments(width, 0)
        found.update(x, x[:, :0])
        moments.append(found)
    made = Groups.of(rng.standard_normal((groups * rows, width)), moments)
    assert made is not None
    return made


def least(gram: Matrix, row: Matrix, gone: list[int]) -> float:
    return oracles.least_damage(gram, row[:, None], gone) if gone else 0.0


def slowly(groups: Groups, pattern: Pattern, count: int) -> list[list[int]]:
    """Which weights of each row go, by trying every one at every step."""
    width, orders, costs = groups.rows.shape[1], [], []
    members = [[int(c) for c in g if c >= 0] for g in pattern.groups(width)]
    for index, row in enumerate(groups.rows):
        gram = groups.grams[index // groups.weights.shape[1]]
        gone: list[int] = []
        lost = [0.0]
        while True:
            full = {
                c for g in members if pattern.keep is not None
                and len(set(g) & set(gone)) >= len(g) - pattern.keep for c in g
            }  # fmt: skip
            left = [c for c in range(width) if c not in gone and c not in full]
            if not left:
                break
            gone.append(min(left, key=lambda c: least(gram, row, [*gone, c])))
            lost.append(least(gram, row, gone))
        orders.append(gone)
        costs.append(np.maximum.accumulate(np.diff(lost)))
    if pattern.keep is not None:
        return orders
    chosen = least_of(np.array(costs), count)
    return [order[: int(some.sum())] for order, some in zip(orders, chosen, strict=True)]


@given(seeds, st.integers(1, 3), st.integers(1, 2), st.integers(2, 6), st.floats(0, 0.9), st.booleans())
@settings(max_examples=80, deadline=None)
def test_weights_go_as_trying_all_finds_and_the_others_are_the_best(
    seed: int, each: int, rows: int, width: int, share: float, free: bool
) -> None:
    groups = problem(seed, each, rows, width)
    pattern = Pattern() if free else Pattern(3, 1, None)
    count = pattern.count(groups.rows.shape, share)
    found = prune_groups(groups, pattern, count)
    exact = slowly(groups, pattern, count)
    small = [
        np.flatnonzero(row == 0).tolist() for row in groups.rows * pattern.mask(np.abs(groups.rows), count)
    ]
    costs = np.array(
        [
            [least(groups.grams[index // rows], groups.rows[index], gone) for index, gone in enumerate(goes)]
            for goes in (exact, small)
        ]
    )
    worse = (
        np.greater(*costs)
        if pattern.keep is not None
        else np.full(len(exact), np.greater(*costs.sum(axis=1)))
    )
    for index, by_magnitude in enumerate(worse):
        gone = small[index] if by_magnitude else exact[index]
        assert np.flatnonzero(found[index] == 0).tolist() == sorted(gone)
        change = found[index] - groups.rows[index]
        moved = change @ groups.grams[index // rows] @ change
        assert moved == pytest.approx(costs[int(by_magnitude), index], rel=1e-5, abs=1e-9)


@given(seeds, st.integers(1, 30), st.integers(1, 2), st.integers(2, 9), st.floats(0, 0.9), st.booleans())
@settings(max_examples=40, deadline=None)
def test_counts_are_met_and_magnitude_is_never_better(
    seed: int, each: int, rows: int, width: int, share: float, free: bool
) -> None:
    groups = problem(seed, each, rows, width)
    pattern = Pattern() if free else Pattern(4, 2, None)
    count = pattern.count(groups.rows.shape, share)
    plain = groups.rows * pattern.mask(np.abs(groups.rows), count)
    for by_outputs in (True, False):
        for compensate in (True, False):
            found = prune_groups(groups, pattern, count, by_outputs=by_outputs, compensate=compensate)
            assert (found == 0).sum() == count
            lost, bound = groups.errors(found), groups.errors(plain)
            assert lost.sum() <= bound.sum() * (1 + 1e-9)
            if not by_outputs:
                np.testing.assert_array_equal(found == 0, plain == 0)
            if not compensate:
                stays = found != 0
                np.testing.assert_array_equal(found[stays], groups.rows[stays])


def test_costs_are_those_of_the_first_to_go() -> None:
    groups = problem(1, 3, 2, 5)
    for compensate in (True, False):
        costs = groups.costs(compensate=compensate)
        for index, row in enumerate(groups.rows):
            gram = groups.grams[index // 2]
            for c in range(5):
                bare = row[c] ** 2 * gram[c, c]
                assert costs[index, c] == pytest.approx(least(gram, row, [c]) if compensate else bare)


def test_too_few_rows_and_too_long_ones_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Moments(4, 0)
    few.update(np.ones((15, 4)), np.ones((15, 0)))
    assert Groups.of(np.ones((2, 4)), [few, few]) is None
    few.update(np.ones((1, 4)), np.ones((1, 0)))
    assert Groups.of(np.ones((2, 4)), [few, few]) is not None
    monkeypatch.setattr("edgepress.compressor.numerics.elimination.MOST_STEPS", 100)
    assert Groups.of(np.ones((2, 4)), [few, few]) is None


def test_pieces_of_the_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = problem(4, 5, 3, 6)
    whole = prune_groups(groups, Pattern(), 50)
    monkeypatch.setattr("edgepress.compressor.numerics.elimination.STATE", 80)
    np.testing.assert_allclose(prune_groups(groups, Pattern(), 50), whole, rtol=1e-12)
