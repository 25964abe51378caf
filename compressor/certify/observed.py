"""What samples showed: ranges of inputs, of outputs and of every value. Observed, and never proved."""

from collections.abc import Iterable

import numpy as np

from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.program import Program
from edgepress.compressor.protocols import Array


def hull_of(rows: Iterable[Array]) -> Interval:
    """Smallest box of one row that holds all rows.

    Args:
        rows: batches [n, *row], at least one row.
    """
    lo, hi = None, None
    for batch in rows:
        wide = batch.astype(np.float64)
        least, most = wide.min(0, keepdims=True), wide.max(0, keepdims=True)
        lo = least if lo is None else np.minimum(lo, least)
        hi = most if hi is None else np.maximum(hi, most)
    if lo is None or hi is None:
        raise ValueError("there are no rows")
    return Interval(lo, hi)


def with_margin(box: Interval, margin: float) -> Interval:
    """A box wider by a share of its width on each side."""
    return Interval(box.lo - margin * box.width, box.hi + margin * box.width)


def observed_ranges(program: Program, rows: Iterable[Array]) -> dict[str, Interval]:
    """Ranges of every value over samples: [1, *row] each.

    Args:
        program: the net.
        rows: batches [n, *row], at least one row.
    """
    found: dict[str, Interval] = {}
    for batch in rows:
        for name, x in program.ranges(Interval(*2 * (batch.astype(np.float64),))).items():
            lo, hi = x.lo.min(0, keepdims=True), x.hi.max(0, keepdims=True)
            known = found.get(name, Interval(lo, hi))
            found[name] = Interval(np.minimum(lo, known.lo), np.maximum(hi, known.hi))
    return found
