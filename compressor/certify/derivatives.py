"""How much each weight matters to each output: ranges of derivatives (interval pruning, phases 2 and 3).

These only propose an order in which weights go. The document takes derivatives to stay constant while weights change,
which they do not, so what was chosen is bounded anew as a whole (`difference`), and that bound is the certificate.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.certify.affine import Affine
from edgepress.compressor.certify.backward import Ranges
from edgepress.compressor.certify.intervals import Interval, add
from edgepress.compressor.certify.linear import Linear
from edgepress.compressor.certify.program import Program, Step
from edgepress.compressor.protocols import Array


def sensitivities(program: Program, ranges: Ranges) -> dict[str, Interval]:
    """Ranges of ∂output/∂value for every value that an output hangs on: [K, *row], K over all outputs (phase 2).

    Args:
        program: without quantizers.
        ranges: of all values for one box.
    """
    sizes = [int(np.prod(ranges[name].shape[1:])) for name in program.outputs]
    total, found, before = sum(sizes), dict[str, Interval](), 0
    for name, size in zip(program.outputs, sizes, strict=True):
        one = np.zeros((total, size))
        one[before : before + size] = np.eye(size)
        before += size
        _grow(found, name, Interval(one, one).reshape(total, *ranges[name].shape[1:]))
    for step in reversed(program.steps):
        if step.output in found:
            parts = step.rule.sensitivity(found[step.output], [ranges[name] for name in step.inputs])
            for name, part in zip(step.inputs, parts, strict=True):
                _grow(found, name, part)
    return found


def _grow(found: dict[str, Interval], name: str, part: Interval) -> None:
    found[name] = add(found[name], part) if name in found else part


@dataclass(frozen=True, eq=False)
class Effect:
    """What it may do to the outputs that each weight of one step becomes zero.

    Attributes:
        step: the step.
        lo: least change, [K, *weight].
        hi: largest change.
    """

    step: Step
    lo: Array
    hi: Array


def effects(program: Program, ranges: Ranges) -> Iterator[Effect]:
    """−w ∂output/∂w of every weight of the net's own steps (phase 3, eq. 12).

    Args:
        program: without quantizers.
        ranges: of all values for one box.
    """
    slopes = sensitivities(program, ranges)
    for step in program.steps:
        if step.tunable and isinstance(step.rule, Affine) and step.output in slopes:
            x = ranges[step.inputs[0]].reshape(*ranges[step.inputs[0]].shape[1:])
            lo, hi = _products(step.rule.op, x, slopes[step.output])
            weight = step.rule.op.weight
            yield Effect(step, np.minimum(-weight * lo, -weight * hi), np.maximum(-weight * lo, -weight * hi))


def _products(op: Linear, x: Interval, delta: Interval) -> tuple[Array, Array]:
    """Σ over edges of range(x) · δ: x is split by sign, so that signs say which ends a product takes."""
    up, down = np.maximum(x.lo, 0), np.maximum(x.hi, 0)  # of the positive part
    lo = _signed(op, up, down, delta.lo)
    hi = -_signed(op, up, down, -delta.hi)
    if (x.lo < 0).any():
        least, most = np.maximum(-x.hi, 0), np.maximum(-x.lo, 0)  # of the negative part's size
        hi = hi - _signed(op, least, most, delta.lo)
        lo = lo + _signed(op, least, most, -delta.hi)
    return lo, hi


def _signed(op: Linear, least: Array, most: Array, delta: Array) -> Array:
    """Least Σ p δ for 0 ≤ least ≤ p ≤ most."""
    found = op.gradient(most, np.minimum(delta, 0))
    return found + op.gradient(least, np.maximum(delta, 0)) if least.any() else found
