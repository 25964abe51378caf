"""Values of rows: pure functions of an output and the truth, one number a row.

NaN and infinity in an output are a broken model: wrong, infinite loss, fidelity 0.
"""

import numpy as np
import numpy.typing as npt
import scipy.special

from edgepress.compressor.protocols import Array, Matrix

Flags = npt.NDArray[np.bool_]

LOST = -1e30
"""Margin of a class where the output is no number, or another in shape."""


def finite_rows(values: Array) -> Flags:
    """Which rows of [n, ...] have no NaN or infinity; [n]."""
    if values.dtype.kind in "biu":
        return np.ones(len(values), np.bool_)
    finite = np.isfinite(values.astype(np.float32, copy=False)).reshape(len(values), -1)
    return np.asarray(finite.all(axis=1), np.bool_)


def choice(values: Array, axis: int | None, threshold: float) -> Array:
    """The class that an output chooses.

    Args:
        values: scores with the classes on `axis`; without an axis one score a position; or integers: classes.
        axis: of the classes, or None.
        threshold: above it a single score means class 1.

    Returns:
        Class numbers, of the shape of `values` without `axis`.
    """
    if values.dtype.kind in "biu":
        return values
    return (values > threshold).astype(np.int64) if axis is None else np.argmax(values, axis)


def hits(output: Array, labels: Array, axis: int | None, threshold: float, top: int) -> Matrix:
    """Whether the label is among the `top` largest scores; equal scores count in their order, as argmax does.

    Args:
        output: [n, ...] scores, with the classes on `axis`; or see `choice`.
        labels: the shape of `output` without `axis` (or as many numbers); outside 0 … classes − 1: not
            counted.
        axis: of the classes, or None.
        threshold: see `choice`.
        top: 1 or more.

    Returns:
        [n]: 0 or 1; for maps the share of positions.
    """
    if axis is None or output.dtype.kind in "biu":
        chosen = choice(output, None, threshold)
        return _means(chosen == labels.reshape(chosen.shape), finite_rows(output))
    scores = np.moveaxis(output, axis, -1)  # [n, ..., classes]
    classes = scores.shape[-1]
    counted = (labels >= 0) & (labels < classes)
    wanted = np.where(counted, labels, 0).astype(np.int64)[..., np.newaxis]
    score = np.take_along_axis(scores, wanted, -1)
    before = (scores > score) | ((scores == score) & (np.arange(classes) < wanted))
    return _means(before.sum(axis=-1) < top, finite_rows(output), counted)


def agreement(output: Array, original: Array, axis: int | None, threshold: float) -> Matrix:
    """Whether two outputs [n, ...] choose the same class; [n], for maps the share of positions."""
    same = choice(output, axis, threshold) == choice(original, axis, threshold)
    return _means(same, finite_rows(output))


def margin(output: Array, original: Array, threshold: float) -> Matrix:
    """By how much an output prefers the class that the original chooses; negative where it chooses another.

    Args:
        output: [n, classes] scores, or [n] or [n, 1] single scores.
        original: the same of the original model; where they are probabilities, logarithms are compared.
        threshold: see `choice`.

    Returns:
        [n]; of the original itself never negative. Where the output is no number: very negative.
    """
    scores, own = _log_scores(output, original, threshold), _log_scores(original, original, threshold)
    rows = np.arange(len(scores))
    chosen = np.argmax(own, axis=1)
    of_chosen = scores[rows, chosen]
    scores[rows, chosen] = -np.inf
    with np.errstate(invalid="ignore"):
        found = of_chosen - scores.max(axis=1)
    return np.asarray(np.nan_to_num(np.where(finite_rows(output), found, -np.inf), nan=LOST), np.float64)


def cost_of_a_change(output: Array, labels: Array, threshold: float) -> Matrix:
    """Right answers that are lost where a row's answer changes to the class that comes second.

    By the original's own probabilities that is p₁ − p₂ = tanh(margin / 2), by the label 1 where it was right. Rows that
    the net was trained on make the label's too large, and margins surer than those of others, so that fewer rows look
    close: the mean of both errs less than either. Answers that come right by chance earn nothing: there are few.

    Args:
        output: of the original, as `margin` takes it.
        labels: class numbers, one a row, or one of n in one-hot form.
        threshold: see `choice`.

    Returns:
        [n], 0 … 1.
    """
    scores = _log_scores(output, output, threshold)
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = np.argmax(labels, axis=1)
    by_label = np.argmax(scores, axis=1) == labels.reshape(-1)
    by_belief = np.tanh(margin(output, output, threshold) / 2)
    return np.asarray((by_belief + by_label) / 2, np.float64)


def _log_scores(values: Array, original: Array, threshold: float) -> Matrix:
    """[n, classes] scores on a scale without ends: single ones become two, probabilities logarithms."""
    scores: Matrix = values.reshape(len(values), -1).astype(np.float64)
    reference = original.reshape(len(original), -1)
    if scores.shape[1] == 1:
        scores = np.hstack([1 - scores, scores] if threshold else [-scores, scores])
        probable = bool(threshold)
    else:
        probable = _probabilities(reference)
    return np.log(np.maximum(scores, 1e-30)) if probable else scores


def log_probabilities(scores: Matrix) -> Matrix:
    """Logarithms of the probabilities that scores stand for; [n, classes] both.

    Args:
        scores: probabilities, or else what softmax makes some of.
    """
    if _probabilities(scores):
        return np.log(np.maximum(scores, 1e-12))
    logs: Matrix = scipy.special.log_softmax(scores, axis=1)
    return logs


def _probabilities(scores: Array) -> bool:
    """Whether each row of [n, classes] scores is a distribution."""
    return bool(scores.size and scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1.0, atol=1e-3))


def squared_error(output: Array, target: Array) -> Matrix:
    """Mean over each row of (output − target)²; [n, ...] with as many numbers a row → [n]."""
    return _row_loss(np.square(_difference(output, target)))


def absolute_error(output: Array, target: Array) -> Matrix:
    """Mean over each row of |output − target|; [n, ...] with as many numbers a row → [n]."""
    return _row_loss(np.abs(_difference(output, target)))


def fidelity(output: Array, original: Array) -> Matrix:
    """1 − ‖output − original‖₂ / ‖original‖₂ a row, at least 0; [n, ...] → [n].

    A row of zeros in the original is 1 where the output is zero as well, else 0; one without numbers is 1.
    """
    if not output.size:
        return np.ones(len(output))
    away = np.sqrt(np.nan_to_num(_row_loss(np.square(_difference(output, original))), nan=np.inf))
    size = np.sqrt(_row_loss(np.square(_difference(original, np.zeros_like(original)))))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(away == 0, 0.0, away / size)
    return np.asarray(np.clip(1 - np.nan_to_num(relative, nan=np.inf), 0.0, 1.0), np.float64)


def _difference(output: Array, target: Array) -> Matrix:
    rows = len(output)
    with np.errstate(invalid="ignore"):
        difference: Matrix = output.reshape(rows, -1).astype(np.float64) - target.reshape(rows, -1)
    return difference


def _row_loss(losses: Matrix) -> Matrix:
    means = np.asarray(losses.mean(axis=1), np.float64)
    return np.where(np.isnan(means), np.inf, means)


def _means(right: Array, usable: Flags, counted: Array | None = None) -> Matrix:
    """Share of right positions a row; a row with no counted position has nothing wrong: 1."""
    rows = len(right)
    right = right.reshape(rows, -1)
    weights = np.ones(right.shape) if counted is None else counted.reshape(rows, -1).astype(np.float64)
    total = weights.sum(axis=1)
    share = np.where(total > 0, (right * weights).sum(axis=1) / np.maximum(total, 1), 1.0)
    return np.asarray(np.where(usable, share, 0.0), np.float64)
