"""What was proved, as a record that has everything needed to prove it again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgepress.compressor.certify.backward import Ranges, tightened
from edgepress.compressor.certify.difference import aligned, change, change_apart, comparable
from edgepress.compressor.certify.intervals import UNIT32, Interval
from edgepress.compressor.certify.program import Program
from edgepress.compressor.columns import npz_columns
from edgepress.compressor.errors import DataError
from edgepress.compressor.protocols import Array
from edgepress.compressor.report.fields import Record

FILE_NAME = "certificate.json"
BOX_NAME = "box.npz"
TIGHTEN_WORK = 5e10
"""Operations that it may take to bound ranges by hulls and linear forms: half a minute or so."""


class File(Record):
    """A model file: its bare name and what it holds."""

    name: str
    sha256: str


class Box(Record):
    """The inputs that were looked at.

    Attributes:
        source: `given`: the same interval for every element; `statistical`: what samples showed of each element,
        with a
            margin. Then the proof is about that box, and whether other inputs stay in it nobody knows.
        low: least value of any element.
        high: largest.
        margin: share of each element's width that was added on each side.
        sha256: of the file with both ends of each element, where they differ; else null.
    """

    source: Literal["given", "statistical"]
    low: float
    high: float
    margin: float = 0.0
    sha256: str | None = None


class OutputChange(Record):
    """One element of one output.

    Attributes:
        name: of the value; of what a softmax at the end reads, where that was left off.
        index: of the element in its row, flat.
        limit: how far it might have moved; null where none was asked for.
        least: least change, candidate minus original.
        most: largest.
    """

    name: str
    index: int
    limit: float | None
    least: float
    most: float


class Top1(Record):
    """Classes that provably stay.

    Attributes:
        name: of the samples.
        rows: samples looked at.
        near: how far each element of an input may be from the sample's.
        rows_certified: samples whose class is provably the same in both nets for every such input.
        share_certified: of all.
        arithmetic: what the proof is about, see `Certificate`.
    """

    name: str
    rows: int
    near: float
    rows_certified: int
    share_certified: float
    arithmetic: Literal["exact", "float32"]


class Certificate(Record):
    """How far a candidate's outputs can be from the original's.

    Attributes:
        kind: `certified`: proved for every input in the box; `observed`: worked out from ranges that samples showed
        at
            every layer, which proves nothing.
        arithmetic: `exact`: both nets as formulas over real numbers; `float32`: both as any engine computes them in
            float32, in whatever order it sums.
        compared: `together`: the change was carried along; `apart`: the nets are built differently, and their ranges
            were subtracted.
        method: of bounding: `plain` intervals or `tight`, with linear forms.
        limit: as it was asked for; null where none was.
        certified_change_max: largest change of any output; null where `kind` is `observed`.
        observed_change_max: the same where it is.
        share_reset: zeros that the candidate has more, of all weights that might have gone; null where it was given.
        weights_reset: how many, by node.
        top1: for classifiers, where samples were given for it.
    """

    schema_version: Literal[1] = 1
    tool: Literal["edgepress"] = "edgepress"
    tool_version: str
    kind: Literal["certified", "observed"]
    arithmetic: Literal["exact", "float32"]
    compared: Literal["together", "apart"]
    method: Literal["plain", "tight"]
    original: File
    candidate: File
    box: Box
    limit: str | None
    certified_change_max: float | None
    observed_change_max: float | None
    share_reset: float | None
    weights_reset: dict[str, int]
    outputs: tuple[OutputChange, ...]
    top1: Top1 | None = None

    @property
    def within_limit(self) -> bool:
        """Whether no output can move farther than its limit; true where there is none."""
        return all(o.limit is None or max(-o.least, o.most) <= o.limit for o in self.outputs)


@dataclass(frozen=True, eq=False)
class Bounds:
    """What two nets' outputs can differ by.

    Attributes:
        changes: least and largest, [1, *row] an output.
        together: whether the nets were taken together.
    """

    changes: tuple[Interval, ...]
    together: bool

    @property
    def largest(self) -> float:
        """Of any output."""
        return max(float(part.magnitude.max()) for part in self.changes)

    def rows(self, names: Sequence[str], limit: Array | None) -> tuple[OutputChange, ...]:
        """As the record has them; `limit` [K] over all outputs."""
        found: list[OutputChange] = []
        for name, part in zip(names, self.changes, strict=True):
            for index, (low, high) in enumerate(zip(part.lo.reshape(-1), part.hi.reshape(-1), strict=True)):
                allowed = None if limit is None else float(limit[len(found)])
                found.append(
                    OutputChange(name=name, index=index, limit=allowed, least=float(low), most=float(high))
                )
        return tuple(found)


def proved_ranges(program: Program, box: Interval, unit: float, *, tight: bool) -> Ranges:
    """Ranges of all values, by linear forms as well where these are affordable."""
    return tightened(program, box, unit, TIGHTEN_WORK) if tight else program.ranges(box, unit)


def bound(
    original: Program,
    candidate: Program,
    box: Interval,
    *,
    float32: bool,
    tight: bool,
    known: Ranges | None = None,
) -> Bounds:
    """How far the candidate's outputs can be from the original's.

    Args:
        original: the net.
        candidate: any other with the same input and outputs.
        box: inputs, [1, *row].
        float32: whether that holds for nets that compute in float32, else for exact ones.
        tight: by linear forms, too.
        known: ranges of the original's values, where they are known already.

    Raises:
        UsageError: their inputs or outputs differ in number or shape, or in the softmax that is left off.
    """
    comparable(original, candidate)
    unit = UNIT32 if float32 else 0.0
    both = aligned(original, candidate)
    if both is None:
        return Bounds(tuple(change_apart(original, candidate, box, unit)), together=False)
    if known is None:
        known = proved_ranges(both.original, box, unit, tight=tight)
    return Bounds(tuple(change(both, box, unit, known, tight=tight)), together=True)


def save_box(box: Interval, path: Path) -> None:
    """Both ends of each element."""
    np.savez(path, low=box.lo, high=box.hi)


def load_box(path: Path, row: tuple[int, ...]) -> Interval:
    """Read what `save_box` wrote.

    Args:
        path: the file.
        row: shape of an input's row.

    Raises:
        DataError: it is damaged, or of another net.
    """
    columns = npz_columns(path)
    ends = []
    for name in ("low", "high"):
        column = columns.get(name)
        if column is None or column.shape != (1, *row) or column.dtype != np.float64:
            raise DataError(f"{path} is no box for this model.", "Certify again.")
        with column.open() as take:
            ends.append(take(np.arange(1)))
    if not (ends[0] <= ends[1]).all():
        raise DataError(f"{path} is no box: an interval ends before it begins.", "Certify again.")
    return Interval(*ends)
