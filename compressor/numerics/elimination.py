"""Weights go one after another, each row for itself: optimal brain surgeon as it is written, for short rows.

Rows of grouped convolutions have few inputs, and each group its own, so there is no product of large matrices to be
had as in `sparsity`; but many rows can have their turn side by side. With G = E[x xᵀ] of a row's inputs, the weight
that goes next is the one that costs least,

    w_j² / [G⁻¹]_jj,    w ← w − w_j / [G⁻¹]_jj · [G⁻¹]_j,    G⁻¹ ← G⁻¹ − [G⁻¹]_j [G⁻¹]_jᵀ / [G⁻¹]_jj

(Hassibi & Stork 1993, eq. 5). What a row has lost by then is the sum of its costs, so all rows of a layer compete for
a number of zeros by the cost of their next one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgepress.compressor.numerics.factors import DAMPINGS, ENOUGH, ridge
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.masks import Mask, Pattern, least_of
from edgepress.compressor.protocols import Array, Matrix

STATE = 1 << 22
"""Elements of the inverses of all rows that have their turn together."""

MOST_STEPS = 1 << 31
"""Of rows · inputs³, about as many multiplications, up to which it is done: some ten seconds."""


@dataclass(frozen=True)
class Groups:
    """Rows that share inputs group by group.

    Attributes:
        weights: W [groups, rows, in], float64.
        grams: G of each group's inputs, damped [groups, in, in].
    """

    weights: Matrix
    grams: Matrix

    @staticmethod
    def of(weights: Array, moments: list[Moments]) -> "Groups | None":
        """None where there are too few rows of inputs to go by, or rows are too long.

        Args:
            weights: W [outputs, in], the rows of a group side by side.
            moments: of the inputs of each group.
        """
        first = moments[0]
        few = first.rows < ENOUGH * first.inputs
        if few or len(weights) * first.inputs**3 > MOST_STEPS:
            return None
        grams = np.stack([each.centred()[0] for each in moments])
        for gram, each in zip(grams, moments, strict=True):
            gram[np.diag_indices_from(gram)] += ridge(gram, DAMPINGS[0], each.rounding())
        return Groups(weights.reshape(len(moments), -1, first.inputs).astype(np.float64), grams)

    @property
    def rows(self) -> Matrix:
        """W [outputs, in]."""
        return self.weights.reshape(-1, self.weights.shape[2])

    def errors(self, other: Array) -> Matrix:
        """How far the outputs move, mean square [outputs], when W becomes another [outputs, in]."""
        change = self.weights - other.reshape(self.weights.shape)
        return np.asarray(np.einsum("goi,goi->go", change @ self.grams, change).reshape(-1))

    def costs(self, *, compensate: bool) -> Matrix:
        """What it costs that a weight goes and no other [outputs, in]."""
        diagonal = np.diagonal(np.linalg.inv(self.grams) if compensate else self.grams, axis1=1, axis2=2)
        squares = np.square(self.weights)
        found = squares / diagonal[:, None] if compensate else squares * diagonal[:, None]
        return np.asarray(found.reshape(self.rows.shape))


def prune_groups(
    groups: Groups, pattern: Pattern, count: int, *, by_outputs: bool = True, compensate: bool = True
) -> Matrix:
    """Zeros in the rows of groups with little error on outputs; never more of that than by magnitude.

    One weight after another, the cheapest first, may end dearer than the least magnitudes together: the better counts.

    Args:
        groups: W and the moments of its inputs.
        pattern: single weights, or n of m.
        count: how many go of all rows, as `Pattern.count` says.
        by_outputs: choose by what it costs on outputs, not by magnitude.
        compensate: change the weights that stay.

    Returns:
        Q [outputs, in].
    """
    weights = groups.rows
    stays = pattern.mask(np.abs(weights), count)
    plain = weights * stays
    if not compensate:
        found = weights * pattern.mask(groups.costs(compensate=False), count) if by_outputs else plain
    else:
        plain = _eliminated(groups, (~stays).sum(axis=1), pattern, ~stays)[0]
        if not by_outputs:
            return plain
        most = weights.shape[1] if pattern.keep is None else count // max(len(weights), 1)
        counts = np.full(len(weights), most)
        if pattern.keep is None:
            # A row's weights go in its own order: those behind a dear one wait for it.
            order = np.maximum.accumulate(_eliminated(groups, counts, pattern, None)[1], axis=1)
            counts = least_of(order, count).sum(axis=1)
        found = _eliminated(groups, counts, pattern, None)[0]
    ours, theirs = groups.errors(found), groups.errors(plain)
    if pattern.keep is not None:
        return np.where((ours <= theirs)[:, None], found, plain)
    return found if ours.sum() <= theirs.sum() else plain


def _eliminated(
    groups: Groups, counts: npt.NDArray[np.int64], pattern: Pattern, goes: Mask | None
) -> tuple[Matrix, Matrix]:
    """So many weights of each row go, those that cost least next; with `goes` just these, in any order.

    Returns:
        Q [outputs, in], and what each step cost [outputs, in], infinite where there was none.
    """
    inverse, each = np.linalg.inv(groups.grams), groups.weights.shape[1]
    result, costs = groups.rows.copy(), np.full(groups.rows.shape, np.inf)
    size = max(STATE // groups.weights.shape[2] ** 2, 1)
    for start in range(0, len(result), size):
        part = slice(start, start + size)
        of = np.arange(len(result))[part] // each
        only = None if goes is None else goes[part]
        result[part], costs[part] = _steps(result[part], inverse[of], counts[part], pattern, only)
    return result, costs


def _steps(
    weights: Matrix, inverse: Matrix, counts: npt.NDArray[np.int64], pattern: Pattern, goes: Mask | None
) -> tuple[Matrix, Matrix]:
    """`_eliminated` for some rows, each with a G⁻¹ of its own [rows, in, in], which is used up."""
    may = np.ones(weights.shape, bool) if goes is None else goes.copy()
    groups = pattern.groups(weights.shape[1])
    member = np.zeros(weights.shape[1], np.intp)
    member[groups[groups >= 0]] = np.nonzero(groups >= 0)[0]
    widths = (groups >= 0).sum(axis=1)
    quota = np.tile(
        widths if pattern.keep is None else np.maximum(widths - pattern.keep, 0), (len(weights), 1)
    )
    result, spent = weights.copy(), np.full(weights.shape, np.inf)
    for step in range(int(counts.max(initial=0))):
        live = np.flatnonzero(counts > step)
        every, diagonal = np.arange(len(live)), np.diagonal(inverse, axis1=1, axis2=2)[live]
        price = np.where(may[live] & (quota[live][:, member] > 0), np.square(result[live]) / diagonal, np.inf)
        at = price.argmin(axis=1)
        spent[live, step] = price[every, at]
        column = inverse[live, :, at]
        share = column / column[every, at][:, None]
        result[live] -= result[live, at][:, None] * share
        inverse[live] -= column[:, :, None] * share[:, None, :]
        # Out of all that follows, exactly.
        inverse[live, at, :], inverse[live, :, at], result[live, at] = 0.0, 0.0, 0.0
        inverse[live, at, at], may[live, at] = 1.0, False
        quota[live, member[at]] -= 1
    return result, spent
