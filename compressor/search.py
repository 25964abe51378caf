"""From options to the model that is shipped.

1. Allocation gives, for each precision, a path of ever smaller models (allocate.py).
2. Each path is bisected by real evaluation for its smallest model within the budget (trials.py), then refined.
3. Where 8 bits break the budget, the sites they hurt most are spared (precision.py).
4. The finalists are fitted to all samples and timed against the original, interleaved, on the device; what does
   not pay is dropped, and if nothing pays the original stays.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edgepress.compressor.allocate import Descent, Precision, State, Weighing
from edgepress.compressor.choice import LATENCY_SHARE, NONE, Candidate, Limits, Objective, Weigher, chosen
from edgepress.compressor.cost import Shapes
from edgepress.compressor.export.onnx import save
from edgepress.compressor.layers import unchanged
from edgepress.compressor.options import Options
from edgepress.compressor.passes import Pass, Quantize
from edgepress.compressor.passes.rounding import HALF
from edgepress.compressor.protocols import Footprint, Target, Tell
from edgepress.compressor.recipe import digest
from edgepress.compressor.serialize import Serialized
from edgepress.compressor.tails import Tail, exchanged, few_bits, leaving, structure_of, without
from edgepress.compressor.tasks import Built, Final, Slow
from edgepress.compressor.trials import Stopped, Trials

Fitting = Callable[[str, Serialized], Footprint]
"""Name and serialized model → what it takes of a microcontroller."""

Timer = Callable[[Sequence[tuple[str, Serialized]]], list[float]]
"""Named serialized models → nanoseconds each."""

FIRST_GUESS = 0.005
"""Predicted damage per percent of budget at which bisection begins."""

FINE = 30
"""One in so many steps of a path is near enough: refinement goes on from there."""

REFINEMENTS = 10
"""Strides tried after bisection, where samples are cheap to run; a quarter of that elsewhere."""

PATIENCE = 3
"""Failures in a row after which a path is left: who tries on and on is let through by chance in the end."""

BITS_TRIED = 6
"""Strides towards fewer bits, where they come last."""

FIRST_BITS = 3
"""Steps per weight of the first of them: 8 bits, 6, 5, 4."""

SITES_REFINED = 200
"""Refinements times sites, where that leaves at least half of the refinements."""

LAST = 3
"""Of the candidates that keep the budget so many of the last are fitted where the search is broken off."""

SPARED_TRIED = 8
"""Sites that are tried in float one by one, where costs repeat."""

CLOSE = 0.15
"""A precision whose model costs at most this much more than the other's is refined as well."""


@dataclass(frozen=True)
class Border:
    """Where a path of ever smaller models leaves the budget.

    Attributes:
        precision: of the arithmetic.
        descent: the path's.
        state: the last that keeps the budget.
        best: its candidate.
    """

    precision: Precision
    descent: Descent
    state: State
    best: Candidate


@dataclass
class Search:
    """One search; once `precision.settle` has been at it, `run` gives all candidates, the kept one among them.

    Attributes:
        trials: builds and judges.
        options: what can be turned down where; `precision.settle` does without.
        target: the device.
        objective: what is to become small.
        budget_percent: Z.
        shapes: observed for a batch of one.
        timer: times serialized models.
        progress: told what goes on.
        glance: times in less time and with more error, for what is only sorted out; None: the timer does.
        memory: peak bytes of a named serialized model, asked where memory is the objective.
        limits: what the result may take.
        fitting: what a named serialized model takes of the target where that is a microcontroller; else None. All its
            arithmetic is in 8 bits then: its interpreter has neither products by the ranges of each input nor few bits.
        deadline: `time.monotonic()` after which no new candidate is begun.
        seen: every candidate judged, by the digest of its recipe.
        time_limit_hit: whether the deadline cut the search short.
        broken_off: whether the user did.
        leave: sites that 8-bit arithmetic leaves in float, once that is settled.
        half: sites whose weights are kept in half precision where they are not in fewer bits, likewise.
        exact: whether costs repeat: they are counted, not timed.
        settled: candidates of the structure as it is that keep the budget.
        integer: those of them with 8-bit arithmetic that is not clearly slower, by precision.
    """

    trials: Trials
    options: Options
    target: Target
    objective: Objective
    budget_percent: float
    shapes: Shapes
    timer: Timer
    progress: Tell
    deadline: float = math.inf
    glance: Timer | None = None
    memory: Weigher = lambda name, data: len(data)
    limits: Limits = NONE
    fitting: Fitting | None = None
    seen: dict[str, Candidate] = field(default_factory=dict)
    time_limit_hit: bool = False
    broken_off: bool = False
    leave: tuple[str, ...] = ()
    half: tuple[str, ...] = ()
    exact: bool = False
    settled: tuple[Candidate, ...] = ()
    integer: dict[Precision, Candidate] = field(default_factory=dict)

    def run(self) -> list[Candidate]:
        """Search, and return every candidate; exactly one is kept. Where it is broken off, of what there is."""
        try:
            return self._choose(self._finalists() if not self.broken_off else self._so_far())
        except Stopped:
            self.broken_off = True
            return self._choose(self._so_far())

    def _so_far(self) -> list[Candidate]:
        """What there is to choose from where the search was broken off: paths lead to ever smaller models."""
        accepted = [c for c in self.seen.values() if self.accepts(c)]
        return [*self.settled, *accepted[-LAST:]]

    def _finalists(self) -> list[Candidate]:
        """The candidates that are worth fitting to all samples."""
        finalists = [*self.settled, *(self._variants(self.integer["int8"]) if "int8" in self.integer else ())]
        borders = self._borders()
        for border in self._promising(borders):
            refined = self._refine(border, self._refinements())
            if self.objective == "memory":  # fewer bits are unpacked somewhere: the scale tells
                finalists.append(refined.best)
            if self.objective != "size":
                refined = self._with_fewer_bits(refined)
            finalists += [refined.best, *self._variants(refined.best, {b.precision for b in borders})]
        return finalists

    def _borders(self) -> list[Border]:
        """The border of each path: one for each arithmetic, or, for size, two ways to weigh."""
        guess = FIRST_GUESS * self.budget_percent
        found: list[Border] = []

        def look(precision: Precision, share: float) -> None:
            nonlocal guess
            border = self._bisect(self.descent(precision, share), precision, guess)
            if border is not None:
                found.append(border)
                guess = border.descent.damage(border.state)

        for precision in self._precisions():
            look(precision, LATENCY_SHARE[self.objective])
        if (
            found and self.objective == "size" and not self.trials.dear
        ):  # bytes alone lead into a few large layers
            look(found[0].precision, LATENCY_SHARE["latency"])
        return found

    def _precisions(self) -> tuple[Precision, ...]:
        """The arithmetic that structures are searched for: floats, and the fastest of 8 bits."""
        if not self.integer:
            return ("float",)
        if self.fitting is not None or self.trials.dear:  # one arithmetic there; a candidate takes minutes
            return tuple(self.integer)[:1]
        if self.objective == "size":  # weights take the same bytes either way
            return ("float",)
        if self.objective == "latency":
            # Integer kernels gain where there is much to compute: never more than on the structure as it is.
            kinds: tuple[Precision, ...] = ("float", *self.integer)
            files = self.trials.results([Built(self.tail(name)) for name in kinds])
            named = [(f"fold {name}", data) for name, data in zip(kinds, files, strict=True)]
            times = dict(zip(kinds, (self.glance or self.timer)(named), strict=True))
            near = [name for name in self.integer if times[name] <= (1 + CLOSE) * times["float"]]
            self.integer = {name: self.integer[name] for name in sorted(near, key=lambda name: times[name])}
        return ("float", *tuple(self.integer)[:1])

    def _recipe(self, state: State, precision: Precision) -> tuple[Pass, ...]:
        """All passes of a state."""
        bits = self.options.bits(state, self.half)
        return self.options.recipe(state) + self.tail(precision, bits=bits)

    def tail(
        self, precision: Precision, bits: tuple[tuple[str, int], ...] | None = None,
        leave: tuple[str, ...] = (), half: tuple[str, ...] = (),
    ) -> tuple[Pass, ...]:  # fmt: skip
        """The passes that settle the precision; what is settled already holds where nothing else is said.

        `bits` are other than 8; `leave` has no 8-bit arithmetic, and `half` is in half precision without `bits`.
        """
        if bits is None:
            bits = tuple((name, HALF) for name in half or self.half)
        # Where ranges of samples hurt, those of each input may not; weights in half precision are too few bits for 8.
        halves = tuple(name for name, width in bits if width == HALF)
        spared = (leave or self.leave) if precision == "int8" else halves
        results: Literal["float", "integer"] = "float" if self.fitting is None else "integer"
        return Tail(precision, self.target, bits, spared, self.options.shared, results).passes()

    def descent(self, precision: Precision, latency: float) -> Descent:
        """The path of structures for one precision; `latency` is its weight against size."""
        fixed, held = unchanged(self.trials.original, self.shapes, self.target)
        held *= self.objective == "memory"
        in_flash = self.fitting is not None
        how = Weighing(latency, 1 - latency, precision, self.target.channel_multiple, held, in_flash)
        # Few bits are free at run time: they would go first, and what makes the model fast would find no room.
        still = () if self.objective == "size" else self._knobs("bits")
        return Descent(self.options.layers, self.options.knobs, self.target, how, fixed, frozenset(still))

    def _knobs(self, *kinds: str) -> list[int]:
        """Indices of the knobs of some kinds."""
        return [index for index, knob in enumerate(self.options.knobs) if knob.kind in kinds]

    def _bisect(self, descent: Descent, precision: Precision, guess: float) -> Border | None:
        """The smallest model of the path that keeps the budget, or None: strides from a guess, then halving.

        Args:
            descent: gives the path.
            precision: of the arithmetic.
            guess: predicted damage at which to begin.
        """
        path = descent.path()
        damages = [descent.damage(state) for state in path]
        low, high, found = 0, len(path), None
        probe, stride = max(bisect_right(damages, guess) - 1, 0), max(len(path) // 16, 1)
        while high - low > len(path) // FINE and not self.late():
            label = f"{precision}, step {probe} of {len(path) - 1}"
            candidate = self.judge(label, self._recipe(path[probe], precision))
            if self.accepts(candidate):
                found, low = Border(precision, descent, path[probe], candidate), probe + 1
            else:
                high = probe
            self.progress("search", 0.0, label)
            if found is not None and high < len(path):
                probe = (low + high) // 2
            elif found is not None:
                probe, stride = min(probe + stride, high - 1), 2 * stride
            else:  # what is lost grows about as predicted damage does
                lost = candidate.estimate.cautious if candidate.estimate is not None else 0.0
                scale = self.budget_percent / max(lost, self.budget_percent)
                straight = bisect_right(damages, damages[probe] * scale) - 1
                probe, stride = max(min(straight, probe - stride), 0), 2 * stride
        return found

    def _promising(self, borders: Sequence[Border]) -> list[Border]:
        """The borders worth refining: those whose models, as one fold built them, are not clearly beaten."""
        if len(borders) < 2:
            return list(borders)
        data = self.trials.results([Built(border.best.recipe) for border in borders])
        named = [(f"fold {digest(b.best.recipe)}", d) for b, d in zip(borders, data, strict=True)]
        if self.objective != "latency":
            sizes = [self.memory(*each) if self.objective == "memory" else len(each[1]) for each in named]
            return [borders[sizes.index(min(sizes))]]
        costs = (self.glance or self.timer)(named)
        return [b for b, cost in zip(borders, costs, strict=True) if cost <= (1 + CLOSE) * min(costs)]

    def _with_fewer_bits(self, border: Border) -> Border:
        """The same structure with weights of fewer bits; at first about four each, then by shorter strides."""
        bits, others = self._knobs("bits"), self._knobs("width", "rank")
        how = replace(border.descent.how, latency=0, size=1, held=0)
        descent = replace(border.descent, how=how, still=frozenset(others))
        return self._refine(replace(border, descent=descent), BITS_TRIED, FIRST_BITS * len(bits))

    def _refine(self, border: Border, most: int, stride: int = 1, patience: int = PATIENCE) -> Border:
        """Go on from the border, in strides that grow while the budget holds; a knob that breaks it stays.

        Args:
            border: where to begin.
            most: strides tried.
            stride: steps of the first.
            patience: failures in a row that are borne.
        """
        state, best, frozen, failures = border.state, border.best, frozenset[int](), 0
        for number in range(most):
            following = border.descent.stride(state, stride, frozen)
            if following == state or failures == patience or self.late():
                break
            label = f"{border.precision}, refinement {number + 1}"
            candidate = self.judge(label, self._recipe(following, border.precision))
            if self.accepts(candidate):
                state, best, stride, failures = following, candidate, 2 * stride, 0
            else:
                failures += 1
                frozen |= {border.descent.turned(state, following)} if stride == 1 else set()
                stride = max(stride // 2, 1)
            self.progress("search", 0.0, label)
        return replace(border, state=state, best=best)

    def _refinements(self) -> int:
        """How many; in nets of many sites each takes long and gains little."""
        if self.trials.dear:
            return REFINEMENTS // 4
        return min(REFINEMENTS, max(SITES_REFINED // max(len(self.options.layers), 1), REFINEMENTS // 2))

    def _variants(self, best: Candidate, searched: Collection[Precision] = ()) -> Iterable[Candidate]:
        """The same model without what may not pay, and in 8 bits of a kind that no structure was `searched` for."""

        def slow() -> list[str]:
            if self.fitting is not None:  # floats between integers take four times the arena
                return []
            names: list[str] = self.trials.results([Slow(structure_of(best.recipe), self.shapes)])[0]
            return names

        alone = [("some sites in float", recipe) for recipe in self._spared(best, slow)]
        others = [p for p in self.integer if searched and p not in searched and self.objective != "size"]
        tails = [(f"by {p}", self.tail(p, few_bits(best.recipe))) for p in others]
        for label, recipe in [*without(best.recipe, slow), *alone, *exchanged(best.recipe, tails)]:
            if not self.late():
                candidate = self.judge(f"{best.label}, {label}", recipe)
                if self.accepts(candidate):
                    yield candidate

    def _spared(self, best: Candidate, slow: Callable[[], list[str]]) -> Iterable[tuple[Pass, ...]]:
        """The recipe with those sites in float that are cheaper so one by one; where costs are timed noise decides."""
        places = [place for place, step in enumerate(best.recipe) if isinstance(step, Quantize)]
        if not self.exact or not places or self.trials.dear:
            return
        small = slow()
        names = small[:SPARED_TRIED]
        recipes = [best.recipe, *(leaving(best.recipe, places[0], (name,)) for name in names)]
        files = self.trials.results([Built(recipe) for recipe in recipes])
        named = [(f"fold {digest(recipe)}", data) for recipe, data in zip(recipes, files, strict=True)]
        first, *costs = self.timer(named)
        cheaper = tuple(name for name, cost in zip(names, costs, strict=True) if cost < first)
        if cheaper and set(cheaper) != set(small):
            yield leaving(best.recipe, places[0], cheaper)

    def judge(self, label: str, recipe: tuple[Pass, ...]) -> Candidate:
        """The candidate of a recipe, judged on held-out samples unless it has been."""
        key = digest(recipe)
        if key not in self.seen:
            estimate = self.trials.estimate(recipe, self.budget_percent)
            where = f"output {estimate.output!r} " if estimate.output else ""
            kept = estimate.within(self.budget_percent)
            why = "within the budget" if kept else f"{where}outside the budget on held-out samples"
            self.seen[key] = Candidate(label, recipe, estimate, why=why)
        return self.seen[key]

    def accepts(self, candidate: Candidate) -> bool:
        """Whether a candidate keeps the budget."""
        return candidate.estimate is not None and candidate.estimate.within(self.budget_percent)

    def binding_output(self) -> str:
        """The output outside the metric that stopped most candidates; empty where the metric itself stopped more."""
        stopped = [c.estimate.output for c in self.seen.values() if c.estimate and not self.accepts(c)]
        return max(sorted(set(stopped)), key=stopped.count, default="")

    def with_footprints(self, built: Sequence[Candidate]) -> list[Candidate]:
        """The same candidates, with what they take of the target, where that is a microcontroller."""
        if self.fitting is None:
            return list(built)
        return [replace(c, footprint=self.fitting(digest(c.recipe), c.data)) for c in built]

    def late(self) -> bool:
        """Whether the deadline has passed; remembered."""
        late = time.monotonic() > self.deadline
        self.time_limit_hit |= late
        return late or self.broken_off

    def _choose(self, finalists: Sequence[Candidate]) -> list[Candidate]:
        """Fit the finalists to all samples, time them with the original, keep the best."""
        model = self.trials.original
        original = Candidate("original, normalised", (), model=model, data=save(model))
        different = list({digest(c.recipe): c for c in finalists}.values())
        self.progress("fit", 0.0, f"{len(different)} candidates")
        fitted = self.trials.results([Final(candidate.recipe) for candidate in different])
        built = [original] + [
            replace(c, model=model, data=data, skipped=skipped)
            for c, (model, data, skipped) in zip(different, fitted, strict=True)
        ]
        times = self.timer([(digest(c.recipe), c.data) for c in built])
        built = [replace(c, latency_ns=ns) for c, ns in zip(built, times, strict=True)]
        built = self.with_footprints(built)
        if self.objective == "memory":
            built = [replace(c, memory_bytes=self.memory(digest(c.recipe), c.data)) for c in built]
        self.seen |= {digest(c.recipe): c for c in chosen(built, self.objective, self.limits)}
        return list(self.seen.values())
