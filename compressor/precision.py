"""What 8 bits do to the structure as it is, and how few of the sites that they hurt must be spared.

Where 8 bits break the budget, the sites they hurt most are spared: float arithmetic, weights in half precision.
"""

from collections.abc import Callable, Sequence

from edgepress.compressor.allocate import Precision
from edgepress.compressor.choice import Candidate
from edgepress.compressor.context import exactly
from edgepress.compressor.passes import Pass, Quantize, StoreWeights
from edgepress.compressor.passes.rounding import HALF
from edgepress.compressor.passes.store import weights_of
from edgepress.compressor.search import Search
from edgepress.compressor.sites import find_sites
from edgepress.compressor.tails import dynamic_pays
from edgepress.compressor.tasks import most_harmed


def settle(search: Search) -> None:
    """Judge 8 bits on the structure as it is: cheap to know, and good to have whatever time is left after.

    Args:
        search: that has not run; what is spared here is in all that follows.
    """
    original, target = search.trials.original, search.target
    stored = search.judge("weights in 8 bits", search.tail("float"))
    if not search.accepts(stored):
        names = sorted({weight.readers[0] for weight in weights_of(original)})
        worst = most_harmed(search.trials, names, lambda name: StoreWeights(HALF, ((name, 8),)))
        stored, search.half = _sparing(search, stored, worst, lambda some: search.tail("float", half=some))
        if (
            not search.accepts(stored) and search.late()
        ):  # there is no time to find out which need more than 8 bits
            search.half = tuple(names)
            stored = search.judge("weights in half precision", search.tail("float", half=search.half))
    integer = search.judge("8-bit arithmetic", search.tail("int8"))
    if not search.accepts(integer):
        bits, names = target.weight_bits, [site.name for site in find_sites(original)]
        worst = most_harmed(search.trials, names, lambda name: Quantize(bits, sites=(exactly(name),)))
        # All but one, at most: without any it is the other candidate.
        spared = _sparing(search, integer, worst[:-1], lambda some: search.tail("int8", leave=some))
        integer, search.leave = spared
    found: dict[Precision, Candidate] = {"float": stored, "int8": integer}
    enough = search.fitting is not None or (search.trials.dear and search.accepts(integer))
    if not enough and dynamic_pays(original, search.shapes, target, search.trials.full.leave):
        found["dynamic"] = search.judge("8-bit products by ranges of each input", search.tail("dynamic"))
    kept = {precision: c for precision, c in found.items() if search.accepts(c)}
    search.settled = tuple(kept.values())
    search.integer = {precision: c for precision, c in kept.items() if precision != "float"}


def _sparing(
    search: Search,
    none: Candidate,
    worst: Sequence[str],
    tail: Callable[[tuple[str, ...]], tuple[Pass, ...]],
) -> tuple[Candidate, tuple[str, ...]]:
    """The candidate that spares the fewest sites, and those; where none keeps the budget, that without any."""

    def spared(sites: Sequence[str]) -> Candidate:
        label = f"{none.label} but for {len(sites)} sites"
        search.progress("precision", 0.0, label)
        return search.judge(label, tail(tuple(sorted(sites))))

    best, sites = fewest(worst, spared, search.accepts, search.late)
    return best or none, tuple(sorted(sites))


def fewest(
    worst: Sequence[str],
    spared: Callable[[Sequence[str]], Candidate],
    accepts: Callable[[Candidate], bool],
    late: Callable[[], bool],
) -> tuple[Candidate | None, Sequence[str]]:
    """The first sites of a list that must be spared, by doubling and halving, and the candidate that does.

    Args:
        worst: those that are spared first come first.
        spared: judges the candidate that spares some.
        accepts: whether it keeps the budget.
        late: ends the search.

    Returns:
        None, and no sites, where sparing all would not do or there was no time to find out.
    """
    tried, count, best = 0, 1, None
    while tried < len(worst) and best is None and not late():
        candidate = spared(worst[:count])
        if accepts(candidate):
            best = candidate
        else:
            tried, count = count, min(2 * count, len(worst))
    while best is not None and count - tried > 1 and not late():
        middle = (tried + count) // 2
        candidate = spared(worst[:middle])
        if accepts(candidate):
            best, count = candidate, middle
        else:
            tried = middle
    return (best, worst[:count]) if best is not None else (None, [])
