"""Bounds by linear forms carried from the outputs towards the inputs (CROWN, DeepPoly), for one net or for a pair.

At every step on the way the form is also bounded by the ranges there, and the best of all counts: plain intervals are
the special case of stopping at once, so that nothing is lost against them.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from edgepress.compressor.certify import hull
from edgepress.compressor.certify.affine import Affine, Move
from edgepress.compressor.certify.curves import Curve
from edgepress.compressor.certify.intervals import UNIT64, Interval
from edgepress.compressor.certify.program import Program
from edgepress.compressor.certify.rules import Pair, concretise, dot
from edgepress.compressor.protocols import Array

Ranges = Mapping[str, Interval]
FORMS_AT_ONCE = 1 << 25
"""Numbers that coefficients of one value may take, a quarter of a gigabyte."""


class Frontier:
    """Linear forms in some values of a net, and a number: all that a bound still hangs on."""

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges
        self.forms: dict[str, Array] = {}

    def add(self, name: str, a: Array) -> Array | float:
        """Add coefficients; gives what rounding of the sum may have cost."""
        x = self.ranges[name]
        if not a.any() or not (x.lo.any() or x.hi.any()):
            return 0.0
        if name not in self.forms:
            self.forms[name] = a
            return 0.0
        self.forms[name] = self.forms[name] + a
        return 2 * UNIT64 * dot(self.forms[name], x.magnitude)[1]

    def least(self) -> Array | float:
        """The least that the forms can be, by ranges alone."""
        return sum((_settle(concretise(a, self.ranges[name])) for name, a in self.forms.items()), 0.0)


def _settle(value: Array) -> Array:
    """Smaller by what adding a few of them may round up."""
    return value - 64 * UNIT64 * np.abs(value)


def lower(program: Program, target: str, a: Array, ranges: Ranges, unit: float = 0.0) -> Array:
    """Least value of linear forms of one value.

    Args:
        program: the net.
        target: name of the value.
        a: coefficients [N, K, *row].
        ranges: of all values, [N, *row] each.
        unit: unit roundoff of the net's arithmetic.

    Returns:
        Lower bounds [N, K].
    """
    front = Frontier(ranges)
    front.add(target, a)
    number: Array = np.zeros(a.shape[:2])
    best = np.asarray(number + front.least())
    for step in reversed(program.steps):
        form = front.forms.pop(step.output, None)
        if form is None:
            continue
        made, constant = step.rule.backward(form, [ranges[name] for name in step.inputs], unit)
        number = _settle(number + constant)
        for name, part in zip(step.inputs, made, strict=True):
            number = number - front.add(name, part)
        if not isinstance(step.rule, Move):
            best = np.maximum(best, _settle(number + front.least()))
    return best


def lower_difference(
    original: Program, changed: Program, target: str, a: Array, pairs: Mapping[str, Pair], unit: float = 0.0
) -> Array:
    """Least value of linear forms of w − y, for one value y of the original and w of the changed net.

    Args:
        original: the net.
        changed: with the same values and steps, see `difference.aligned`.
        target: name of the value.
        a: coefficients [N, K, *row].
        pairs: ranges of all values.
        unit: unit roundoff of both nets' arithmetic.

    Returns:
        Lower bounds [N, K].
    """
    values = Frontier({name: pair.x for name, pair in pairs.items()})
    moved = Frontier({name: pair.d for name, pair in pairs.items()})
    moved.add(target, a)
    number: Array = np.zeros(a.shape[:2])
    best = np.asarray(number + moved.least())
    for step, other in zip(reversed(original.steps), reversed(changed.steps), strict=True):
        form, shift = values.forms.pop(step.output, None), moved.forms.pop(step.output, None)
        if form is not None:
            made, constant = step.rule.backward(form, [pairs[name].x for name in step.inputs], unit)
            number = _settle(number + constant)
            for name, part in zip(step.inputs, made, strict=True):
                number = number - values.add(name, part)
        if shift is not None:
            seen = [pairs[name] for name in step.inputs]
            by_change, by_value, constant = step.rule.backward_difference(other.rule, shift, seen, unit)
            number = _settle(number + constant)
            for name, part, own in zip(step.inputs, by_change, by_value, strict=True):
                number = number - moved.add(name, part) - values.add(name, own)
        if (form is not None or shift is not None) and not isinstance(step.rule, Move):
            best = np.maximum(best, _settle(number + values.least() + moved.least()))
    return best


def tightened(
    program: Program,
    box: Interval,
    unit: float = 0.0,
    work: float = np.inf,
    tell: Callable[[str], None] = lambda name: None,
) -> dict[str, Interval]:
    """Ranges of all values, those that bent activations read by hulls of pools or by linear forms.

    Args:
        program: the net.
        box: [N, *row].
        unit: unit roundoff of its arithmetic.
        work: operations that all of it may take together; values whose bounds would cost more than what is left keep
            their intervals.
        tell: called with the name of each step that is bounded anew.
    """
    known: dict[str, Interval] = {}
    readers = {name for step in program.steps if isinstance(step.rule, Curve) for name in step.inputs}
    made = {step.output: step for step in program.steps}
    for name in (s.output for s in program.steps if s.output in readers):
        ranges = program.ranges(box, unit, known)
        before = ranges[name]
        if not ((before.lo < 0) & (before.hi > 0)).any():
            continue
        if made[name].inputs == (program.input,):
            continue  # of one linear step the interval is exact already
        stack = hull.stack(program, name)
        each = np.inf if stack is None else hull.work_of(stack)
        places = [] if stack is None or each > work else hull.places(stack, ranges[stack.x])
        if stack is not None and places and (cost := each * len(places)) <= work:
            tell(made[name].name)
            known[name] = hull.bounded(stack, places, name, ranges, unit)
            ranges, work = {**ranges, name: known[name]}, work - cost
            if stack.x == program.input:
                continue  # no linear bounds are better
        cost = work_of(program, name, ranges)
        if cost <= work:
            tell(made[name].name)
            known[name], work = bounded(program, name, ranges, unit), work - cost
    return program.ranges(box, unit, known)


def work_of(program: Program, name: str, ranges: Ranges) -> float:
    """Multiply-accumulates to bound all elements of one value from both sides."""
    size = float(np.prod(ranges[name].shape))
    needed, total = {name}, 0.0
    for step in reversed(program.steps):
        if step.output not in needed:
            continue
        needed.update(step.inputs)
        if isinstance(step.rule, Affine):
            total += np.prod(ranges[step.output].shape[1:]) * step.rule.op.terms
    return 2 * size * total


def bounded(program: Program, name: str, ranges: Ranges, unit: float) -> Interval:
    """Both ends of every element of a value by linear forms."""
    return by_element(ranges[name], ranges, lambda forms: lower(program, name, forms, ranges, unit))


def by_element(value: Interval, ranges: Ranges, least: Callable[[Array], Array]) -> Interval:
    """Both ends of every element of a value, as many at once as memory bears.

    Args:
        value: ranges that are known, [N, *row].
        ranges: of all values that forms go through; the widest says how much memory a form takes.
        least: lower bounds [N, K] of forms in the value, [N, K, *row].
    """
    lo, hi = value.lo.copy(), value.hi.copy()
    rows, row = len(lo), value.shape[1:]
    count = int(np.prod(row))
    for chosen in _chunks(ranges, count):
        units = np.zeros((rows, len(chosen), count))
        units[:, np.arange(len(chosen)), chosen] = 1.0
        forms = units.reshape(rows, -1, *row)
        lo.reshape(rows, -1)[:, chosen] = least(forms)
        hi.reshape(rows, -1)[:, chosen] = -least(-forms)
    return Interval(lo, hi).within(value)


def _chunks(ranges: Ranges, count: int) -> Iterator[Array]:
    """Numbers of elements, as many at once as memory bears."""
    widest = max(int(np.prod(x.shape)) for x in ranges.values())
    size = max(1, FORMS_AT_ONCE // (widest * 4))
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))
