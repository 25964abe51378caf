"""Two nets at once: how far the changed one's values can be from the original's, for every input in a box."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from edgepress.compressor.certify.affine import Affine, Move
from edgepress.compressor.certify.backward import Ranges, bounded, by_element, lower_difference, work_of
from edgepress.compressor.certify.curves import Bent, Nothing
from edgepress.compressor.certify.cut import reach, tail_of
from edgepress.compressor.certify.intervals import Interval, add, point, subtract
from edgepress.compressor.certify.program import Program, Step
from edgepress.compressor.certify.rules import Pair, Rule
from edgepress.compressor.errors import UsageError

CHANGE_WORK = 3e11
"""Multiply-accumulates up to which the change of an output is bounded by linear forms: a few minutes."""


@dataclass(frozen=True, eq=False)
class Aligned:
    """Two nets with the same values and steps, one by one.

    Attributes:
        original: with steps that do nothing where only the other one quantizes.
        changed: the other.
    """

    original: Program
    changed: Program


def comparable(original: Program, changed: Program) -> None:
    """Refuse, with a `UsageError`, two nets whose inputs or outputs do not belong together."""
    require(changed.row == original.row and len(changed.outputs) == len(original.outputs))
    require(changed.softmax == original.softmax)


def require(same: bool) -> None:
    """Refuse nets of which something is not the same; raises `UsageError`."""
    if not same:
        raise UsageError(
            "MODEL and CANDIDATE differ in their inputs or outputs.", "Compare versions of one model."
        )


def aligned(original: Program, changed: Program) -> Aligned | None:
    """Pair the steps of two nets with inputs of one shape; None where they are built differently.

    Args:
        original: a net.
        changed: the same with other weights, or with quantizers in between.
    """
    stands_for = {changed.input: original.input}
    rules: list[Rule] = []
    rest = list(original.steps)
    for step in changed.steps:
        first = rest[0] if rest else None
        if first is not None and _alike(first, step, stands_for):
            stands_for[step.output] = first.output
            rules.append(first.rule)
            rest.pop(0)
        elif step.quantizes or _stays(step.rule):
            stands_for[step.output] = stands_for.get(step.inputs[0], "")
            rules.append(Nothing() if step.quantizes else step.rule)
        else:
            return None
    if rest or [stands_for.get(name) for name in changed.outputs] != list(original.outputs):
        return None
    steps = tuple(replace(step, rule=rule) for step, rule in zip(changed.steps, rules, strict=True))
    return Aligned(replace(changed, steps=steps), changed)


def _alike(one: Step, other: Step, stands_for: Mapping[str, str]) -> bool:
    """Whether two steps are the same operator on the same values, whatever their weights."""
    if tuple(stands_for.get(name) for name in other.inputs) != one.inputs or type(one.rule) is not type(
        other.rule
    ):
        return False
    if isinstance(one.rule, Affine) and isinstance(other.rule, Affine):
        ours, theirs = one.rule.op, other.rule.op
        if type(ours) is not type(theirs) or ours.weight.shape != theirs.weight.shape:
            return False
        return all(value == vars(theirs)[key] for key, value in vars(ours).items() if key != "weight")
    if isinstance(one.rule, Bent) and isinstance(other.rule, Bent):
        below, other_below = np.broadcast_arrays(one.rule.below, other.rule.below)
        same = (one.rule.low, one.rule.high) == (other.rule.low, other.rule.high)
        return same and np.array_equal(below, other_below)
    return all(np.array_equal(value, other.rule.__dict__[key]) for key, value in one.rule.__dict__.items())


def _stays(rule: Rule) -> bool:
    """Whether a step changes nothing at all."""
    return isinstance(rule, Move) and rule.size == rule.shape and rule.order == tuple(range(len(rule.size)))


def joint(both: Aligned, box: Interval, unit: float = 0.0, known: Ranges | None = None) -> dict[str, Pair]:
    """Ranges of every value in both nets and of their difference.

    Args:
        both: the nets.
        box: inputs, [N, *row]; both nets get the same one.
        unit: unit roundoff of their arithmetic.
        known: ranges of the original's values, taken where they are narrower.
    """
    pairs = {both.changed.input: Pair(box, box, point(np.zeros(box.shape)))}
    for step, other in zip(both.original.steps, both.changed.steps, strict=True):
        seen = [pairs[name] for name in step.inputs]
        x = step.rule.forward([pair.x for pair in seen], unit)
        if known and step.output in known:
            x = known[step.output].within(x)
        z = other.rule.forward([pair.z for pair in seen], unit)
        d = step.rule.difference(other.rule, seen, unit)
        d = d.within(subtract(z, x))
        pairs[step.output] = Pair(x, z.within(add(x, d)), d)
    return pairs


def change(
    both: Aligned,
    box: Interval,
    unit: float = 0.0,
    known: Ranges | None = None,
    *,
    tight: bool = True,
    signs: bool = True,
) -> list[Interval]:
    """Range of the difference of every output: [N, *row] each.

    Args:
        both: the nets.
        box: inputs.
        unit: unit roundoff of their arithmetic.
        known: ranges of the original's values.
        tight: by linear forms as well as by intervals, where these cost no more than `CHANGE_WORK`.
        signs: where `tight`, behind two dense layers for all signs at once as well.
    """
    pairs = joint(both, box, unit, known)
    changes = {name: pair.d for name, pair in pairs.items()}
    found = []
    for name in both.changed.outputs:
        d = pairs[name].d
        if tight and work_of(both.changed, name, changes) <= CHANGE_WORK:
            least = partial(lower_difference, both.original, both.changed, name, pairs=pairs, unit=unit)
            d = by_element(d, changes, least)
        tail = tail_of(both.original, both.changed, name) if tight and signs else None
        reached = None if tail is None else reach(tail, pairs, unit)
        found.append(d if reached is None else d.within(reached))
    return found


def change_apart(original: Program, changed: Program, box: Interval, unit: float = 0.0) -> list[Interval]:
    """The same for nets that are built differently: each by itself, one off the other. Sound, and loose.

    Raises:
        UsageError: an output has another shape in the changed net.
    """
    ranges = []
    for program in (original, changed):
        found = program.ranges(box, unit)
        each = []
        for name in program.outputs:
            known = found[name]
            if work_of(program, name, found) <= CHANGE_WORK:
                known = bounded(program, name, found, unit)
            each.append(known)
        ranges.append(each)
    require([x.shape for x in ranges[0]] == [z.shape for z in ranges[1]])
    return [subtract(z, x) for x, z in zip(*ranges, strict=True)]
