"""Which weights become zero: as many as go under a limit on how far each output may move (interval pruning, phase 4).

`plain` is the document's way: effects sorted by length, ten segments, each shuffled; a weight goes where the sum of
effects stays within the limit. `tight` sorts by what a weight costs once its bias takes up the middle of what it
did, with a price on each output that follows from how near to its limit the last attempt came.

Either way a proposal is an order. How much of it goes is settled by the bound on the change of the whole net: the
largest part of the order for which that bound is under the limit, by bisection.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.certify.affine import Affine
from edgepress.compressor.certify.backward import Ranges
from edgepress.compressor.certify.derivatives import Effect, effects
from edgepress.compressor.certify.difference import Aligned, change
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.linear import ConvMap
from edgepress.compressor.certify.program import Program, Step
from edgepress.compressor.protocols import Array

SEGMENTS = 10


@dataclass(frozen=True)
class Method:
    """What is done of what can be.

    Attributes:
        segments: sorted in segments that are shuffled, and taken where the sum of effects fits; else by price.
        centred: biases take up the middle of what the weights did.
        backward: changes are bounded by linear forms as well as by intervals.
        rounds: how often prices of outputs are set anew.
    """

    segments: bool
    centred: bool
    backward: bool
    rounds: int


PLAIN = Method(segments=True, centred=False, backward=False, rounds=1)
TIGHT = Method(segments=False, centred=True, backward=True, rounds=6)
METHODS = {"plain": PLAIN, "tight": TIGHT}


@dataclass(frozen=True, eq=False)
class Chosen:
    """Weights that go.

    Attributes:
        program: the net without them.
        gone: step → which of its weights went; bool, in the weight's layout.
        biases: step → new bias, where it takes something up.
        change: range of each output's change, proved for `box`; [K].
        limit: what it had to stay under, [K].
        of: weights that might have gone.
    """

    program: Program
    gone: dict[str, Array]
    biases: dict[str, Array]
    change: Interval
    limit: Array
    of: int

    @property
    def count(self) -> int:
        """How many weights went."""
        return sum(int(mask.sum()) for mask in self.gone.values())


@dataclass(frozen=True, eq=False)
class Proposals:
    """All weights that might go, side by side.

    Attributes:
        names: of the steps' outputs, in order.
        sizes: weights of each.
        shapes: their layouts.
        lo: least effect on each output, [K, weights].
        hi: largest.
        gone: weights that are zero already; they are no proposals, [weights].
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    lo: Array
    hi: Array
    gone: Array

    @classmethod
    def of(cls, found: list[Effect]) -> "Proposals":
        """Side by side; at least one step."""
        shapes = tuple(effect.lo.shape[1:] for effect in found)
        return cls(
            tuple(effect.step.output for effect in found),
            tuple(int(np.prod(shape)) for shape in shapes),
            shapes,
            np.concatenate([effect.lo.reshape(len(effect.lo), -1) for effect in found], 1),
            np.concatenate([effect.hi.reshape(len(effect.hi), -1) for effect in found], 1),
            np.concatenate([_weight(effect).reshape(-1) == 0 for effect in found]),
        )

    def masks(self, chosen: Array) -> dict[str, Array]:
        """Numbers of weights as a mask a step."""
        flat = np.zeros(sum(self.sizes), bool)
        flat[chosen] = True
        parts = np.split(flat, np.cumsum(self.sizes)[:-1])
        return {
            name: part.reshape(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
            if part.any()
        }


def _weight(effect: Effect) -> Array:
    if not isinstance(effect.step.rule, Affine):
        raise TypeError(f"{effect.step.name} has no weights")
    return effect.step.rule.op.weight


def by_segments(proposals: Proposals, limit: Array, rng: np.random.Generator) -> Array:
    """The document's greedy order of weights that fit together, by the sum of their effects.

    Args:
        proposals: with effects on K outputs.
        limit: [K].
        rng: shuffles segments.

    Returns:
        Numbers of the weights taken, in the order in which they were.
    """
    order = np.argsort((np.maximum(-proposals.lo, proposals.hi) / limit[:, None]).sum(0), kind="stable")
    order = order[~proposals.gone[order]]
    both = np.concatenate([proposals.hi, -proposals.lo])[:, order] / np.tile(limit, 2)[:, None]
    spent, taken = np.zeros(len(both)), list[Array]()
    for segment in np.array_split(np.arange(len(order)), SEGMENTS):
        rest = segment[rng.permutation(len(segment))]
        while len(rest):
            rest = rest[(both[:, rest] + spent[:, None] <= 1).all(0)]
            sums = np.cumsum(both[:, rest], 1) + spent[:, None]
            over = (sums > 1).any(0)
            fits = int(over.argmax()) if over.any() else len(rest)
            taken.append(order[rest[:fits]])
            spent = sums[:, fits - 1] if fits else spent
            rest = rest[fits + 1 :]
    return np.concatenate([*taken, np.zeros(0, np.int64)])


def by_price(proposals: Proposals, limit: Array, prices: Array) -> Array:
    """All weights, cheapest first: half the width of their effect on each output, at its price.

    Args:
        proposals: with effects on K outputs.
        limit: [K].
        prices: of each output, [K], relative to its limit.
    """
    cost = (prices / limit) @ (proposals.hi - proposals.lo)
    order = np.argsort(cost, kind="stable")
    return order[~proposals.gone[order]]


def without(
    program: Program, ranges: Ranges, gone: Mapping[str, Array], *, centred: bool
) -> tuple[Program, dict[str, Array]]:
    """The net without some weights; with biases that take up the middle of what they could do, if `centred`."""
    weights, biases = {}, {}
    for step in program.steps:
        if step.output not in gone or not isinstance(step.rule, Affine):
            continue
        op, mask = step.rule.op, gone[step.output]
        weights[step.output] = np.where(mask, 0.0, op.weight)
        if centred and step.biased:
            lost = op.with_weight(np.where(mask, op.weight, 0.0)).apply(ranges[step.inputs[0]].centred()[0])
            keep = step.rule.bias.ndim
            middle = lost.mean(axis=tuple(range(lost.ndim - keep)))
            middle = (
                middle.mean(axis=tuple(range(1, keep)), keepdims=True) if isinstance(op, ConvMap) else middle
            )
            biases[step.output] = (step.rule.bias + middle).astype(np.float32).astype(np.float64)
    return program.with_weights(weights, biases), biases


@dataclass(frozen=True, eq=False)
class Task:
    """What is looked for.

    Attributes:
        program: the original.
        box: inputs, one box.
        ranges: of all its values.
        limit: largest change of each output, [K].
        method: how.
    """

    program: Program
    box: Interval
    ranges: Ranges
    limit: Array
    method: Method

    def bounded(self, proposals: Proposals, chosen: Array) -> Chosen:
        """The net without these weights, and how far its outputs can be from the original's."""
        gone = proposals.masks(chosen)
        changed, biases = without(self.program, self.ranges, gone, centred=self.method.centred)
        both = Aligned(self.program, changed)
        found = change(both, self.box, known=self.ranges, tight=self.method.backward)
        flat = Interval(
            np.concatenate([part.lo.reshape(-1) for part in found]),
            np.concatenate([part.hi.reshape(-1) for part in found]),
        )
        return Chosen(changed, gone, biases, flat, self.limit, sum(proposals.sizes))

    def longest(self, proposals: Proposals, order: Array, tell: Callable[[str], None]) -> Chosen:
        """The largest part of an order that keeps the limit, up to a thousandth."""
        best, low, high = self.bounded(proposals, order[:0]), 0, len(order)
        guess = high
        while high - low > max(1, low // 1000):
            found = self.bounded(proposals, order[:guess])
            if (found.change.magnitude <= self.limit).all():
                best, low = found, guess
            else:
                high = guess
            tell(f"{best.count} weights")
            if low == len(order):
                break
            guess = (low + high + 1) // 2 if low else max(high // 4, 1)
            if guess >= high:
                break
        return best


def choose(
    task: Task,
    rng: np.random.Generator,
    tell: Callable[[str], None] = lambda detail: None,
    allowed: Callable[[Step], bool] = lambda step: True,
) -> Chosen:
    """As many weights as keep the limit.

    Args:
        task: what is looked for; the net has weights that may go.
        rng: shuffles segments.
        allowed: whether the weights of a step may go.
        tell: what goes on.
    """
    proposals = Proposals.of(
        [effect for effect in effects(task.program, task.ranges) if allowed(effect.step)]
    )
    if task.method.segments:
        return task.longest(proposals, by_segments(proposals, task.limit, rng), tell)
    prices, best = np.ones(len(task.limit)), None
    for _ in range(task.method.rounds):
        found = task.longest(proposals, by_price(proposals, task.limit, prices), tell)
        if best is None or found.count > best.count:
            best = found
        used = found.change.magnitude / task.limit
        prices = prices * np.maximum(used, 1e-3) ** 2
        prices = prices / prices.mean()
    return best or task.bounded(proposals, np.zeros(0, np.int64))
