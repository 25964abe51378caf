"""Which metric: names, defaults, and what each needs of labels and outputs.

A built-in metric is settled once, on a first batch of the original model: which output, which axis holds the
classes, what the target is. From then on it only maps a batch to values, one a row:

    top1, top5    1 where the label is the (one of the five) largest, else 0; maps: share of positions; in %
    agreement     the same against the original model's own choice
    mse, mae      mean over the row of (output − target)², |output − target|
    psnr          the row's mse; the score is 10·log₁₀(peak² / mean of all rows' mse), in dB
    fidelity      1 − ‖output − original‖₂ / ‖original‖₂, at least 0
"""

from functools import partial

import numpy as np

from edgepress.compressor import compare
from edgepress.compressor.data import Batch
from edgepress.compressor.errors import MetricError, nearest
from edgepress.compressor.protocols import Array, Matrix
from edgepress.compressor.scoring import BuiltIn, Metric, Outputs, UserMetric, cut, score_all, score_rows
from edgepress.compressor.userfunction import is_function_name, load_function

__all__ = [
    "BUILT_IN",
    "Metric",
    "Outputs",
    "fidelity",
    "is_user_metric",
    "resolve_metric",
    "score_all",
    "score_rows",
    "unread",
]

MAX_CLASSES = 100_000
MANY_LABELS = 30
"""Fewer say little about a classifier."""
BUILT_IN = ("top1", "top5", "agreement", "mse", "mae", "psnr", "fidelity")


def is_user_metric(name: str) -> bool:
    """Whether a metric is a function of the user's; `psnr:255` only looks like one."""
    return name.partition(":")[0] not in BUILT_IN and is_function_name(name)


def resolve_metric(name: str | None, outputs: Outputs, batch: Batch, output: str | None = None) -> Metric:
    """Settle the metric on a first batch of the original model.

    Args:
        name: what the user asked for (`psnr:255` sets the peak, else 1); None: by what there is. Class ids →
            top1; targets of the output's shape → psnr for pictures in 0…1, else mse; no labels (or such
            that do not fit) → agreement for one row of 2 … 100 000 classes, else fidelity.
        outputs: the original model's outputs of `batch`, in the model's order.
        batch: its feeds and labels.
        output: the output to read; None: the first of numbers.

    Returns:
        The metric.

    Raises:
        MetricError: where the name or output is unknown, or the metric does not fit labels or outputs.
    """
    outputs = cut(outputs, batch)
    output = _first(outputs) if output is None else output
    if output not in outputs:
        raise MetricError(f"the model has no output {output!r}", nearest(output, outputs))
    if name is not None and is_user_metric(name):
        return UserMetric(name, load_function(name, MetricError))
    values = outputs[output]
    if not _numeric(values):
        raise MetricError(
            f"output {output!r} holds no tensor of numbers, and built-in metrics read nothing else",
            "Name another output with --output, or score it with module:function.",
        )
    if not values.ndim or len(values) != len(batch.rows):
        raise MetricError(
            f"output {output!r} has shape {list(values.shape)} for {len(batch.rows)} rows of data",
            "Score it with module:function and whole = True, or name another output with --output.",
        )
    kind, peak = (_default_kind(values, batch.labels), None) if name is None else _parse(name)
    if kind in ("top1", "top5"):
        return _classifier(kind, output, values, batch.labels)
    if kind == "agreement":
        agree = partial(compare.agreement, axis=_own_axis(values), threshold=_threshold(values))
        return BuiltIn(kind, output, agree, "%", scale=100.0, needs_reference=True)
    return fidelity(output) if kind == "fidelity" else _loss(kind, output, values, batch, peak)


def read_output(outputs: Outputs, output: str | None) -> Array | None:
    """What a built-in metric would read of these outputs; None where that holds no numbers."""
    values = outputs.get(_first(outputs) if output is None else output) if outputs else None
    return values if _numeric(values) else None


def _first(outputs: Outputs) -> str:
    """The output that is read where none is named: the first that can be read, if there is one."""
    return next((name for name, values in outputs.items() if _numeric(values)), next(iter(outputs)))


def _numeric(values: object) -> bool:
    """Whether an output is a tensor of numbers; others are sequences, maps and texts."""
    return isinstance(values, np.ndarray) and values.dtype.kind in "fbiu"


def fidelity(output: str) -> BuiltIn:
    """For an output that is held to what the original gives: 1 − relative L2 error, a row at a time."""
    return BuiltIn("fidelity", output, compare.fidelity, needs_reference=True)


def answers(outputs: Outputs, batch: Batch, output: str | None = None) -> tuple[Metric, Metric | None]:
    """What tells whether answers change, and what a change costs.

    Args:
        outputs: the original model's outputs of `batch`, of which one gives classes.
        batch: its feeds and labels.
        output: see `resolve_metric`.

    Returns:
        Margins of each row's class, with `compare.cost_of_a_change` where rows have labels; for maps and class
        numbers agreement.
    """
    agree = resolve_metric("agreement", outputs, batch, output)
    name = _first(outputs) if output is None else output
    values = cut(outputs, batch)[name]
    if values.ndim > 2 or values.dtype.kind in "biu":
        return agree, None
    threshold = _threshold(values)
    margin = partial(compare.margin, threshold=threshold)
    lead = BuiltIn("margin", name, margin, needs_reference=True, nothing_alike=compare.LOST)
    if batch.labels is None or _as_classes(batch.labels, values) is None:
        return lead, None
    return lead, BuiltIn("cost", name, partial(compare.cost_of_a_change, threshold=threshold))


def unread(metric: Metric, outputs: Outputs) -> tuple[BuiltIn, ...]:
    """Float outputs that a built-in metric does not read, each to be held to fidelity; a user's reads all.

    Args:
        metric: settled.
        outputs: of the original model.
    """
    if not isinstance(metric, BuiltIn):
        return ()
    arrays = {name: values for name, values in outputs.items() if isinstance(values, np.ndarray)}
    return tuple(
        fidelity(name)
        for name, values in arrays.items()
        if name != metric.output and values.dtype.kind == "f" and values.size and values.ndim
    )


def _parse(name: str) -> tuple[str, float | None]:
    """(psnr, 255.0) of `psnr:255`; (name, None) of other known names."""
    kind, colon, text = name.partition(":")
    if kind not in BUILT_IN or (colon and kind != "psnr"):
        raise MetricError(f"unknown metric {name!r}", nearest(name, BUILT_IN) + " Or module:function.")
    if not colon:
        return kind, None
    try:
        peak = float(text)
    except ValueError:
        peak = 0.0
    if not 0 < peak < np.inf:
        raise MetricError(f"{name!r} does not say a peak", "For example psnr:255 for targets in 0…255.")
    return kind, peak


def _default_kind(values: Array, labels: Array | None) -> str:
    if labels is not None:
        if _as_classes(labels, values) is not None:
            return "top1"
        if labels.dtype.kind == "f" and _same_size(labels, values):
            pictures = values.ndim == 4 and labels.min() >= 0 and labels.max() <= 1
            return "psnr" if pictures else "mse"
    classes = values.shape[1] if values.ndim == 2 else 0
    return "agreement" if 2 <= classes <= MAX_CLASSES or values.dtype.kind in "biu" else "fidelity"


def _as_classes(labels: Array, values: Array) -> tuple[Array, int | None] | None:
    """Labels and the output's axis of classes (None: single scores); None where they are no classes."""
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels)):
        return None
    if values.ndim == 2 and labels.shape == values.shape and values.shape[1] > 1:
        one_hot = np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()
        return (labels, 1) if one_hot else None
    if values.dtype.kind in "biu":
        return (labels, None) if _same_size(labels, values) and labels.dtype.kind in "biu" else None
    order = (values.ndim - 1, 1) if values.ndim == 3 else (1, values.ndim - 1)
    for axis in order if values.ndim > 1 else ():
        if values.shape[axis] > 1 and values.shape[:axis] + values.shape[axis + 1 :] == labels.shape:
            return labels, axis
    if _same_size(labels, values) and np.isin(labels, (0, 1)).all() and labels.dtype.kind in "biu":
        return labels, None
    return None


def _same_size(labels: Array, values: Array) -> bool:
    return len(labels) == len(values) and labels.size == values.size


def _own_axis(values: Array) -> int | None:
    if values.ndim < 2 or (values.ndim == 2 and values.shape[1] == 1):
        return None
    return values.ndim - 1 if values.ndim == 3 else 1


def _threshold(values: Array) -> float:
    """Between the classes of single scores: 0.5 for probabilities, 0 for logits."""
    return 0.5 if values.size and values.min() >= 0 and values.max() <= 1 else 0.0


def _classifier(kind: str, output: str, values: Array, labels: Array | None) -> Metric:
    if labels is None:
        raise MetricError(
            f"metric {kind} needs labels", "Save them under y in the npz file, or use agreement or fidelity."
        )
    found = _as_classes(labels, values)
    if found is None:
        raise MetricError(
            f"metric {kind}: labels {labels.dtype} {list(labels.shape)} are no classes for output "
            f"{output!r} {list(values.shape)}",
            "Labels are class numbers, one a row (or a map of them); for targets use mse, mae or psnr.",
        )
    axis = found[1]
    classes = 2 if axis is None else values.shape[axis]
    if kind == "top5" and classes <= 5:
        raise MetricError(f"metric top5: output {output!r} has {classes} classes: never wrong", "Use top1.")
    right = partial(_class_hits, axis=axis, threshold=_threshold(values), top=5 if kind == "top5" else 1)
    return BuiltIn(kind, output, right, "%", scale=100.0)


def _class_hits(output: Array, labels: Array, axis: int | None, threshold: float, top: int) -> Matrix:
    if output.ndim == 2 and output.shape[1] > 1 and labels.shape == output.shape:
        labels = np.argmax(labels, axis=1)
    if output.ndim == 2 and axis is not None:
        classes = output.shape[1]
        bad = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(bad):
            raise MetricError(
                f"label {labels[bad[0]]} for an output of {classes} classes",
                f"Labels are class numbers 0 … {classes - 1}.",
            )
    return compare.hits(output, labels, axis, threshold, top)


def _loss(kind: str, output: str, values: Array, batch: Batch, peak: float | None) -> Metric:
    """mse, mae or psnr, against labels of the output's size or, without such, against the input itself."""
    target_input: str | None = None
    target = batch.labels
    if target is None or not _same_size(target, values):
        alike = [name for name in batch.feeds if batch.given(name).shape == values.shape]
        if len(alike) != 1 or (target is not None and target.ndim > 1):
            have = "no labels" if target is None else f"labels of shape {list(target.shape)}"
            raise MetricError(
                f"metric {kind}: {have} for output {output!r} {list(values.shape)}, no input as its target",
                "Save the targets under y, in the output's shape.",
            )
        target_input = alike[0]
        target = batch.given(target_input)
    if kind != "psnr":
        loss = compare.squared_error if kind == "mse" else compare.absolute_error
        return BuiltIn(kind, output, loss, higher_is_better=False, target_input=target_input)
    if peak is None and (largest := float(np.abs(target).max())) > 1:
        raise MetricError(
            f"metric psnr: targets reach {largest:g}, and the peak is 1 unless told",
            "Say the largest possible value, such as psnr:255.",
        )
    return BuiltIn(
        kind, output, compare.squared_error, "dB", scale=None, target_input=target_input, peak=peak or 1.0
    )


def said_of_labels(labels: Array, right: Array) -> list[str]:
    """A warning where a classifier scores no better than naming one class for all would.

    Args:
        labels: [n].
        right: how each row scored, above 0 where its label was found; [n].
    """
    score, blind = (right > 0).mean(), np.unique(labels, return_counts=True)[1].max() / len(labels)
    if len(labels) < MANY_LABELS or score > blind:
        return []
    return [
        f"The original scores {100 * score:.2f} % on the unseen rows, and naming the most frequent class alone would "
        f"score {100 * blind:.2f} %: do these labels, and the preprocessing, belong to this model?"
    ]
