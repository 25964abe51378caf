"""The best depthwise-separable kernel for the inputs that really come.

    W [out, in, taps] ≈ Ŵ,   Ŵ_c = P_c [out, m] · D_c [m, taps]          for each input channel c

D is a depthwise convolution with m filters a channel, P a pointwise one: in · m · (taps + out) multiplications a
position instead of in · taps · out (Sifre 2014; Çallı 2017 §1.4.2). For one channel alone the least E|(W_c − Ŵ_c) x_c|²
is a projection by G_cc = E[x_c x_cᵀ] (`low_rank.Projection`); with white inputs that is the truncated SVD of each W_c.
But channels are correlated, and what is lost of one can be made good by the others. So, with G of all inputs:

    P    is least squares on the features D x, over all channels at once                (`low_rank.best_after`)
    Ŵ_c  is the projection of   W_c + Σ_{b≠c} (W_b − Ŵ_b) G_bc G_cc⁻¹,   channel by channel, in rounds

Each step is exact in its own unknowns (block coordinate descent), so the error on outputs does not rise. On a VGG the
rounds take a third to a half of it away, on rows that were held out, too.
"""

import numpy as np
import scipy.linalg

from edgepress.compressor.numerics.low_rank import UNSEEN, Projection, best_after
from edgepress.compressor.protocols import Matrix

MOST_ROUNDS = 20
"""Rounds over the channels."""

WORTH_A_ROUND = 0.02
"""A round that takes a smaller share of the error away is the last."""


def loaded(kernel: Matrix, gram: Matrix, rounding: float = 0.0) -> Matrix:
    """G with a diagonal that makes it regular: unseen data may excite what no sample does.

    Args:
        kernel: W [out, in, taps].
        gram: G [in · taps, in · taps].
        rounding: a variance below which an input's is rounding.
    """
    weights = kernel.reshape(len(kernel), -1)
    carried = float(np.einsum("ij,ij->", weights @ gram, weights))
    share = UNSEEN * max(carried, 0.0) / (float(np.square(weights).sum()) or 1.0)
    regular = gram.copy()
    regular[np.diag_indices_from(regular)] += share + rounding or 1.0
    return regular


def split_depthwise(
    kernel: Matrix, gram: Matrix, multiplier: int, rounds: int = MOST_ROUNDS
) -> tuple[Matrix, Matrix]:
    """P [out, in, m] and D [in, m, taps], with as little error on the outputs as the rounds find.

    Args:
        kernel: W [out, in, taps], finite.
        gram: G [in · taps, in · taps], regular (`loaded`).
        multiplier: m, 1 … min(out, taps).
        rounds: most of them over all channels, after each of these stood alone.

    Raises:
        scipy.linalg.LinAlgError: G is far from regular.
    """
    out, inputs, taps = kernel.shape
    mixed, filters = np.zeros((out, inputs, multiplier)), np.zeros((inputs, multiplier, taps))
    for c, seen in enumerate(_own(kernel, gram)):
        mixed[:, c], filters[c] = Projection.by_inputs(kernel[:, c], seen).factorise(multiplier)
    mixed = _joint(kernel, gram, mixed, filters)
    error = lost(kernel, gram, mixed, filters)
    for _ in range(rounds):
        fresh, found = _round(kernel, gram, mixed, filters)
        fresh = _joint(kernel, gram, fresh, found)
        before, error = error, lost(kernel, gram, fresh, found)
        if error >= before:  # rounding
            break
        mixed, filters = fresh, found
        if error > (1 - WORTH_A_ROUND) * before:
            break
    return mixed, filters


def split_to_share(kernel: Matrix, gram: Matrix, energy: float, most: int) -> tuple[Matrix, Matrix] | None:
    """`split_depthwise` with the smallest m that keeps a share of the output variance.

    Args:
        kernel: W [out, in, taps], finite.
        gram: G [in · taps, in · taps], regular.
        energy: the share, above 0, up to 1.
        most: the largest m to try.

    Returns:
        P and D, or None where no such m keeps it.
    """
    found, few = None, 1
    while few <= most:  # bisected: a try of a wide convolution takes seconds
        multiplier = (few + most) // 2
        mixed, filters = split_depthwise(kernel, gram, multiplier)
        if lost(kernel, gram, mixed, filters) <= 1 - energy + 1e-9:
            found, most = (mixed, filters), multiplier - 1
        else:
            few = multiplier + 1
    return found


def most_multiplier(out: int, taps: int) -> int:
    """The largest m with which two parts hold fewer weights than one: m (taps + out) < out · taps; 0 for none."""
    return (out * taps - 1) // (taps + out)


def composed(mixed: Matrix, filters: Matrix) -> Matrix:
    """Ŵ [out, in · taps] of P [out, in, m] and D [in, m, taps]."""
    product: Matrix = np.einsum("ocm,cmt->oct", mixed, filters, optimize=True).reshape(len(mixed), -1)
    return product


def lost(kernel: Matrix, gram: Matrix, mixed: Matrix, filters: Matrix) -> float:
    """Share of the output variance of W [out, in, taps] that P [out, in, m] and D [in, m, taps] lose."""
    weights = kernel.reshape(len(kernel), -1)
    missing = weights - composed(mixed, filters)
    carried = float(np.einsum("ij,ij->", weights @ gram, weights))
    return float(np.einsum("ij,ij->", missing @ gram, missing)) / (carried or 1.0)


def _own(kernel: Matrix, gram: Matrix) -> Matrix:
    """G_cc [in, taps, taps] of the channels."""
    _, inputs, taps = kernel.shape
    each = np.arange(inputs)
    blocks: Matrix = gram.reshape(inputs, taps, inputs, taps)[each, :, each]
    return blocks


def _round(kernel: Matrix, gram: Matrix, mixed: Matrix, filters: Matrix) -> tuple[Matrix, Matrix]:
    """New P and D, each channel's in turn with those of the others held."""
    taps = kernel.shape[2]
    weights = kernel.reshape(len(kernel), -1)
    missing = weights - composed(mixed, filters)  # [out, in · taps]
    mixed, filters = mixed.copy(), filters.copy()
    for c, seen in enumerate(_own(kernel, gram)):
        own = slice(c * taps, (c + 1) * taps)
        others = missing @ gram[:, own] - missing[:, own] @ seen
        made_good = scipy.linalg.solve(seen, others.T, assume_a="pos", check_finite=False).T
        projected = Projection.by_inputs(kernel[:, c] + made_good, seen)
        mixed[:, c], filters[c] = projected.factorise(filters.shape[1])
        missing[:, own] = weights[:, own] - mixed[:, c] @ filters[c]
    return mixed, filters


def _joint(kernel: Matrix, gram: Matrix, mixed: Matrix, filters: Matrix) -> Matrix:
    """P [out, in, m] fitted over all channels: a step from the P at hand, which stays where that is exact."""
    features = scipy.linalg.block_diag(*filters)  # [in · m, in · taps]
    missing = kernel.reshape(len(kernel), -1) - composed(mixed, filters)
    step = best_after(missing, gram, features)
    return np.asarray(mixed + step.reshape(mixed.shape))
