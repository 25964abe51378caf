"""Weights become zero as long as every output provably stays within a limit of what it was, for all inputs in a box.

Bounds are those of `certify`: ranges of all values by interval arithmetic, the change carried along beside them, and
linear forms from the outputs back. No sample can prove that much, and none is needed but to know what the limit is a
share of (interval pruning; docs/certify.md).
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.backward import Ranges
from edgepress.compressor.certify.certificate import proved_ranges
from edgepress.compressor.certify.choose import METHODS, Task, choose
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.observed import hull_of
from edgepress.compressor.certify.program import NotCoveredError, Program, Step, read
from edgepress.compressor.certify.rewrite import rewrite
from edgepress.compressor.errors import UsageError
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns
from edgepress.compressor.protocols import Array
from edgepress.compressor.shapes import infer_shapes


@dataclass(frozen=True)
class Reset(Pass):
    """Set weights to zero, with a proved limit on how far any output moves.

    Attributes:
        limit: how far an output may move, at least 0; 0 changes nothing.
        relative: whether that is a share of the range that samples showed of it; else in its own units.
        low: least value of any input; none: the least of the samples.
        high: largest value of any input; likewise.
        method: `plain`, as interval pruning was first described, or `tight`: linear bounds, re-centred biases, prices.
        sites: regular expressions of sites that may lose weights; empty for all.
        leave: names of sites not to touch.
    """

    kind: ClassVar[str] = "reset"
    limit: float = 0.01
    relative: bool = True
    low: float | None = None
    high: float | None = None
    method: Literal["plain", "tight"] = "tight"
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.limit < float("inf"):
            raise UsageError(f"reset: limit is {self.limit}", "Choose a number of at least 0.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise UsageError(f"reset: low is {self.low} and high {self.high}", "Choose low ≤ high.")
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Set weights of `model` to zero in place."""
        if self.limit == 0:
            return Outcome(False)
        known = model.clone()
        infer_shapes(known)
        try:
            program = read(known)
            box = self._box(program, model, context)
            ranges = proved_ranges(program, box, 0.0, tight=METHODS[self.method].backward)
            limit = self._limit(program, ranges, model, context)
        except NotCoveredError as error:
            return Outcome(False, (), (Skipped(model.graph.name or "model", str(error)),))
        if not any(self._allowed(step, context) for step in program.steps):
            return Outcome(False)
        task = Task(program, box, ranges, limit, METHODS[self.method])
        found = choose(task, context.rng(), allowed=lambda step: self._allowed(step, context))
        counts = rewrite(model, found) if found.count else {}
        skipped = [
            Skipped(step.name, "none of its weights can go under the limit")
            for step in program.steps
            if self._allowed(step, context) and step.name not in counts
        ]
        return Outcome(bool(counts), tuple(counts), tuple(skipped))

    def _allowed(self, step: Step, context: Context) -> bool:
        named = not self.sites or any(re.search(pattern, step.name) for pattern in self.sites)
        return step.tunable and named and step.name not in self.leave and not context.left_by_user(step.name)

    def _box(self, program: Program, model: ir.Model, context: Context) -> Interval:
        """All inputs."""
        shape = (1, *program.row)
        if self.low is not None and self.high is not None:
            return Interval(np.full(shape, self.low), np.full(shape, self.high))
        seen = self._seen(program.input, model, context, "which inputs there are (low, high)")
        low = seen.lo.min() if self.low is None else self.low
        high = seen.hi.max() if self.high is None else self.high
        return Interval(np.full(shape, min(low, high)), np.full(shape, max(low, high)))

    def _limit(self, program: Program, ranges: Ranges, model: ir.Model, context: Context) -> Array:
        """Of each output: [K]."""
        parts = []
        for name in program.outputs:
            widths = np.ones(int(np.prod(ranges[name].shape[1:])))
            if self.relative:
                seen = self._seen(name, model, context, "what the limit is a share of")
                widths = (seen.hi - seen.lo).reshape(-1)
            parts.append(self.limit * widths)
        return np.maximum(np.concatenate(parts), np.finfo(np.float32).tiny)

    def _seen(self, name: str, model: ir.Model, context: Context, what: str) -> Interval:
        if context.stream is None:
            raise NotCoveredError(f"without samples nothing tells {what}.")
        return hull_of(now[name] for now, _ in context.stream(model, [name]))
