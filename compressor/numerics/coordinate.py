"""Learned rounding without gradients: coordinate descent on the output error, in closed form.

With H = E[x xᵀ] of the inputs (damped), rounding a row w to q moves the output by f(q) = (w − q)ᵀ H (w − q). In one
coordinate f is a parabola: with r = H (w − q), moving q_j by k steps of size s changes it by

    Δf = k² s² H_jj − 2 k s r_j,     least at the integer nearest to r_j / (s H_jj)

inside the grid. Columns have their turn one after another, in rounds, until none moves; f never rises. It is the
problem that AdaRound (Nagel et al. 2020, eq. 10–11) relaxes and follows by gradients; here each step is exact.
"""

import numpy as np

from edgepress.compressor.numerics.steps import Steps
from edgepress.compressor.protocols import Matrix

ROUNDS = 4
"""Most rounds over all columns; the first lowers the error most, sixteen by a hundredth more than four."""

BLOCK = 32
"""Columns whose effect on the later ones is applied together: the same numbers by fewer, larger products."""

MARGIN = 1e-9
"""A gain below this share of what the step costs is rounding: it could be taken forth and back for ever."""


def descend(weights: Matrix, gram: Matrix, codes: Matrix, steps: Steps, rounds: int = ROUNDS) -> Matrix:
    """Move codes up and down, one at a time, as long as that lowers the output error of their row.

    Args:
        weights: W [rows, in].
        gram: H [in, in], with a diagonal above zero.
        codes: Q [rows, in] to begin with, integers of the grid.
        steps: the levels of these rows.
        rounds: most rounds over all columns.

    Returns:
        Codes as floats [rows, in]; no row's error is above that of the codes it began with.
    """
    result: Matrix = codes.astype(np.float64)
    active = np.arange(len(result))
    for _ in range(rounds):
        if not len(active):
            break
        some = Steps(steps.scales[active], steps.zeros[active], steps.grid, steps.block)
        current = result[active]
        residual = (weights[active] - some.values(current.T).T) @ gram
        moved = _round(current, residual, gram, some)
        result[active] = current
        active = active[moved]
    return result


def _round(codes: Matrix, residual: Matrix, gram: Matrix, steps: Steps) -> Matrix:
    """One turn for each column; changes `codes` and `residual`, H (w − q) of each row, and says which rows moved."""
    rows, columns = codes.shape
    moved = np.zeros(rows, bool)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        inside = gram[start:end, start:end]
        near, moves = residual[:, start:end].copy(), np.zeros((rows, end - start))
        for j in range(end - start):
            scales, _ = steps.at(start + j)
            wanted = near[:, j] / (scales * inside[j, j])
            k = np.rint(wanted)
            new = np.clip(codes[:, start + j] + k, steps.grid.qmin, steps.grid.qmax)
            k = new - codes[:, start + j]
            k[k * (2 * wanted - k) <= MARGIN * k * k] = 0.0
            if not k.any():
                continue
            moved |= k != 0
            codes[:, start + j] += k
            moves[:, j] = k * scales
            near -= moves[:, j, None] * inside[j]
        residual -= moves @ gram[start:end]
    return moved
