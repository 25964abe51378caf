"""Thresholds that rounding to integers implies are taken out again before a net is quantized.

A modified ReLU cuts off what is not above ε (threshold_relu.py). Where its output is rounded to steps of s ≥ 2ε, all of
that becomes zero by itself: a plain Relu, or nothing where values are not negative anyway, gives the very same
integers, and integer kernels imply it, where they have no threshold.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.numerics.grids import Grid, affine
from edgepress.compressor.numerics.thresholds import swallowed
from edgepress.compressor.passes.activations import Activation, activations
from edgepress.compressor.passes.base import Stream
from edgepress.compressor.passes.calibrate import Seen
from edgepress.compressor.passes.qdq import place, share_grids
from edgepress.compressor.sites import Site, attribute, constant, find_sites


def fold_swallowed(
    model: ir.Model, sites: Sequence[Site], ranges: str, grid: Grid, stream: Stream
) -> tuple[str, ...]:
    """Take out the thresholds that the grids of `sites` in integers imply.

    A step hangs on what flows in integers, and that on which thresholds are left: so those that turn out not to be
    implied stay, and the others are looked at again.

    Args:
        model: changed in place, to be quantized next.
        sites: of its nodes, those that will compute in integers.
        ranges: how the range of an activation is chosen.
        grid: of activations.
        stream: gives samples.

    Returns:
        Names of the activations that have no threshold any more.
    """
    thresholds = {a.name: e for a in activations(model) if (e := threshold_of(a)) is not None}
    names = {site.name for site in sites}
    while thresholds:
        trial = model.clone()
        values = _fold(trial, thresholds)
        steps = _steps(trial, names, ranges, grid, stream)
        left = {n: e for n, e in thresholds.items() if values[n] in steps and swallowed(e, steps[values[n]])}
        if left == thresholds:
            _fold(model, thresholds)
            break
        thresholds = left
    return tuple(thresholds)


def threshold_of(activation: Activation) -> float | None:
    """The largest ε that an activation is cut off at; None where it is not, or below zero."""
    cut = activation.cut
    if cut is None or cut.outputs[0].is_graph_output():
        return None
    found = np.asarray(attribute(cut, "alpha", 1.0))
    if cut.op_type == "Where":
        test = cut.inputs[0].producer() if cut.inputs[0] is not None else None
        above = constant(test.inputs[1]) if test is not None else None
        if above is None:
            return None
        found = above
    return float(found.max()) if found.size and found.min() >= 0 else None


def _fold(model: ir.Model, names: Collection[str]) -> dict[str, str]:
    """Take thresholds out; gives for each activation the name of the value that is read of it then."""
    values = {}
    for activation in activations(model):
        cut = activation.cut
        if activation.name not in names or cut is None:
            continue
        test = cut.inputs[0].producer() if cut.op_type == "Where" and cut.inputs[0] is not None else None
        kept, read = cut.outputs[0], [*cut.inputs, *(test.inputs if test is not None else ())]
        if cut is activation.node or activation.signed:
            x = cut.inputs[1 if cut.op_type == "Where" else 0]
            cut.op_type = "Relu"
            cut.attributes.clear()
            cut.resize_inputs(1)
            cut.replace_input_with(0, x)
        else:
            kept = activation.node.outputs[0]
            ir.convenience.replace_all_uses_with(cut.outputs[0], kept)
            model.graph.remove(cut, safe=True)
        if test is not None and not test.outputs[0].uses():
            model.graph.remove(test, safe=True)
        for value in read:
            if constant(value) is not None and value is not None and not value.uses():
                model.graph.initializers.pop(value.name or "", None)
        values[activation.name] = kept.name or ""
    return values


def _steps(
    model: ir.Model, names: Collection[str], ranges: str, grid: Grid, stream: Stream
) -> Mapping[str, float]:
    """Scales of the values that integers carry, by name; none where a range is not finite."""
    plan = place(model, [site for site in find_sites(model) if site.name in names])
    seen = Seen(plan, ranges, means=False)
    seen.watch(stream, model)
    if not all(seen.finite(plan, site) for site in plan.sites):
        return {}
    found = {root: seen.range_of(root, grid) for root in set(plan.root.values())}
    shared = share_grids(plan, found)
    return {value.name or "": affine(*r, grid, inside).scale for value, (r, inside) in shared.items()}
