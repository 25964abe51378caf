"""Which samples keep their class for every input near them, proved by margins of each net."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.certify.backward import lower
from edgepress.compressor.certify.intervals import UNIT32, Interval
from edgepress.compressor.certify.program import Program
from edgepress.compressor.protocols import Array

ROWS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Margins:
    """Of each sample.

    Attributes:
        classes: that the first net gives the sample itself, [N].
        least: least lead of that class over any other, in any of the nets, for any input in the sample's box; [N].
    """

    classes: Array
    least: Array

    @property
    def share(self) -> float:
        """Of the samples whose class provably stays."""
        return float((self.least > 0).mean()) if len(self.least) else 0.0


def margins(
    programs: tuple[Program, ...], boxes: Iterator[tuple[Array, Interval]], unit: float = UNIT32
) -> Margins:
    """The least margins of several nets around samples.

    Args:
        programs: the original first; the last axis of their first output counts classes.
        boxes: samples [n, *row] and their boxes, a few rows at a time.
        unit: unit roundoff of the nets' arithmetic.
    """
    classes, least = [], []
    for rows, box in boxes:
        top = winners(programs[0], rows)
        classes.append(top)
        least.append(np.min([_least(program, top, box, unit) for program in programs], axis=0))
    return Margins(np.concatenate(classes), np.concatenate(least))


def winners(program: Program, rows: Array) -> Array:
    """The class with the largest output: [N]."""
    out = program.ranges(Interval(rows, rows))[program.outputs[0]]
    return np.asarray(out.centred()[0].reshape(len(rows), -1).argmax(1))


def _least(program: Program, top: Array, box: Interval, unit: float) -> Array:
    """Least lead of class `top` over the others: [N]."""
    ranges = program.ranges(box, unit)
    name = program.outputs[0]
    row = ranges[name].shape[1:]
    count = int(np.prod(row))
    others = np.array([[j for j in range(count) if j != each] for each in top])
    forms = np.zeros((len(top), count - 1, count))
    forms[np.arange(len(top)), :, top] = 1.0
    forms[np.arange(len(top))[:, None], np.arange(count - 1), others] = -1.0
    return np.asarray(lower(program, name, forms.reshape(*forms.shape[:2], *row), ranges, unit).min(1))
