"""The best low-rank W for the inputs that really come, not for the weights alone.

The error that counts is on outputs. With Y = W x and S = E[(y − ȳ)(y − ȳ)ᵀ] = P Λ Pᵀ, the minimiser of E|Wx −
Ŵx|² over rank-r matrices is Ŵ = P_r (P_rᵀ W): the principal directions of the outputs, so that neither the
inputs' covariance nor its inverse is needed. With white inputs it is the truncated SVD of W (Golub & Reinsch
1970; Çallı 2017 §1.3.1).
"""

import numpy as np
import scipy.linalg

from edgepress.compressor.protocols import Matrix


def directions(weights: Matrix, covariance: Matrix) -> tuple[Matrix, Matrix]:
    """Output directions by the variance that they carry, largest first.

    Args:
        weights: W [out, in].
        covariance: S [out, out] of the outputs.

    Returns:
        P [out, out] with orthonormal columns, and the variance [out] along each.
    """
    plain = weights @ weights.T
    # A direction that no sample excites may be excited by unseen data: it keeps its share of the plain SVD.
    share = 1e-3 * float(np.trace(covariance)) / (float(np.trace(plain)) or 1.0)
    values, vectors = scipy.linalg.eigh(covariance + share * plain, check_finite=False)
    return vectors[:, ::-1], np.maximum(values[::-1], 0.0)


def factorise(weights: Matrix, covariance: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Split W into U [out, rank] and V [rank, in] with the least error on outputs.

    Args:
        weights: W [out, in].
        covariance: S [out, out] of the outputs; W Wᵀ gives the truncated SVD.
        rank: 1 … min(out, in).

    Returns:
        U with orthonormal columns, and V = Uᵀ W.
    """
    u = directions(weights, covariance)[0][:, :rank]
    return u, u.T @ weights


def discarded(weights: Matrix, covariance: Matrix) -> Matrix:
    """Share of the output variance lost at each rank: [out + 1], index = rank, 1 at rank 0."""
    values = directions(weights, covariance)[1]
    kept = np.concatenate([[0.0], np.cumsum(values)])
    lost: Matrix = np.maximum(1.0 - kept / (float(values.sum()) or 1.0), 0.0)
    return lost
