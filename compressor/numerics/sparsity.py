"""Which weights go, and what those that stay must become so that the outputs keep.

Removing weights, W to Q, moves the outputs by E|(W − Q) x|² = tr((W − Q) G (W − Q)ᵀ), G = E[x xᵀ] of the inputs. A
weight, or a block B of a row, that goes costs

    w_j² / [G⁻¹]_jj,   w_B ([G⁻¹]_BB)⁻¹ w_Bᵀ

once the others of its row have made good what they can (Hassibi & Stork 1993, optimal brain surgeon). Costs of many
do not add up, so they go in stages: those that cost least, then all that stay are fitted by least squares, row by
row, and so on. With n of m, where each group must choose for itself, columns have their turn one after another
(Frantar & Alistarh 2023, SparseGPT), and the same fit ends it.
"""

import numpy as np

from edgepress.compressor.numerics.factors import DAMPINGS, ENOUGH, Factors, ridge, row_errors
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.masks import Mask, Pattern, grouped, n_m_mask, stays_of
from edgepress.compressor.protocols import Array, Matrix

ROWS = 1024
"""Rows of weights that are fitted together: it takes some ten times their memory."""

BLOCK = 64
"""Columns, about, whose updates of the later ones are applied together."""

STAGES = 8
"""In which weights go: twice as many gain some two per cent, half as many lose ten."""

STEPS = 50
"""Most steps of conjugate gradients at the end, `STEPS_BETWEEN` after each other stage."""

STEPS_BETWEEN = 8

ENOUGH_GAINED = 1e-3
"""A step that gains less than this share of what is lost is the last."""


def predicted(weights: Array, moments: Moments, pattern: Pattern, *, compensate: bool = True) -> Array:
    """What it costs that a group of weights goes and no other, in shares of what all outputs vary.

    Args:
        weights: W [out, in], finite.
        moments: of the inputs.
        pattern: its groups; all go whole.
        compensate: whether the others of its row make it good.

    Returns:
        [out, groups], float32.
    """
    gram, least = moments.centred()[0], moments.rounding()
    w, unit = _in_units(weights)[0], _carried(gram)
    gram = gram / unit
    strength = ridge(gram, DAMPINGS[0], least / unit)
    curvatures = _curvatures(gram, strength, pattern) if compensate else _blocks(gram, pattern)
    varies = float(row_errors(w.astype(np.float64), gram).sum())
    return _costs(w, curvatures, pattern) / np.float32(varies or 1.0)


def prune_to_outputs(
    weights: Array,
    fit: Moments,
    held: Moments,
    pattern: Pattern,
    count: int,
    *,
    by_outputs: bool = True,
    compensate: bool = True,
) -> Array:
    """Zeros in a matrix with little error on outputs.

    With few rows of inputs errors would vanish into directions that none of them has, and come back with the next:
    so the damping is the one that does best on held-out rows, and where none helps, plain magnitude it is. W is no
    worse than by magnitude with as many zeros of the same pattern, over all rows of inputs together; with n of m,
    where rows do not compete for zeros, no row of it is.

    Args:
        weights: W [out, in], finite.
        fit: moments of most rows of inputs.
        held: moments of the others.
        pattern: which zeros.
        count: as `Pattern.count` says.
        by_outputs: choose by what it costs on outputs, not by magnitude.
        compensate: change the weights that stay.

    Returns:
        Q [out, in], float32.
    """
    both, (w, exponent) = fit + held, _in_units(weights)
    gram = both.centred()[0]
    unit = _carried(gram)
    gram /= unit
    plain = w * pattern.mask(np.abs(w), count)

    def tried(gram: Matrix, damping: float, stages: int, chosen: bool) -> Array:
        strength = ridge(gram, damping, both.rounding() / unit)
        if not chosen:
            return _fitted(w, plain, plain != 0, gram, strength, STEPS)
        if pattern.keep is not None:
            return _fitted(w, *_swept(w, gram, strength, pattern), gram, strength, STEPS)
        return _in_stages(w, gram, strength, pattern, count, stages)

    # Groups that choose one after another may choose worse than magnitudes do.
    kinds = (True, False) if by_outputs and pattern.keep is not None else (by_outputs,)
    best: list[tuple[float, bool]] = [(DAMPINGS[0], kind) for kind in kinds]
    if compensate and fit.rows < ENOUGH * fit.inputs:
        seen, unseen = (moments.centred()[0] / unit for moments in (fit, held))
        ways = [(damping, kind) for kind in kinds for damping in DAMPINGS]
        lost = [float(row_errors(w - tried(seen, d, 1, k), unseen).sum()) for d, k in ways]
        least = int(np.argmin(lost))
        best = [ways[least]] if lost[least] < float(row_errors(w - plain, unseen).sum()) else []
    found = plain
    if compensate:
        for damping, kind in best:
            found = _better(w, tried(gram, damping, STAGES, kind), found, gram, pattern)
    elif by_outputs and not compensate:
        found = _better(w, w * _bare_mask(w, gram, pattern, count), plain, gram, pattern)
    result: Array = np.ldexp(found, exponent)
    return result


def refit_kept(
    weights: Array, start: Array, kept: Mask, gram: Array, strength: float | np.float32, steps: int
) -> Array:
    """Fit the weights that stay to the outputs by conjugate gradients, all rows side by side, each by itself.

    Every step makes tr((W − Q)(G + strength · I)(W − Q)ᵀ) smaller in every row.

    Args:
        weights: W [rows, in].
        start: Q [rows, in] to start from, zero where nothing stays.
        kept: what stays.
        gram: G [in, in].
        strength: keeps Q near W where inputs do not tell.
        steps: most steps.

    Returns:
        Q [rows, in].
    """
    result, change = start.copy(), weights - start
    power = np.diag(gram) + strength
    slope = change @ gram + strength * change
    lost = float(np.einsum("oi,oi->", change, slope, dtype=np.float64))
    residual = slope * kept
    ahead = residual / power
    direction, size = ahead, np.einsum("oi,oi->o", residual, ahead)
    for _ in range(min(steps, weights.shape[1])):
        forward = (direction @ gram + strength * direction) * kept
        bend = np.einsum("oi,oi->o", direction, forward)
        step = np.divide(size, bend, out=np.zeros_like(size), where=(bend > 0) & (size > 0))
        result += step[:, None] * direction
        residual -= step[:, None] * forward
        gained = float(step @ size)
        lost -= gained
        if gained <= ENOUGH_GAINED * lost:
            break
        ahead = residual / power
        before, size = size, np.einsum("oi,oi->o", residual, ahead)
        share = np.divide(size, before, out=np.zeros_like(size), where=before > 0)
        direction = ahead + share[:, None] * direction
    return result


def _fitted(weights: Array, start: Array, kept: Mask, gram: Matrix, strength: float, steps: int) -> Array:
    """`refit_kept`, some rows at a time, in single precision."""
    small, least = gram.astype(np.float32), np.float32(strength)
    parts = [slice(start, start + ROWS) for start in range(0, len(weights), ROWS)]
    return np.concatenate([refit_kept(weights[p], start[p], kept[p], small, least, steps) for p in parts])


def _in_stages(
    weights: Array, gram: Matrix, strength: float, pattern: Pattern, count: int, stages: int
) -> Array:
    """Groups go, those that cost least first, many at a time at first and few at the end; Q [out, in]."""
    curvatures, result = _curvatures(gram, strength, pattern), weights
    for left in range(stages - 1, -1, -1):
        goes = round(count * (1 - (left / stages) ** 2))
        # Groups that went cost nothing, so they go again.
        kept = stays_of(_costs(result, curvatures, pattern), pattern, goes, weights.shape[1])
        result = _fitted(weights, result * kept, kept, gram, strength, STEPS_BETWEEN if left else STEPS)
    return result


def _curvatures(gram: Matrix, strength: float, pattern: Pattern) -> Matrix:
    """([G⁻¹]_BB)⁻¹ of each group B [groups, width, width], zero where it is narrower."""
    factors = Factors.of(gram, [strength])
    upper, place = factors.upper[0], np.argsort(factors.order)
    inverse = upper.T @ upper
    found = _blocks(inverse[np.ix_(place, place)], pattern)
    narrow = pattern.groups(len(gram)) < 0
    index = np.arange(pattern.width)
    found[:, index, index] += narrow  # an identity where there is no column, until it is inverted
    return np.where(narrow[:, :, None] | narrow[:, None, :], 0.0, np.linalg.inv(found))


def _costs(weights: Array, curvatures: Matrix, pattern: Pattern) -> Array:
    """w_B K_B w_Bᵀ of each row and group [out, groups], float32."""
    if pattern.width == 1:
        costs: Array = np.square(weights) * curvatures[:, 0, 0].astype(np.float32)
        return costs
    w = grouped(weights, pattern.groups(weights.shape[1]), 0.0).transpose(1, 0, 2)
    found: Array = np.einsum("gow,gow->og", w @ curvatures.astype(np.float32), w)
    return np.maximum(found, 0.0)


def _bare_mask(weights: Array, gram: Matrix, pattern: Pattern, count: int) -> Mask:
    """What stays when nothing makes good what goes: it costs w_B G_BB w_Bᵀ."""
    if pattern.keep is not None:
        return pattern.mask(np.square(weights) * np.diag(gram), count)
    return stays_of(_costs(weights, _blocks(gram, pattern), pattern), pattern, count, len(gram))


def _blocks(gram: Matrix, pattern: Pattern) -> Matrix:
    """G_BB of each group B [groups, width, width], zero where it is narrower."""
    groups = pattern.groups(len(gram))
    real, at = groups >= 0, np.maximum(groups, 0)
    return np.where(real[:, :, None] & real[:, None, :], gram[at[:, :, None], at[:, None, :]], 0.0)


def _swept(weights: Array, gram: Matrix, strength: float, pattern: Pattern) -> tuple[Array, Mask]:
    """Columns have their turn one after another, groups that carry most first; n of m.

    Returns:
        Q [out, in], and what stays.
    """
    groups = pattern.groups(len(gram))
    power = np.append(np.diag(gram), 0.0)[groups].sum(axis=1)
    groups = groups[np.argsort(-power, kind="stable")]
    order = groups[groups >= 0]
    upper = Factors.of(gram, [strength], order).upper[0]
    result, kept = np.empty_like(weights), np.empty(weights.shape, bool)
    for start in range(0, len(weights), ROWS):
        left = weights[start : start + ROWS, order].T.astype(np.float64)
        gone = _sweep(left, upper, (groups >= 0).sum(axis=1), pattern.keep or 0)
        result[start : start + ROWS, order], kept[start : start + ROWS, order] = left.T, ~gone.T
    return result, kept


def _sweep(left: Matrix, upper: Matrix, widths: Array, keep: int) -> Mask:
    """Let weights go, group after group: those that cost least, w_j² / U_jj², taken up by all columns behind.

    Args:
        left: weights in the order of their turns [in, rows], changed in place.
        upper: U [in, in] in that order.
        widths: columns of each group.
        keep: how many of a group stay.

    Returns:
        What went [in, rows].
    """
    gone, errors = np.zeros(left.shape, bool), np.zeros_like(left)
    start = 0
    for end, width in zip(np.cumsum(widths), widths, strict=True):
        first = end - width
        own, across = left[first:end], upper[first:end, first:end]
        own -= upper[start:first, first:end].T @ errors[start:first]
        scores = np.square(own / np.diag(across)[:, None]).T
        gone[first:end] = ~n_m_mask(scores, keep, int(width)).T
        for j in range(width):
            errors[first + j] = np.where(gone[first + j], own[j], 0.0) / across[j, j]
            own[j + 1 :] -= across[j, j + 1 :, None] * errors[first + j]
        if end - start >= BLOCK:
            left[end:] -= upper[start:end, end:].T @ errors[start:end]
            start = end
    left[gone] = 0.0
    return gone


def _better(weights: Array, ours: Array, plain: Array, gram: Matrix, pattern: Pattern) -> Array:
    """The one that moves outputs less; with `keep`, row by row."""
    one, other = (row_errors(weights - each, gram) for each in (ours, plain))
    if pattern.keep is not None:
        return np.where((one <= other)[:, None], ours, plain)
    return ours if one.sum() <= other.sum() else plain


def _in_units(weights: Array) -> tuple[Array, int]:
    """W as W' · 2^e, exactly, with no magnitude above one: squares stay in range."""
    exponent = int(np.frexp(np.abs(weights).max(initial=0.0))[1])
    return np.ldexp(weights.astype(np.float32), -exponent), exponent


def _carried(gram: Matrix) -> float:
    """The mean variance of an input; one where there is none."""
    return max(float(np.trace(gram)), 0.0) / max(len(gram), 1) or 1.0
