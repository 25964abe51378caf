"""How an error in one column of weights is made good by the columns after it, for rounding and for pruning.

With G = E[x xᵀ] of the inputs, changing W by D moves the outputs by E|D x|² = tr(D G Dᵀ). Columns change one after
another, and what a column's change does to the outputs is taken up, as far as least squares can, by those that have
not had their turn yet:

    e = (w_j − q_j) / U_jj,   w_k ← w_k − e U_jk  for k > j,   G⁻¹ = Uᵀ U  (U upper triangular)

(Hassibi & Stork 1993; Frantar et al. 2023, GPTQ, algorithm 1). The sum of e² is what is lost in the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from edgepress.compressor.protocols import Array, Matrix

DAMPINGS = (0.01, 0.1, 1.0)
"""Added to the diagonal of G, as shares of its mean, the first as in Frantar, §3.3: more of it makes less good."""

ENOUGH = 4
"""With so many rows for each input the first damping will do: what it makes good comes out alike on other rows."""


def row_errors(change: Matrix, gram: Matrix) -> Matrix:
    """How far outputs move, mean square [out], when weights change by D [out, in]: the diagonal of D G Dᵀ."""
    errors: Matrix = np.einsum("oi,oi->o", change @ gram, change)
    return errors


def ridge(gram: Matrix, damping: float, least: float) -> float:
    """A share of the mean of G's diagonal, and all that could be rounding of its own."""
    return damping * max(float(np.trace(gram)), 0.0) / max(len(gram), 1) + len(gram) * least + 1e-30


@dataclass(frozen=True)
class Factors:
    """How errors of a column are made good by the columns after it.

    Attributes:
        order: columns in the order in which they have their turn [in].
        upper: U for each strength [strengths, in, in], in that order.
    """

    order: Array
    upper: Matrix

    @staticmethod
    def of(gram: Matrix, strengths: Sequence[float], order: Array | None = None) -> "Factors":
        """The factors of G + strength · I, for each strength.

        Args:
            gram: G [in, in].
            strengths: above zero; see `ridge`.
            order: of the columns; those that carry most come first where it is None.
        """
        if order is None:
            order = np.argsort(-np.diag(gram), kind="stable")
        turned = gram[np.ix_(order[::-1], order[::-1])]
        return Factors(order, np.stack([_inverse_factor(turned, each) for each in strengths]))


def _inverse_factor(turned: Matrix, strength: float) -> Matrix:
    """U, upper triangular, with (G + strength · I)⁻¹ = Uᵀ U; which grows until G is positive.

    Turned end for end, G = R Rᵀ is a Cholesky factorisation, and U = R⁻¹.

    Args:
        turned: G, its rows and columns the other way round.
        strength: above zero.
    """
    while True:
        loaded = turned.copy()
        loaded[np.diag_indices_from(loaded)] += strength
        lower, failed = scipy.linalg.lapack.dpotrf(loaded, lower=1, clean=1, overwrite_a=1)
        if not failed:
            break
        strength *= 10
    upper, _ = scipy.linalg.lapack.dtrtri(np.asfortranarray(lower[::-1, ::-1]), lower=0)
    result: Matrix = np.ascontiguousarray(upper)
    return result
