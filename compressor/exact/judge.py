"""Outputs of a device against what an exact network must answer: which layer is wrong, by how much, and at r_d or not.

Each layer is held against what the layer before it really gave, so that one fault is found in one place. Of layers that
a model does not give, what they should have given is taken.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepress.compressor.exact.cases import Case, expected
from edgepress.compressor.exact.causes import FLUSHED, TOP, cause_of
from edgepress.compressor.exact.models import ExactModel
from edgepress.compressor.exact.perturb import detected, false_alarm

Values = npt.NDArray[np.float64]

CLOSE = 0.01
"""Of a step: what is nearer to a whole number is that number; scales of integers are rounded floats."""

OPERATORS = {
    "gemm": ("Gemm", "Gemm"),
    "matmul": ("MatMul", "MatMul"),
    "conv": ("Conv 3×3", "Conv 1×1"),
    "sparse": ("sparse product", "sparse product"),
}
"""Form → its operator in the first layer, and in later ones."""


@dataclass(frozen=True)
class Deviation:
    """One layer that does not compute as it should.

    Attributes:
        layer: its number, from 1.
        operator: its kind.
        wrong: values that are wrong.
        values: of all.
        neuron: label of one that is wrong.
        row: what was fed in there, in words.
        expected: what it should have given.
        found: what it gave; None where that is no number.
        cause: what would explain all of it, or empty.
        harmless: whether it is only that subnormal numbers become 0.
    """

    layer: int
    operator: str
    wrong: int
    values: int
    neuron: str
    row: str
    expected: float
    found: float | None
    cause: str
    harmless: bool


@dataclass(frozen=True)
class Judgement:
    """What came of one model.

    Attributes:
        rows: that were run.
        wrong_rows: where other categories answer than should.
        deviations: a layer each that is wrong.
        threshold_error: largest distance of r_d found from the formula's, over all features tried; None without any.
        step: of the grid that r lies on.
        false_alarms: rows where a wrong category is on top.
    """

    rows: int
    wrong_rows: int
    deviations: tuple[Deviation, ...]
    threshold_error: float | None
    step: float
    false_alarms: int

    @property
    def right(self) -> bool:
        """Whether all is exact, but for what is harmless."""
        if self.deviations and all(each.harmless for each in self.deviations):
            return True
        late = self.threshold_error is not None and not self.threshold_error < self.step
        return not (self.deviations or self.wrong_rows or self.false_alarms or late)


def judge(case: Case, model: ExactModel, outputs: Mapping[str, npt.NDArray[Any]]) -> Judgement:
    """Hold what a device gave against the oracle.

    Args:
        case: what was run.
        model: as what.
        outputs: yL, of all rows, and those of earlier layers, where the model gives them.
    """
    got = model.layers(outputs)
    deviations = _deviations(case, model, got)
    last = got[len(case.net.weights)]
    (right,) = deque(expected(case), maxlen=1)
    wrong = ((last > 0.5) != (right > 0.5)).any(axis=1)
    error, alarms = None, 0
    if case.kind == "changed":
        error = threshold_error(case, last)
        alarms = sum(
            int(false_alarm(last[case.category == c], int(c)).sum()) for c in np.unique(case.category)
        )
    return Judgement(len(last), int(wrong.sum()), tuple(deviations), error, 1 / case.steps, alarms)


def threshold_error(case: Case, answers: Values) -> float:
    """Largest distance between the r up to which a category is lost and the formula's r_d, over its features.

    Args:
        case: of kind `changed`.
        answers: [rows, categories], of any unit.
    """
    worst = 0.0
    keys = case.category * case.rows.shape[1] + case.feature
    for key in np.unique(keys):
        mine = keys == key
        r, limit = case.r[mine], case.threshold[mine][0]
        seen = detected(answers[mine], int(case.category[mine][0]))
        lost = r[~seen]
        # A category that is seen at every r ≥ 0 has r_d below 0, or is never lost.
        last = lost.max() if len(lost) else min(limit, 0.0) if limit < 0 else -np.inf
        first = r[seen].min() if seen.any() else np.inf
        worst = max(worst, abs(last - limit), 0.0 if first > last else np.inf)
    return float(worst)


def _deviations(case: Case, model: ExactModel, got: Mapping[int, Values]) -> list[Deviation]:
    found = []
    given = np.rint(case.rows * case.steps)
    top = TOP if case.precision.integer else np.inf
    for layer, weight in enumerate(case.net.weights):
        should = np.clip((weight @ given.T).T + case.biases[layer], 0, top)
        values = got.get(layer + 1, should)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(values - should) <= CLOSE)
        if wrong.any():
            found.append(_deviation(case, model, layer, given, values, should, wrong))
        given = np.where(np.isfinite(values), np.rint(values), should)
    return found


def _deviation(
    case: Case, model: ExactModel, layer: int, given: Values, values: Values, should: Values, wrong: Any
) -> Deviation:
    row, neuron = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    cause = cause_of(case, model.form, layer, given, values, wrong)
    value = float(values[row, neuron] / case.steps)
    return Deviation(
        layer=layer + 1,
        operator=OPERATORS[model.form][min(layer, 1)],
        wrong=int(wrong.sum()),
        values=int(wrong.size),
        neuron=str(case.net.labels[layer + 1][int(neuron)]),
        row=_row_words(case, int(row)),
        expected=float(should[row, neuron] / case.steps),
        found=value if np.isfinite(value) else None,
        cause=cause,
        harmless=cause == FLUSHED,
    )


def _row_words(case: Case, row: int) -> str:
    category = case.net.labels[-1][int(case.category[row])]
    if case.kind == "changed":
        return f"{category} with {case.net.labels[0][int(case.feature[row])]} = {case.r[row]:.6g}"
    return str(category) if row < case.clean else f"{category} with other features, or a faint one"
