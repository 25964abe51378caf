"""The front: what no other beats, and a few of many that lie far apart."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search import net, prepared, search

from edgepress.compressor.choice import Candidate, Limits
from edgepress.compressor.front import foreseen, loss, points, spread, undominated
from edgepress.compressor.limits import search_within
from edgepress.compressor.options import Options
from edgepress.compressor.recipe import digest
from edgepress.compressor.trials import Trials

__all__ = ["net", "prepared"]

Named = Sequence[tuple[str, bytes]]
Rows = list[tuple[float, float, float]]
few = st.integers(0, 4).map(float)
rows = st.lists(st.tuples(few, few, few), max_size=24)


@given(rows)
@settings(deadline=None, max_examples=200)
def test_undominated_agrees_with_comparing_all_pairs(costs: Rows) -> None:
    def beats(a: int, b: int) -> bool:
        no_worse = all(x <= y for x, y in zip(costs[a], costs[b], strict=True))
        return no_worse and (costs[a] != costs[b] or a < b)

    every = range(len(costs))
    assert undominated(costs) == [b for b in every if not any(beats(a, b) for a in every if a != b)]


@given(rows.filter(bool), st.data())
@settings(deadline=None, max_examples=100)
def test_spread_takes_the_farthest_each_time(costs: Rows, data: st.DataObject) -> None:
    places = st.lists(st.integers(0, len(costs) - 1), unique=True, max_size=3)
    there, count = data.draw(places), data.draw(st.integers(0, 6))
    found = spread(costs, there, count)
    assert len(found) == len(set(found)) <= count
    assert not set(found) & set(there)
    assert len(found) == min(count, len(costs) - len(there)) or len(set(costs)) < len(costs)
    table = np.asarray(costs)
    table = (table - table.min(0)) / np.where(np.ptp(table, 0) > 0, np.ptp(table, 0), 1)
    taken = list(there)
    for index in found:
        if taken:
            away = [min(float(np.sum((row - table[other]) ** 2)) for other in taken) for row in table]
            assert away[index] == pytest.approx(max(away))
        taken.append(index)


def beats(a: Candidate, b: Candidate) -> bool:
    mine, its = ((loss(c), c.latency_ns or 0.0, len(c.data)) for c in (a, b))
    return mine != its and all(x <= y for x, y in zip(mine, its, strict=True))


def test_the_front_of_a_search(prepared: tuple[Trials, Options]) -> None:
    timed: list[str] = []

    def clock(named: Named) -> list[float]:
        timed.extend(name for name, _ in named)
        return [1000.0 + len(data) for _, data in named]

    # With less budget than most candidates need, some of those beyond it are judged, too.
    found = search(prepared, clock, budget=1.0)
    found.run()
    finalists = {key for key, c in found.seen.items() if c.data}
    front = points(found, found.timer)
    assert front[0].recipe == ()
    assert [c for c in front if c.kept] == [c for c in found.seen.values() if c.kept]
    assert all(c.data and c.latency_ns == 1000.0 + len(c.data) for c in front)
    assert all(digest(c.recipe) in timed for c in front)
    assert any(digest(c.recipe) not in finalists for c in front)
    assert any(c.estimate is not None and not c.estimate.within(1.0) for c in front)
    for one in front:
        if one.recipe and not one.kept:
            assert not any(beats(c, one) for c in found.seen.values() if c.data and loss(c) <= 5)


def test_nothing_is_built_for_the_front_when_time_is_up(prepared: tuple[Trials, Options]) -> None:
    found = search(prepared)
    found.run()
    before = [key for key, c in found.seen.items() if c.data]
    found.time_limit_hit = True
    front = points(found, found.timer)
    assert [key for key, c in found.seen.items() if c.data] == before
    assert {digest(c.recipe) for c in front} <= set(before)
    assert any(c.kept for c in front)


def test_what_is_foreseen_follows_the_recipe(prepared: tuple[Trials, Options]) -> None:
    found = search(prepared)
    descent = found.descent("float", 0.5)
    costs = []
    for state in descent.path():
        latency, size = foreseen(found, found._recipe(state, "float"))
        expected = descent.costs(state, range(len(descent.layers))) + np.asarray(descent.fixed)
        assert (latency, size) == pytest.approx(tuple(expected))
        costs.append(size)
    assert costs[-1] < costs[0]


def test_a_limit_is_gone_for_though_the_objective_is_another(prepared: tuple[Trials, Options]) -> None:
    def heavy(named: Named) -> list[float]:
        """A clock by which the larger of the small ones are faster."""
        return [5000.0 if name == digest(()) else 1e6 / len(data) for name, data in named]

    free = search(prepared, heavy, budget=1.0)
    search_within(free)
    limit = min(len(c.data) for c in free.seen.values() if c.data) - 1
    bound = search(prepared, heavy, budget=1.0)
    bound.limits = Limits(size_bytes=limit)
    search_within(bound)
    kept = [c for c in bound.seen.values() if c.kept]
    assert len(kept) == 1
    assert 0 < len(kept[0].data) <= limit
    assert kept[0].model is not None
    assert kept[0].estimate is not None
    assert kept[0].estimate.within(1.0)
    assert bound.objective == "latency"


def test_a_limit_that_nothing_keeps_gives_the_nearest(prepared: tuple[Trials, Options]) -> None:
    found = search(prepared)
    found.limits = Limits(size_bytes=10)
    search_within(found)
    points(found, found.timer)
    kept = next(c for c in found.seen.values() if c.kept)
    within = [c for c in found.seen.values() if c.data and c.estimate and c.estimate.within(5.0)]
    assert len(kept.data) == min(len(c.data) for c in within)
    assert "limits" in kept.why
