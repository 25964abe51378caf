"""Weights of a dense layer exchanged for others whose signs cancel, where all signs are bounded at once (`cut`).

What a weight costs there hangs on which others go: with u and t, the factors of an output's bound, a weight c = rⱼ Gₙⱼ
Mₖₙ adds c uⱼ·tₙ, and ½ (h c)² (1/aⱼ + 1/bₙ) for being there at all. From both follow, step by step, the dearest weights
that come back and the cheapest that go in their stead; a few at a time, since each changes what the others cost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from edgepress.compressor.certify.cut import ROUNDS, SMALL, Cut, Factors, Tail, cut_of, dense
from edgepress.compressor.certify.rules import Pair
from edgepress.compressor.protocols import Array

STEPS = 60
POOL = 12
"""Weights looked at, for each that goes at the beginning."""
MORE = 100_000
"""And how many at most beside those that go."""
CAUTION = 4.0
"""How much a weight's own part counts, against what others make of it: those that go together are not foreseen."""
SHARE = 0.03
"""Of the weights, how many may be exchanged in one step."""
GROWTH = 0.02
"""By how much of itself their number may change in one step."""
AIM = 0.996
"""Share of the limit that is aimed at, since what is estimated here is proved later."""


@dataclass(frozen=True, eq=False)
class Layer:
    """What is known of the layer whose weights are exchanged.

    Attributes:
        cut: the double sum, with every weight gone.
        transposed: whether weights are numbered as [hidden, in].
        limit: of each output's change, [K].
        rest: what else moves each output, [K].
    """

    cut: Cut
    transposed: bool
    limit: Array
    rest: Array

    @classmethod
    def of(cls, tail: Tail, pairs: Mapping[str, Pair], limit: Array, change: Array) -> "Layer":
        """The first of two dense layers.

        Args:
            tail: both, with some weights gone from the changed net.
            pairs: ranges of all values.
            limit: of each output's change, [K].
            change: of each output, as it is bounded now, [K].
        """
        now, (front, _) = cut_of(tail, pairs), tail.front
        moves = np.array([now.factors(k).value for k in range(len(limit))])
        radius = pairs[front.inputs[0]].x.centred()[1].reshape(-1, 1)
        whole = replace(now, c=radius * -dense(front).matrix)
        return cls(whole, dense(front).transposed, limit, np.maximum(change - moves, 0.0))

    def places(self, numbers: Array) -> tuple[Array, Array]:
        """Inputs and neurons of weights."""
        into, hidden = self.cut.c.shape
        if self.transposed:
            return np.divmod(numbers, into)[::-1]
        return np.divmod(numbers, hidden)

    def only(self, into: Array, hidden: Array) -> Cut:
        """The double sum with some weights gone, by their inputs and neurons."""
        c = sparse.csr_array((np.asarray(self.cut.c)[into, hidden], (into, hidden)), shape=self.cut.c.shape)
        return replace(self.cut, c=c)


def exchanged(layer: Layer, gone: Array, order: Array, tell: Callable[[str], None]) -> Array:
    """The largest set of weights that was met within the limit; as many as before, at the least.

    Args:
        layer: dense.
        gone: the weights to begin with, flat numbers in the layer.
        order: of all weights that may go, cheapest first.
        tell: what goes on.

    Returns:
        Flat numbers, the dearest last.
    """
    pool = np.union1d(order[: min(POOL * max(1, len(gone)), len(gone) + MORE)], gone)
    into, hidden = layer.places(pool)
    c = np.asarray(layer.cut.c)[into, hidden]
    state, best = np.isin(pool, gone), gone
    prices, starts = np.ones(len(layer.limit)), list[Array | None]([None] * len(layer.limit))
    for step in range(STEPS):
        now = layer.only(into[state], hidden[state])
        made = [now.factors(k, start, 6 if step else ROUNDS) for k, start in enumerate(starts)]
        starts = [each.v for each in made]
        used = (layer.rest + [each.value for each in made]) / layer.limit
        if not used.max() > 0:
            return best  # no output moves: there is nothing to choose by
        prices = prices * used / used.max()
        prices = prices / prices.mean()
        linear, own = costs(now, made, prices / layer.limit, (into, hidden, c))
        if used.max() <= AIM and state.sum() > len(best):
            best = pool[state][np.argsort((linear - own)[state], kind="stable")]
            tell(f"{len(best)} weights")
        state = stepped(state, linear, own, float(used.max()), SHARE * (1 - step / STEPS))
    return best


def costs(
    cut: Cut, made: list[Factors], prices: Array, weights: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """What each weight adds by what others make of it, and by itself; for outputs at their prices.

    Args:
        cut: what is gone now.
        made: factors for each output.
        prices: of each output, [K].
        weights: input, neuron and C of each.
    """
    into, hidden, c = weights
    linear, own = np.zeros(len(c)), np.zeros(len(c))
    for row, factors, price in zip(cut.weights, made, prices, strict=True):
        effect = c * row[hidden]
        if factors.value < SMALL:  # of what is gone nothing reaches the output: each weight would be alone
            own += price * np.abs(cut.half[hidden] * effect)
            continue
        # None of b is above 0 but the first where no neuron bends.
        least = 1e-6 * factors.value
        a, b = (np.maximum(each, max(0.1 * each.mean(), least)) for each in (factors.a, factors.b[1:]))
        linear += price * effect * np.einsum("ij,ij->i", factors.u[into], factors.t[hidden])
        own += price * 0.5 * (cut.half[hidden] * effect) ** 2 * (1 / a[into] + 1 / b[hidden])
    return linear, own


def stepped(state: Array, linear: Array, own: Array, used: float, share: float) -> Array:
    """Which weights are gone after one step.

    Args:
        state: which are gone; bool.
        linear: cost by what others make of each.
        own: cost of each by itself.
        used: share of the limit that is spent, of the output that comes nearest to it.
        share: of the weights, how many may be exchanged.
    """
    count = int(state.sum())
    growth = int(count * np.clip(0.5 * (AIM - used), -GROWTH, GROWTH))
    may = int(share * count) + 1
    cost = linear + CAUTION * np.where(state, -own, own)
    inside, outside = np.flatnonzero(state), np.flatnonzero(~state)
    back = inside[np.argsort(-cost[inside], kind="stable")[: may + max(0, -growth)]]
    gone = outside[np.argsort(cost[outside], kind="stable")[: may + max(0, growth)]]
    pairs = min(may, len(back), len(gone))
    worth = int((cost[gone[:pairs]] < cost[back[:pairs]]).sum())
    after = state.copy()
    after[back[: worth + max(0, -growth)]] = False
    after[gone[: worth + max(0, growth)]] = True
    return after
