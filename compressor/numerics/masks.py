"""Which weights stay and which go, by scores: singly, n of every m, or whole blocks; exact counts, ties by place."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgepress.compressor.protocols import Array, Matrix

Mask = npt.NDArray[np.bool_]
"""True where a weight stays."""


@dataclass(frozen=True)
class Pattern:
    """Which zeros are wanted.

    Attributes:
        width: columns of a group, side by side.
        keep: of each group so many weights of a row stay at most; None where groups go whole, a given number of them.
        run: groups start afresh after so many columns, where the last may be narrower; None for a whole row.
    """

    width: int = 1
    keep: int | None = None
    run: int | None = None

    def groups(self, columns: int) -> npt.NDArray[np.int64]:
        """Columns of each group [groups, width], −1 where it is narrower."""
        run = min(self.run or columns, columns) or 1
        each = -(-run // self.width)
        inside = np.arange(each * self.width).reshape(each, self.width)
        starts = np.arange(0, columns, run)
        result = starts[:, None, None] + inside
        result[(result >= columns) | (inside >= run)] = -1
        result = result.reshape(-1, self.width)
        return result[result[:, 0] >= 0]

    def count(self, shape: tuple[int, ...], sparsity: float) -> int:
        """How many groups of W [out, in] go for a share of zeros; with `keep`, how many weights go at least.

        Args:
            shape: of W.
            sparsity: share of zeros; with `keep` it is that which says.
        """
        groups = self.groups(shape[1])
        if self.keep is not None:
            return shape[0] * int(np.maximum((groups >= 0).sum(axis=1) - self.keep, 0).sum())
        return round(sparsity * shape[0] * len(groups))

    def mask(self, scores: Matrix, count: int) -> Mask:
        """What stays of W [out, in] when weights go by their own scores alone, the least first."""
        if self.keep is not None:
            return n_m_mask(scores, self.keep, self.width, self.run)
        return block_mask(scores, self.width, count, self.run)

    def sums(self, scores: Array) -> Array:
        """Sums over groups [out, groups] of scores [out, in]."""
        sums: Array = grouped(scores, self.groups(scores.shape[1]), 0.0).sum(axis=2)
        return sums

    def met(self, weights: Array, count: int) -> bool:
        """Whether W has these zeros already."""
        held = grouped(weights != 0, self.groups(weights.shape[1]), False).sum(axis=2)
        return bool((held <= self.keep).all() if self.keep is not None else (held == 0).sum() >= count)


def n_m_mask(scores: Matrix, n: int, m: int, run: int | None = None) -> Mask:
    """What stays when of every m weights of a row, side by side, all but the n of most score go.

    Args:
        scores: [out, in], not negative.
        n: stay.
        m: in a group; of equal ones the last stay.
        run: see `Pattern`.
    """
    groups = Pattern(m, n, run).groups(scores.shape[1])
    order = np.argsort(grouped(scores, groups, -1.0), axis=2, kind="stable")
    stays = np.zeros(order.shape, bool)
    np.put_along_axis(stays, order[:, :, max(m - n, 0) :], True, axis=2)
    return flat(stays, groups, scores.shape[1])


def block_mask(scores: Matrix, block: int, count: int, run: int | None = None) -> Mask:
    """What stays when the `count` blocks of 1 × `block` weights with the least sums of scores go.

    Args:
        scores: [out, in].
        block: columns.
        count: how many go; of equal ones the first.
        run: see `Pattern`.
    """
    pattern = Pattern(block, None, run)
    return stays_of(pattern.sums(scores), pattern, count, scores.shape[1])


def share_out(costs: Sequence[Array], count: int, most: Sequence[int]) -> list[int]:
    """How many groups of each array go when the `count` that cost least go of all.

    Args:
        costs: arrays of any shapes.
        count: at most the sum of `most`.
        most: of each array; what one cannot give the others do.
    """
    result, free = [0] * len(costs), list(range(len(costs)))
    while free:
        gone = least_of(np.concatenate([costs[i].reshape(-1) for i in free]), count)
        ends = np.cumsum([costs[i].size for i in free])
        found = {i: int(part.sum()) for i, part in zip(free, np.split(gone, ends[:-1]), strict=True)}
        over = {i: most[i] for i in free if found[i] > most[i]}
        for i, some in (over or found).items():
            result[i] = some
            count -= some
        free = [i for i in free if over and i not in over]
    return result


def stays_of(costs: Array, pattern: Pattern, count: int, columns: int) -> Mask:
    """What stays [out, in] when the `count` groups that cost least go."""
    stays = np.repeat(~least_of(costs, count)[:, :, None], pattern.width, axis=2)
    return flat(stays, pattern.groups(columns), columns)


def least_of(scores: Matrix, count: int) -> Mask:
    """The `count` least of scores, of equal ones the first in memory."""
    line = np.ascontiguousarray(scores).reshape(-1)
    if count <= 0 or count >= line.size:
        return np.full(scores.shape, count > 0)
    bound = np.partition(line, count - 1)[count - 1]
    result = line < bound
    equal = np.flatnonzero(line == bound)
    result[equal[: count - int(result.sum())]] = True
    least: Mask = result.reshape(scores.shape)
    return least


def grouped(values: Array, groups: npt.NDArray[np.int64], missing: float) -> Array:
    """[out, in] as [out, groups, width]."""
    result = values[:, groups]
    result[:, groups < 0] = missing
    return result


def flat(values: Array, groups: npt.NDArray[np.int64], columns: int) -> Array:
    """[out, groups, width] as [out, in]."""
    result = np.empty((len(values), columns), values.dtype)
    result[:, groups[groups >= 0]] = values[:, groups >= 0]
    return result
