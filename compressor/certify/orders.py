"""Orders in which weights might go, from what each of them may do to the outputs (interval pruning, phase 4)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.certify.affine import Affine
from edgepress.compressor.certify.derivatives import Effect
from edgepress.compressor.protocols import Array

SEGMENTS = 10


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

    def numbers(self, masks: Mapping[str, Array]) -> Array:
        """The numbers of weights that a mask a step has."""
        return np.concatenate(
            [self.of_step(name)[mask.reshape(-1)] for name, mask in masks.items()] or [np.zeros(0, np.int64)]
        )

    def of_step(self, name: str) -> Array:
        """The numbers of a step's weights."""
        at = self.names.index(name)
        first = sum(self.sizes[:at])
        return np.arange(first, first + self.sizes[at])

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
