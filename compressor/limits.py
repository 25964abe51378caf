"""`--max-size`, `--max-latency`, a microcontroller's memories: the search goes where the limits are.

That is, when its own objective does not lead there.
"""

from dataclasses import replace

from edgepress.compressor.choice import NONE, Candidate, Limits, Objective, chosen
from edgepress.compressor.recipe import digest
from edgepress.compressor.search import Search
from edgepress.compressor.serialize import parse


def search_within(search: Search) -> None:
    """Search; where the result misses a limit, search for the size or the latency instead, and choose among all.

    What was judged before is not judged again. The results are in `search.seen`; exactly one is kept.

    Args:
        search: with its objective, which is the same afterwards, and its limits.
    """
    search.run()
    objective, limits = search.objective, search.limits
    wanted: tuple[tuple[Objective, Limits], ...] = (
        ("size", Limits(limits.size_bytes, None, limits.flash_bytes)),
        ("latency", Limits(None, limits.latency_ns)),
        ("memory", Limits(arena_bytes=limits.arena_bytes)),
    )
    for other, limit in wanted:
        if limit != NONE and other != objective and limit.missed(kept(search)) and not search.late():
            search.objective = other
            search.run()
            search.objective = objective
            choose_again(search)


def kept(search: Search) -> Candidate:
    """The candidate that is the result so far."""
    return next(c for c in search.seen.values() if c.kept)


def choose_again(search: Search) -> None:
    """Choose among all candidates within the budget that were fitted to all samples and timed."""
    original = search.seen[digest(())]
    others = [
        c
        for c in search.seen.values()
        if c.recipe and c.data and c.estimate is not None and c.estimate.within(search.budget_percent)
    ]
    built = search.with_footprints([original, *others])
    if search.objective == "memory":
        built = [replace(c, memory_bytes=search.memory(digest(c.recipe), c.data)) for c in built]
    for candidate in chosen(built, search.objective, search.limits):
        if candidate.kept and candidate.model is None:
            candidate = replace(candidate, model=parse(candidate.data))  # noqa: PLW2901  the same one, to be exported
        search.seen[digest(candidate.recipe)] = candidate
