"""Row by row: what a metric is, and how a model's rows are valued by some.

Values are paired: the same row of two models can be compared, which is what intervals need.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from edgepress.compressor.budget import Scale
from edgepress.compressor.compare import finite_rows
from edgepress.compressor.data import Batch
from edgepress.compressor.errors import MetricError, nearest
from edgepress.compressor.protocols import Array, Feeds, Matrix, Runner
from edgepress.compressor.userfunction import load_function

Outputs = Mapping[str, Array]


class Metric(Scale, Protocol):
    """How good a model is, row by row."""

    @property
    def unit(self) -> str:
        """Of the score: `%`, `dB`, or empty."""

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the original model's outputs."""

    @property
    def target_input(self) -> str | None:
        """The input that is its own target (reconstruction), in place of labels; None otherwise."""

    def per_row(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Matrix:
        """Values [n] of n rows; [1] where `whole`.

        Args:
            outputs: output name → [n, ...].
            labels: [n] or [n, ...], or the input that is the target.
            reference: the original model's outputs for the same rows, where needed.

        Raises:
            MetricError: where labels or outputs do not fit, or the user's function fails.
        """


Values = Callable[[Array, Array], Matrix]


@dataclass(frozen=True)
class BuiltIn:
    """A built-in metric, settled on one output.

    Attributes:
        name: as the user writes it.
        output: the output that it reads.
        compare: (output [n, ...], truth [n, ...]) → values [n].
        unit: of the score.
        higher_is_better: False for losses.
        scale: of the mean, or None for psnr.
        needs_reference: whether the truth is the original's output.
        target_input: the input that is the truth, or None.
        peak: largest target value, for psnr.
        whole: False: all are row by row.
        nothing_alike: the value of rows that are not even as large as the original's.
    """

    name: str
    output: str
    compare: Values = field(repr=False)
    unit: str = ""
    higher_is_better: bool = True
    scale: float | None = 1.0
    needs_reference: bool = False
    target_input: str | None = None
    peak: float = 1.0
    whole: bool = False
    nothing_alike: float = 0.0

    def per_row(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Matrix:
        """See `Metric`."""
        output = self._output(outputs)
        truth = (None if reference is None else self._output(reference)) if self.needs_reference else labels
        if truth is None:
            what = "the original's outputs" if self.needs_reference else "labels"
            raise MetricError(
                f"metric {self.name} needs {what}", "Without labels, use agreement or fidelity."
            )
        if len(truth) != len(output):
            raise MetricError(
                f"metric {self.name}: output {self.output!r} has {len(output)} rows for {len(truth)} of data",
                "Score it with module:function, whole = True.",
            )
        if self.needs_reference and output.shape != truth.shape:  # so many boxes, or so many others
            return np.full(len(output), self.nothing_alike)
        return self.compare(output, truth)

    def finish(self, values: Matrix) -> float:
        """See `Scale`."""
        mean = float(np.mean(values))
        if self.scale is not None:
            return self.scale * mean
        with np.errstate(divide="ignore"):
            return float(10 * np.log10(np.float64(self.peak) ** 2 / np.float64(mean)))

    def _output(self, outputs: Outputs) -> Array:
        if self.output not in outputs:
            raise MetricError(f"no output {self.output!r}", nearest(self.output, outputs))
        return outputs[self.output]


@dataclass(frozen=True)
class UserMetric:
    """The user's function: (outputs by name, labels) → one value a row, or one for all where `whole`.

    Attributes:
        name: `module:function`.
        function: the function; its attributes `whole`, `higher_is_better` and `unit` are honoured.
    """

    name: str
    function: Callable[..., Any]
    needs_reference: bool = False
    target_input: str | None = None
    scale: float | None = 1.0

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process finds the function by its name, too."""
        return _user_metric, (self.name,)

    @property
    def whole(self) -> bool:
        """The function's attribute `whole`, or False."""
        return bool(getattr(self.function, "whole", False))

    @property
    def higher_is_better(self) -> bool:
        """The function's attribute `higher_is_better`, or True."""
        return bool(getattr(self.function, "higher_is_better", True))

    @property
    def unit(self) -> str:
        """The function's attribute `unit`, or empty."""
        return str(getattr(self.function, "unit", ""))

    def per_row(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Matrix:
        """See `Metric`."""
        try:
            values = np.asarray(self.function(dict(outputs), labels), np.float64)
        except Exception as error:
            raise MetricError(
                f"metric {self.name} raised {type(error).__name__}: {error}",
                "It is called with (dict of outputs, labels or None); --debug shows where it failed.",
            ) from error
        if self.whole:
            values = values.reshape(-1)
        rows = len(labels) if labels is not None else max(_length(v) for v in outputs.values())
        wanted = 1 if self.whole else rows
        if values.shape != (wanted,):
            raise MetricError(
                f"metric {self.name} gave shape {list(values.shape)} for {rows} rows, wanted [{wanted}]",
                "Give one value a row; or set `whole = True` on the function, and give one for all.",
            )
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise MetricError(f"metric {self.name} gave {values[row]} (value {row} of a batch)")
        return values

    def finish(self, values: Matrix) -> float:
        """The mean."""
        return float(np.mean(values))


def _user_metric(name: str) -> UserMetric:
    return UserMetric(name, load_function(name, MetricError))


def score_rows(
    metric: Metric, run: Runner, batches: Iterable[Batch], reference: Callable[[Batch], Outputs] | None = None
) -> Matrix:
    """`score_all` of one metric."""
    return score_all([metric], run, batches, reference)[0]


def score_all(
    metrics: Sequence[Metric],
    run: Runner,
    batches: Iterable[Batch],
    reference: Callable[[Batch], Outputs] | None = None,
) -> list[Matrix]:
    """Run a model once over batches and value every row by each metric.

    One batch is in memory at a time, but for a metric that is `whole`: that keeps all outputs.

    Args:
        metrics: settled by `resolve_metric`.
        run: the model.
        batches: of the dataset.
        reference: the original model's outputs of a batch, where a metric needs them; None where `run` is it.

    Returns:
        For each metric its values [rows], in the order of the batches; [1] where it is `whole`.

    Raises:
        MetricError: where a metric fails or there was no batch.
        DataError: from reading.
        DeviceError: from running.
    """
    values: list[list[Matrix]] = [[] for _ in metrics]
    kept: list[tuple[Outputs, Batch]] = []
    for batch in batches:
        outputs = cut(run(batch.feeds), batch)
        compared = any(metric.needs_reference for metric in metrics)
        original = cut(reference(batch), batch) if reference is not None and compared else outputs
        for metric, found in zip(metrics, values, strict=True):
            if not metric.whole:
                found.append(metric.per_row(outputs, truth(metric, batch), original))
        if any(metric.whole for metric in metrics):
            kept.append((outputs, replace(batch, feeds={})))
    for metric, found in zip(metrics, values, strict=True):
        if metric.whole and kept:
            together = joined([outputs for outputs, _ in kept])
            labels = [batch.labels for _, batch in kept if batch.labels is not None]
            found.append(metric.per_row(together, np.concatenate(labels) if labels else None, None))
        if not found:
            raise MetricError(f"metric {metric.name}: there were no rows to score", "Give samples.")
    return [np.concatenate(found) for found in values]


@dataclass
class Watched:
    """A model that is run, and how many rows of its outputs were NaN or infinite.

    Attributes:
        run: the model.
        broken: output name → rows; only outputs that had some.
    """

    run: Runner
    broken: dict[str, int] = field(default_factory=dict)

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Run once."""
        outputs = self.run(feeds)
        for name, value in outputs.items():
            if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind == "f":
                count = int((~finite_rows(value)).sum())
                self.broken |= {name: self.broken.get(name, 0) + count} if count else {}
        return outputs


def _length(value: object) -> int:
    """Of an output's first axis; of a sequence, such as a map for each row, its own."""
    return len(value) if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim) else 1


def truth(metric: Metric, batch: Batch) -> Array | None:
    """What a metric compares a batch's outputs with: labels, or the input that is its own target."""
    return batch.labels if metric.target_input is None else batch.given(metric.target_input)


def cut(outputs: Outputs, batch: Batch) -> dict[str, Array]:
    """Outputs by row: without those that only fill a fixed batch.

    Where one row is run, all that comes out is its own, whatever the first axis says: the boxes of a picture.
    """
    if batch.whole:
        return {name: _as_row(value) for name, value in outputs.items() if isinstance(value, np.ndarray)}
    rows, fed = len(batch.rows), len(next(iter(batch.feeds.values())))
    if rows == fed == 1:
        return {name: value if _is_row(value) else _as_row(value) for name, value in outputs.items()}
    if rows == fed:
        return dict(outputs)
    return {name: value[:rows] if _length(value) == fed else value for name, value in outputs.items()}


def _is_row(value: Array) -> bool:
    """Whether an output has an axis of one row in front, or is no tensor."""
    return not isinstance(value, np.ndarray) or (value.ndim > 0 and len(value) == 1)


def _as_row(value: Array) -> Array:
    return np.asarray(value)[np.newaxis]


def joined(outputs: Sequence[Outputs]) -> dict[str, Any]:
    """Outputs of several batches as one: arrays end to end, or where rows differ in size a list of them."""
    found: dict[str, Any] = {}
    for name in outputs[0]:
        parts = [
            np.atleast_1d(p) if isinstance(p := each[name], (np.ndarray, np.generic)) else p
            for each in outputs
        ]
        alike = len({(np.shape(part)[1:], isinstance(part, np.ndarray)) for part in parts}) == 1
        found[name] = np.concatenate(parts) if alike else [row for part in parts for row in part]
    return found
