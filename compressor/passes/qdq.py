"""Where 8-bit integers flow: which values get a QuantizeLinear/DequantizeLinear pair, which share one grid.

A runtime fuses DequantizeLinear → operator → QuantizeLinear into one integer kernel, but only where

* between Conv, Gemm, MatMul, Add, … and QuantizeLinear stands at most a Relu or Clip that the integers imply,
* all readers of the operator's output read it from behind the pair,
* operators that only move values (MaxPool, Reshape, Concat, …) have one scale and zero point on both sides.

Everything else is a float island between pairs. `place` finds the pairs; it changes nothing.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from edgepress.compressor.numerics.grids import Affine, Grid
from edgepress.compressor.numerics.ties import untied
from edgepress.compressor.passes.integer_forms import Bounds, clip_bounds, is_spatial_mean
from edgepress.compressor.sites import Site, attribute, constant

_RESHAPES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Split")
MOVES = frozenset([*_RESHAPES, "MaxPool", "DepthToSpace", "SpaceToDepth", "Resize", "Concat"])
"""Operators that only move values: one grid before and after."""

COMPUTES = frozenset(["Add", "Mul", "AveragePool", "GlobalAveragePool", "ReduceMean", "LeakyRelu", "Sigmoid"])
"""Operators without weights that have integer kernels and a grid of their own behind them."""

QUANTIZED = frozenset(
    ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"]
)


@dataclass(frozen=True)
class Plan:
    """Where integers flow.

    Attributes:
        sites: the weighted nodes that compute in integers.
        integer: these and all other nodes that do, in topological order.
        carried: values with a pair behind them, in topological order.
        root: carried value → the value whose grid it shares (itself, where it has its own).
        bounds: carried value → what its Relu or Clip, to be dropped by the runtime, lets through.
    """

    sites: tuple[Site, ...]
    integer: tuple[ir.Node, ...]
    carried: tuple[ir.Value, ...]
    root: dict[ir.Value, ir.Value]
    bounds: dict[ir.Value, Bounds]
    _nodes: frozenset[ir.Node] = field(repr=False)

    def computes(self, node: ir.Node) -> bool:
        """Whether `node` reads integers."""
        return node in self._nodes

    def from_integers(self, value: ir.Value) -> bool:
        """Whether the node that gives `value` (its activation aside) computes in integers."""
        return behind(value) in self._nodes


def already_quantized(model: ir.Model) -> bool:
    """Whether somebody quantized this model before us."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return any(
        n.op_type in QUANTIZED or n.op_type.startswith("QLinear") or "NBits" in n.op_type for n in nodes
    )


def activation(node: ir.Node) -> tuple[ir.Node, Bounds] | None:
    """The Relu or Clip behind `node` that integers can express, and its bounds; None where there is none."""
    if len(node.outputs) != 1 or node.op_type not in COMPUTES | {"Conv", "Gemm", "MatMul"}:
        return None
    uses = node.outputs[0].uses()
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    follower = next(iter(uses)).node
    if follower.graph is not node.graph or follower.domain not in ("", "ai.onnx"):
        return None
    bounds = clip_bounds(follower)
    return (follower, bounds) if bounds and bounds[0] <= 0.0 <= bounds[1] else None


def given(node: ir.Node) -> ir.Value:
    """What `node` gives to others: its output, behind its activation."""
    found = activation(node)
    return (found[0] if found else node).outputs[0]


def behind(value: ir.Value) -> ir.Node | None:
    """The node that computes `value`, looking through its activation."""
    node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return node
    before = node.inputs[0].producer()
    if before is not None and (found := activation(before)) and found[0] is node:
        return before
    return node


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs of an integer node that carry activations."""
    several = node.op_type in ("Add", "Mul", "Concat")
    return [v for v in (node.inputs if several else node.inputs[:1]) if v is not None]


def _capable(node: ir.Node) -> bool:
    """Whether a node without weights has an integer kernel."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in MOVES | COMPUTES:
        return False
    if any(v is None or constant(v) is not None for v in data_inputs(node)) or not data_inputs(node):
        return False
    if node.op_type == "ReduceMean":
        return is_spatial_mean(node)
    if node.op_type == "Resize":
        return attribute(node, "mode", "nearest") == "nearest"
    if node.op_type == "MaxPool":  # indices come from no integer kernel; dilated ones run slowly everywhere
        return len(node.outputs) == 1
    return len(node.outputs) == 1 or node.op_type == "Split"


def place(model: ir.Model, sites: Sequence[Site], *, results: bool = False) -> Plan:
    """Find the values that integers carry when `sites` compute in integers.

    Args:
        model: with an opset that per-channel scales exist in.
        sites: Conv, Gemm and MatMul nodes of its main graph with constant float32 weights.
        results: whether every site's result is carried, though nothing that reads it needs integers.
    """
    order = list(model.graph)
    anchors = {site.node for site in sites}
    needed = {site.x for site in sites}
    possible = _supplied(order, anchors, needed)
    kept = _demanded(order, anchors, possible, needed)
    # Gemm and MatMul have kernels that give floats, but not behind an activation
    forced = {given(n) for n in anchors if results or n.op_type == "Conv" or activation(n)} | needed
    for node in order:  # moving integers is free and exact, so a move follows whatever is carried anyway
        free = node in possible and node.op_type in MOVES and all(v in forced for v in data_inputs(node))
        if free:
            kept.add(node)
        if node in kept:
            forced.update(data_inputs(node))
            forced.update(_outputs(node))
    root: dict[ir.Value, ir.Value] = {}
    bounds: dict[ir.Value, Bounds] = {}
    carried = [v for v in _values(model.graph.inputs, order) if v in forced]
    for value in carried:
        source = behind(value)
        moved = source is not None and source in kept and source.op_type in MOVES - {"Concat"}
        root[value] = root[data_inputs(source)[0]] if source is not None and moved else value
        found = activation(source) if source is not None else None
        if found is not None and source in anchors | kept and found[0].outputs[0] is value:
            bounds[value] = found[1]
    nodes = frozenset(anchors | kept)
    return Plan(tuple(sites), tuple(n for n in order if n in nodes), tuple(carried), root, bounds, nodes)


def _values(inputs: Iterable[ir.Value], order: Sequence[ir.Node]) -> Iterable[ir.Value]:
    yield from inputs
    for node in order:
        yield from node.outputs


def _outputs(node: ir.Node) -> list[ir.Value]:
    """What an integer node gives: a Split has several outputs."""
    return list(node.outputs) if len(node.outputs) > 1 else [given(node)]


def _supplied(order: Sequence[ir.Node], anchors: set[ir.Node], needed: set[ir.Value]) -> set[ir.Node]:
    """Nodes without weights all of whose inputs could come as integers."""
    integers = set(needed)
    possible = set()
    for node in order:
        if node in anchors:
            integers.add(given(node))
        elif _capable(node) and all(v in integers for v in data_inputs(node)):
            possible.add(node)
            integers.update(_outputs(node))
    return possible


def _demanded(
    order: Sequence[ir.Node], anchors: set[ir.Node], possible: set[ir.Node], needed: set[ir.Value]
) -> set[ir.Node]:
    """Those of `possible` whose result an integer node reads."""
    wanted = set(needed)
    kept = set()
    for node in reversed(order):
        if node in possible and node not in anchors and any(v in wanted for v in _outputs(node)):
            kept.add(node)
            wanted.update(data_inputs(node))
    return kept


def share_grids(
    plan: Plan, ranges: dict[ir.Value, tuple[float, float]]
) -> dict[ir.Value, tuple[tuple[float, float], Bounds | None]]:
    """Settle the range of every carried value.

    All parts of a Concat and its result share one grid, unless it would let through what a part's own Relu
    or Clip must cut: that would bring the float operator back, so such parts keep their own (the kernel
    rescales).

    Args:
        plan: the values.
        ranges: root → observed (low, high).

    Returns:
        Carried value → its range and the bounds that its grid must stay inside.
    """
    group = {v: v for v in plan.carried}

    def find(value: ir.Value) -> ir.Value:
        while group[value] is not value:
            value = group[value]
        return value

    shared = dict(ranges)
    limits: dict[ir.Value, Bounds] = {}
    for value in plan.carried:
        group[value] = plan.root[value]
        limits[find(value)] = _tighter(limits.get(find(value)), plan.bounds.get(value))
    for node in plan.integer:
        if node.op_type != "Concat":
            continue
        parts = {find(v) for v in (*data_inputs(node), *node.outputs)}
        low = min(shared[p][0] for p in parts)
        high = max(shared[p][1] for p in parts)
        tight = (-math.inf, math.inf)
        for part in parts:
            tight = _tighter(tight, limits[part])
        if tight[0] <= low and high <= tight[1]:
            first = find(node.outputs[0])
            for part in parts:
                group[part] = first
            shared[first], limits[first] = (low, high), tight
    unbounded = (-math.inf, math.inf)
    return {
        v: (shared[find(v)], None if limits[find(v)] == unbounded else limits[find(v)]) for v in plan.carried
    }


def separate_sums(plan: Plan, params: dict[ir.Value, Affine], grid: Grid) -> None:
    """Move the scales of sums a little, so that runtimes round them alike; see `ties`. In place.

    Args:
        plan: the values.
        params: carried value → its grid.
        grid: format of the integers.
    """
    joined = [
        v for node in plan.integer if node.op_type == "Concat" for v in (*data_inputs(node), *node.outputs)
    ]
    fixed = {plan.root[value] for value in joined if value in plan.root}
    for node in plan.integer:
        result = given(node)
        if node.op_type != "Add" or result not in params or plan.root[result] in fixed:
            continue
        first, second = (params.get(value) for value in data_inputs(node))
        if first is None or second is None:
            continue
        found = untied(first, second, params[result], grid)
        for value, root in plan.root.items():
            if root is plan.root[result]:
                params[value] = found


def _tighter(a: Bounds | None, b: Bounds | None) -> Bounds:
    low = max(x[0] for x in (a, b, (-math.inf, math.inf)) if x)
    high = min(x[1] for x in (a, b, (-math.inf, math.inf)) if x)
    return low, high
