"""Which weights become zero: as many as go under a limit on how far each output may move (interval pruning, phase 4).

`plain` is the document's way: effects sorted by length, ten segments, each shuffled; a weight goes where the sum of
effects stays within the limit. `tight` sorts by what a weight costs once its bias takes up the middle of what it
did, with a price on each output that follows from how near to its limit the last attempt came, and exchanges weights
behind which all signs can be bounded at once for others that cancel (`swaps`).

Either way a proposal is an order. How much of it goes is settled by the bound on the change of the whole net: the
largest part of the order for which that bound is under the limit, by bisection.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.certify.affine import Affine
from edgepress.compressor.certify.backward import Ranges
from edgepress.compressor.certify.cut import WORK, tail_of, work_of
from edgepress.compressor.certify.derivatives import effects
from edgepress.compressor.certify.difference import Aligned, change, joint
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.linear import ConvMap, TransposedMap
from edgepress.compressor.certify.orders import Proposals, by_price, by_segments
from edgepress.compressor.certify.program import Program, Step
from edgepress.compressor.certify.swaps import Layer, exchanged
from edgepress.compressor.protocols import Array


@dataclass(frozen=True)
class Method:
    """What is done of what can be.

    Attributes:
        segments: sorted in segments that are shuffled, and taken where the sum of effects fits; else by price.
        centred: biases take up the middle of what the weights did.
        backward: changes are bounded by linear forms as well as by intervals.
        rounds: how often prices of outputs are set anew.
        signs: changes behind two dense layers are bounded for all signs at once as well.
        exchanged: and weights there exchanged for others that cancel.
    """

    segments: bool = False
    centred: bool = False
    backward: bool = False
    rounds: int = 1
    signs: bool = False
    exchanged: bool = False


PLAIN = Method(segments=True)
TIGHT = Method(centred=True, backward=True, rounds=3, signs=True, exchanged=True)
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
                middle.mean(axis=tuple(range(1, keep)), keepdims=True)
                if isinstance(op, (ConvMap, TransposedMap))
                else middle
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
        found = change(both, self.box, known=self.ranges, tight=self.method.backward, signs=self.method.signs)
        flat = Interval(
            np.concatenate([part.lo.reshape(-1) for part in found]),
            np.concatenate([part.hi.reshape(-1) for part in found]),
        )
        return Chosen(changed, gone, biases, flat, self.limit, sum(proposals.sizes))

    def longest(
        self, proposals: Proposals, order: Array, tell: Callable[[str], None], near: int = 0
    ) -> Chosen:
        """The largest part of an order that keeps the limit, up to a thousandth; `near` is where to look first."""
        best, low, high = self.bounded(proposals, order[:0]), 0, len(order) + 1
        guess = near or len(order)
        while low < guess < high and high - low > max(1, low // 1000):
            found = self.bounded(proposals, order[:guess])
            if (found.change.magnitude <= self.limit).all():
                best, low = found, guess
            else:
                high = guess
            tell(f"{best.count} weights")
            if high > len(order):
                guess = min(len(order), low + low // 4 + 1)
            else:
                guess = (low + high) // 2 if low else max(high // 4, 1)
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
    prices, best = np.ones(len(task.limit)), task.bounded(proposals, np.zeros(0, np.int64))
    for _ in range(task.method.rounds):
        order = by_price(proposals, task.limit, prices)
        found = task.longest(proposals, order, tell, near=min(best.count, len(order)))
        best = max(best, found, key=lambda each: each.count)
        used = found.change.magnitude / task.limit
        prices = prices * np.maximum(used, 1e-3) ** 2
        prices = prices / prices.mean()
    return cancelling(task, proposals, best, prices, tell) if task.method.exchanged else best


def cancelling(
    task: Task, proposals: Proposals, best: Chosen, prices: Array, tell: Callable[[str], None]
) -> Chosen:
    """More weights, where some of the first of two dense layers can be exchanged for others; else the same.

    Args:
        task: what is looked for.
        proposals: with effects on K outputs.
        best: what was found so far.
        prices: of each output, [K].
        tell: what goes on.
    """
    outputs = task.program.outputs
    tail = tail_of(task.program, best.program, outputs[0]) if len(outputs) == 1 else None
    if tail is None or work_of(tail) > WORK:
        return best
    front = tail.front[0].output
    if front not in best.gone or not tail.front[0].biased:
        return best
    pairs = joint(Aligned(task.program, best.program), task.box, known=task.ranges)
    layer = Layer.of(tail, pairs, task.limit, best.change.magnitude)
    taken, own = proposals.numbers(best.gone), proposals.of_step(front)
    order = by_price(proposals, task.limit, prices)
    gone, might = (part[np.isin(part, own)] - own[0] for part in (taken, order))
    found = own[0] + exchanged(layer, gone, might, tell)
    made = task.longest(proposals, np.concatenate([taken[~np.isin(taken, own)], found]), tell)
    return max(made, best, key=lambda each: each.count)
