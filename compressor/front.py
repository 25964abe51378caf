"""The front: what other models the search knows, each the best for somebody.

A model is on the front where no other is at least as good in all of estimated drop, latency and size (Pareto). Of the
candidates that the search judged, within the budget or not too far beyond it, few were fitted to all samples and timed:
the finalists. Of the others those that promise most are, too, as many as are worth the time; what is beaten in truth is
dropped. Drops are estimates on held-out samples: no point but the chosen one ever meets the unseen rows.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgepress.compressor.choice import Candidate
from edgepress.compressor.limits import choose_again, kept
from edgepress.compressor.passes import Dynamic, Pass, Quantize
from edgepress.compressor.protocols import Matrix
from edgepress.compressor.recipe import digest
from edgepress.compressor.search import Search, Timer
from edgepress.compressor.structures import parts_of
from edgepress.compressor.tasks import Final
from edgepress.compressor.trials import Stopped

BUILT = 4
"""Candidates fitted to all samples for the front alone, at most."""

ONE_IN = 4
"""And at most one in so many of those that were judged: to judge one takes as long as to fit about four."""

BUILT_WHERE_DEAR = 1
"""The same where one run over the samples takes long."""

MOST = 10
"""Points shown, the original and the chosen one besides."""

REACH = 5.0
"""Candidates that lose up to so many times the budget are of interest: larger budgets are asked for next."""

LEAST_REACH_PERCENT = 5.0
"""Or so much, where the budget is small."""

_PER_SITE = (
    ("width", "widths"), ("rank", "ranks"), ("rank", "multipliers"), ("bits", "bits"), ("bits", "site_bits"),
)  # fmt: skip
"""Kinds of knobs, and the fields of passes that hold their values."""


def undominated(costs: Sequence[Sequence[float]]) -> list[int]:
    """Indices, ascending, of what nothing else beats or equals in every cost; of equals the first stays.

    Whatever beats another comes before it in lexicographic order, so each is compared with the front so far only
    (Kung, Luccio & Preparata 1975).

    Args:
        costs: a row of finite numbers each; less is better.
    """
    found: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (tuple(costs[i]), i)):
        beaten = (all(a <= b for a, b in zip(costs[j], costs[index], strict=True)) for j in found)
        if not any(beaten):
            found.append(index)
    return sorted(found)


def spread(costs: Sequence[Sequence[float]], there: Sequence[int], count: int) -> list[int]:
    """Up to `count` rows far from each other and from those that are there, farthest first (Gonzalez 1985).

    Args:
        costs: a row of finite numbers each; every column counts by its range.
        there: indices of rows that are taken already; where there are none, the first row is taken first.
        count: how many more.
    """
    if not costs:
        return []
    table: Matrix = np.asarray(costs, dtype=np.float64)
    widths = np.ptp(table, axis=0)
    table = (table - table.min(0)) / np.where(widths > 0, widths, 1.0)
    away: Matrix = np.full(len(table), np.inf)

    def take(index: int) -> None:
        np.minimum(away, np.square(table - table[index]).sum(1), out=away)

    for index in there:
        take(index)
    found: list[int] = []
    while len(found) < count and (farthest := int(np.argmax(away))) not in {*there, *found}:
        take(farthest)
        found.append(farthest)
    return found


def points(search: Search, timer: Timer) -> list[Candidate]:
    """The points of the front, the original and the chosen one always among them; by drop, then by latency.

    What is fitted for it is timed together with the original, and noted in `search.seen`; it becomes the chosen one
    only where that misses a limit.

    Args:
        search: that has run.
        timer: for what is fitted for the front alone.
    """
    try:
        fresh = _fitted(search, _promising(search))
    except Stopped:
        search.broken_off, fresh = True, []
    if fresh:
        start = search.seen[digest(())]
        times = timer([(digest(c.recipe), c.data) for c in (start, *fresh)])
        for candidate, ns in zip(fresh, times[1:], strict=True):
            search.seen[digest(candidate.recipe)] = replace(candidate, latency_ns=ns)
        for candidate in search.with_footprints([search.seen[digest(c.recipe)] for c in fresh]):
            search.seen[digest(candidate.recipe)] = candidate
        if search.limits.missed(kept(search)):
            choose_again(search)
    built = [c for c in search.seen.values() if _of_interest(c, search) and c.data]
    costs = [_true_costs(c) for c in built]
    always = [index for index, c in enumerate(built) if c.kept or not c.recipe]
    front = [index for index in undominated(costs) if index not in always]
    chosen = {*always, *(front[i] for i in spread([_scaled(costs[i]) for i in front], (), MOST))}
    return [built[i] for i in sorted(chosen, key=lambda i: (bool(built[i].recipe), costs[i]))]


def loss(candidate: Candidate) -> float:
    """Estimated drop with its margin, percent; 0 of the original, which has no estimate."""
    return candidate.estimate.cautious if candidate.estimate is not None else 0.0


def _true_costs(candidate: Candidate) -> tuple[float, float, float]:
    return loss(candidate), candidate.latency_ns or 0.0, float(len(candidate.data))


def _scaled(costs: tuple[float, float, float]) -> tuple[float, float, float]:
    """Costs whose differences are alike to people: latency and size count by ratio."""
    drop, latency, size = costs
    return drop, math.log(max(latency, 1e-9)), math.log(max(size, 1.0))


def _of_interest(candidate: Candidate, search: Search) -> bool:
    """Whether it is the original, the chosen one, or lost little enough for a larger budget."""
    reach = max(REACH * search.budget_percent, LEAST_REACH_PERCENT)
    return candidate.kept or not candidate.recipe or (bool(candidate.estimate) and loss(candidate) <= reach)


def _promising(search: Search) -> list[Candidate]:
    """Candidates not fitted yet that, as predicted, are on the front and far from what is already there."""
    if search.time_limit_hit or search.late():
        return []
    judged = [c for c in search.seen.values() if _of_interest(c, search)]
    costs = [(loss(c), *foreseen(search, c.recipe)) for c in judged]
    front = undominated(costs)
    there = [place for place, index in enumerate(front) if judged[index].data]
    count = BUILT_WHERE_DEAR if search.trials.dear else min(BUILT, len(search.seen) // ONE_IN)
    picked = spread([_scaled(costs[index]) for index in front], there, count)
    return [judged[front[place]] for place in picked]


def foreseen(search: Search, recipe: Sequence[Pass]) -> tuple[float, float]:
    """Predicted nanoseconds and bytes of what a recipe of the search makes, without building it.

    Args:
        search: with its options; where those are empty, every recipe costs the same.
        recipe: of one of its candidates.
    """
    values = {
        (kind, name): value
        for step in recipe
        for kind, field in _PER_SITE
        if isinstance(pairs := getattr(step, field, ()), tuple)
        for name, value in pairs
    }
    knobs = search.options.knobs
    parts = {knob.name: parts_of(knob.form)[0] for knob in knobs if knob.kind == "rank"}
    state = tuple(
        values.get(
            (knob.kind, knob.name),
            values.get((knob.kind, f"{knob.name}{parts.get(knob.name, '')}"), knob.full),
        )
        for knob in knobs
    )
    kinds = {type(step) for step in recipe}
    descent = search.descent("int8" if Quantize in kinds else "dynamic" if Dynamic in kinds else "float", 0.5)
    descent = replace(descent, how=replace(descent.how, held=0.0))  # the file's bytes, whatever the objective
    latency, size = descent.costs(state, range(len(descent.layers))) + np.asarray(descent.fixed)
    return float(latency), float(size)


def _fitted(search: Search, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates fitted to all samples."""
    search.progress("front", 0.0, f"{len(candidates)} candidates")
    found = search.trials.results(
        [Final(candidate.recipe, "front", optional=True) for candidate in candidates]
    )
    return [
        replace(candidate, data=each[1], skipped=each[2])
        for candidate, each in zip(candidates, found, strict=True)
        if each is not None
    ]
