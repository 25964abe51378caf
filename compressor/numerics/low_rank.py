"""The best low-rank W for the inputs that really come, not for the weights alone.

The error that counts is on outputs. With Y = W x and S = E[(y − ȳ)(y − ȳ)ᵀ] = P Λ Pᵀ, the minimiser of E|Wx −
Ŵx|² over rank-r matrices is Ŵ = P_r (P_rᵀ W): the principal directions of the outputs, so that neither the
inputs' covariance nor its inverse is needed. With white inputs it is the truncated SVD of W (Golub & Reinsch
1970; Çallı 2017 §1.3.1).

A kernel W [out, in, rows, columns] has more unfoldings than one. Each is projected in the same way, in turn:

    channels:  W ≈ U [out, r] · V [r, in, rows, columns]
    space:     W ≈ U [out, r, 1, columns] · V [r, in, rows, 1]          (Jaderberg et al. 2014)
    Tucker-2:  W ≈ U [out, q] · K [q, p, rows, columns] · V [p, in]     (Kim et al. 2016; Tucker 1966)
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from edgepress.compressor.numerics.least_squares import solve_ridge
from edgepress.compressor.protocols import Matrix

UNSEEN = 1e-3
"""A direction that no sample excites may be excited by unseen data: it keeps this share of the plain SVD."""


@dataclass(frozen=True)
class Projection:
    """A matrix, and the directions of its outputs by what they carry.

    Attributes:
        matrix: A [rows, columns].
        directions: P [rows, k] with orthonormal columns, those that carry most first.
        carried: the variance [k] along each.
    """

    matrix: Matrix
    directions: Matrix
    carried: Matrix

    @staticmethod
    def by_outputs(matrix: Matrix, covariance: Matrix) -> "Projection":
        """Directions from S [rows, rows] of the outputs; A Aᵀ gives the truncated SVD."""
        plain = matrix @ matrix.T
        share = UNSEEN * float(np.trace(covariance)) / (float(np.trace(plain)) or 1.0)
        values, vectors = scipy.linalg.eigh(covariance + share * plain, check_finite=False)
        return Projection(matrix, vectors[:, ::-1], np.maximum(values[::-1], 0.0))

    @staticmethod
    def by_inputs(matrix: Matrix, gram: Matrix) -> "Projection":
        """Directions from G [columns, columns] of the inputs, on whichever side is smaller."""
        rows, columns = matrix.shape
        seen = matrix @ gram
        if rows <= columns:
            return Projection.by_outputs(matrix, seen @ matrix.T)
        carried = float(np.einsum("ij,ij->", seen, matrix))
        share = UNSEEN * carried / (float(np.square(matrix).sum()) or 1.0)
        values, vectors = scipy.linalg.eigh(gram + share * np.eye(columns), check_finite=False)
        root = matrix @ (vectors * np.sqrt(np.maximum(values, 0.0)))
        squares, right = scipy.linalg.eigh(root.T @ root, check_finite=False)
        directions, _ = scipy.linalg.qr(root @ right[:, ::-1], mode="economic", check_finite=False)
        return Projection(matrix, directions, np.maximum(squares[::-1], 0.0))

    def factorise(self, rank: int) -> tuple[Matrix, Matrix]:
        """U [rows, rank] with orthonormal columns and V = Uᵀ A [rank, columns], the least error on outputs."""
        u = self.directions[:, :rank]
        return u, u.T @ self.matrix

    def lost(self) -> Matrix:
        """Share of the variance lost at each rank: [k + 1], index = rank, 1 at rank 0."""
        kept = np.concatenate([[0.0], np.cumsum(self.carried)])
        lost: Matrix = np.maximum(1.0 - kept / (float(self.carried.sum()) or 1.0), 0.0)
        return lost

    def rank_for(self, energy: float) -> int:
        """The smallest rank, at least 1, that keeps this share of the variance."""
        return max(int(np.argmax(1.0 - self.lost() >= energy - 1e-9)), 1)


def unfolded_in_space(kernel: Matrix, gram: Matrix) -> Projection:
    """A [out · columns, in · rows] of a kernel.

    Args:
        kernel: W [out, in, rows, columns].
        gram: G of the inputs (channels × taps); those of its columns count as one another's like.
    """
    out, inputs, high, wide = kernel.shape
    matrix = kernel.transpose(0, 3, 1, 2).reshape(out * wide, inputs * high)
    blocks = gram.reshape(inputs, high, wide, inputs, high, wide)
    seen = np.einsum("aibcjb->aicj", blocks).reshape(inputs * high, inputs * high)
    return Projection.by_inputs(matrix, seen)


def unfolded_in_channels(kernel: Matrix, gram: Matrix) -> Projection:
    """A [out · taps, in] of a kernel [out, in, rows, columns] with G of its inputs."""
    out, inputs, high, wide = kernel.shape
    matrix = kernel.transpose(0, 2, 3, 1).reshape(out * high * wide, inputs)
    blocks = gram.reshape(inputs, high * wide, inputs, high * wide)
    return Projection.by_inputs(matrix, np.einsum("atbt->ab", blocks))


def split_in_space(kernel: Matrix, gram: Matrix, unfolded: Projection, rank: int) -> tuple[Matrix, Matrix]:
    """U [out, rank, 1, columns] and V [rank, in, rows, 1]; U is fitted to what V leaves of the inputs.

    Args:
        kernel: W [out, in, rows, columns].
        gram: G of the inputs.
        unfolded: the kernel in space.
        rank: 1 … min(out · columns, in · rows).
    """
    out, inputs, high, wide = kernel.shape
    start, v = unfolded.factorise(rank)
    features = np.einsum("rci,jk->rjcik", v.reshape(rank, inputs, high), np.eye(wide))
    start = start.reshape(out, wide, rank).swapaxes(1, 2).reshape(out, -1)
    u = _better_after(kernel.reshape(out, -1), gram, features.reshape(rank * wide, -1), start)
    return u.reshape(out, rank, 1, wide), v.reshape(rank, inputs, high, 1)


def split_by_tucker(
    kernel: Matrix, gram: Matrix, start: Matrix, thin: Matrix, unfolded: Projection, rank: int
) -> tuple[Matrix, Matrix, Matrix]:
    """U [out, q], K [q, rank, rows, columns] and V [rank, in]; U is fitted to what the others leave.

    Args:
        kernel: W [out, in, rows, columns].
        gram: G of the inputs.
        start: U [out, q], with orthonormal columns, that the outputs are projected on.
        thin: Uᵀ W [q, in, rows, columns], its outputs projected already.
        unfolded: that in channels.
        rank: 1 … in.
    """
    outer, _, high, wide = thin.shape
    mixed, v = unfolded.factorise(rank)
    core = mixed.reshape(outer, high, wide, rank).transpose(0, 3, 1, 2)
    features = np.einsum("qpij,pc->qcij", core, v).reshape(outer, -1)
    return _better_after(kernel.reshape(len(kernel), -1), gram, features, start), core, v


def best_after(weights: Matrix, gram: Matrix, features: Matrix) -> Matrix:
    """U [out, features] with the least E|W x − U T x|²: what follows a fixed linear map as well as can be.

    Args:
        weights: W [out, in].
        gram: G [in, in].
        features: T [features, in].
    """
    seen = features @ gram
    inner = seen @ features.T
    strength = 1e-9 * float(np.trace(inner)) / len(inner)
    fitted: Matrix = solve_ridge(inner, seen @ weights.T, strength).T
    return fitted


def _better_after(weights: Matrix, gram: Matrix, features: Matrix, start: Matrix) -> Matrix:
    """`best_after` as a step from a U at hand, which stays where that is exact."""
    return start + best_after(weights - start @ features, gram, features)
