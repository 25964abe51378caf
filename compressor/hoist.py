"""Weights inside of control flow move out of it, into the main graph, where techniques look for them.

Exports for several sampling rates or shapes hold a whole net in each branch of an If. What such a body computes from
weights alone (gates of an LSTM, cut apart and joined in another order) moves with them, and twins become one: two
branches often read the same weights. What a Loop only carries from turn to turn, as TensorFlow's carry their weights,
is read from outside instead.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from edgepress.compressor.fold_constants import SMALL, elements, is_pure
from edgepress.compressor.model import CONTROL_FLOW
from edgepress.compressor.sites import fixed, taken, unique


def hoist_constants(model: ir.Model) -> int:
    """Move weights, and nodes that read nothing but them and other constants, out of all bodies, in place.

    Only matrices of floats count as weights: a runtime may want shapes and axes where they are read.

    Returns:
        The number of values that moved.
    """
    before = next((node for node in model.graph if node.op_type in CONTROL_FLOW), None)
    if before is None:
        return 0
    names = taken(model)
    moved = sum(
        _uncarried(node) for node in model.graph if node.op_type == "Loop" and node.domain in ("", "ai.onnx")
    )
    for graph in model.graph.subgraphs():
        for value in list(graph.initializers.values()):
            if _is_weight(value) and not value.is_graph_output():
                _move(model, value, names)
                moved += 1
    nodes = [
        node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.graph is not model.graph
    ]
    hoisted = set[ir.Node]()
    for node in nodes:
        if not _follows(node, hoisted):
            continue
        for value in dict.fromkeys(v for v in node.inputs if v is not None and v.graph is not model.graph):
            _copy(model, node, value, names)
        if node.graph is not None:
            node.graph.remove(node)
        node.outputs[0].name = unique(node.outputs[0].name or node.op_type, names)
        model.graph.insert_before(before, node)
        hoisted.add(node)
    if hoisted:
        common.DeduplicateInitializersPass()(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    return moved + len(hoisted)


def _uncarried(node: ir.Node) -> int:
    """Let the body of a Loop read from outside those constants that it only hands on to its next turn.

    Returns:
        How many these were.
    """
    body, count = node.attributes["body"].as_graph(), 0
    for place in reversed(range(2, len(node.inputs))):  # in front: the number of turns and the condition
        given, carried = node.inputs[place], body.inputs[place]
        final = node.outputs[place - 2]
        if given is None or not fixed(given) or final.is_graph_output() or not _handed_on(body, place):
            continue
        ir.convenience.replace_all_uses_with(final, given)
        body.outputs.pop(place - 1)
        ir.convenience.replace_all_uses_with(carried, given)
        body.inputs.pop(place)
        _drop_place(node, place)
        count += 1
    return count


def _handed_on(body: ir.Graph, place: int) -> bool:
    """Whether what a body is given at a place comes out there unchanged, and nowhere else."""
    carried, source = body.inputs[place], body.outputs[place - 1]
    while (maker := source.producer()) is not None and maker.op_type == "Identity" and maker.inputs[0]:
        source = maker.inputs[0]
    again = [value for at, value in enumerate(body.outputs) if value is carried and at != place - 1]
    return source is carried and not again


def _drop_place(node: ir.Node, place: int) -> None:
    """Take a carried value out of a Loop's inputs and outputs; those behind it move up."""
    for at in range(place, len(node.inputs) - 1):
        node.replace_input_with(at, node.inputs[at + 1])
    node.resize_inputs(len(node.inputs) - 1)
    for at in range(place - 2, len(node.outputs) - 1):
        one, following = node.outputs[at], node.outputs[at + 1]
        ir.convenience.replace_all_uses_with(following, one, replace_graph_outputs=True)
        one.name, following.name = following.name, one.name
        one.type, one.shape = following.type, following.shape
    node.resize_outputs(len(node.outputs) - 1)


def _is_weight(value: ir.Value) -> bool:
    return (
        fixed(value)
        and value.dtype is not None
        and value.dtype.is_floating_point()
        and value.shape is not None
        and len(value.shape) > 1
    )


def _follows(node: ir.Node, hoisted: set[ir.Node]) -> bool:
    """Whether a node of a body computes something from weights of the main graph and constants alone."""
    if not is_pure(node) or node.outputs[0].is_graph_output():
        return False
    values = [value for value in node.inputs if value is not None]
    others = [
        v for v in values if v.producer() not in hoisted and not (_is_weight(v) and v.graph is not node.graph)
    ]
    return len(others) < len(values) and all(fixed(v) and (elements(v) or 0) <= SMALL for v in others)


def _move(model: ir.Model, value: ir.Value, names: set[str]) -> None:
    """Make an initializer of a body one of the main graph; a sibling may know its name as something else."""
    if value.graph is not None:
        value.graph.initializers.pop(value.name or "")
    value.name = unique(value.name or "weight", names)
    model.graph.register_initializer(value)


def _copy(model: ir.Model, node: ir.Node, value: ir.Value, names: set[str]) -> None:
    """Let a node read a copy in the main graph of an initializer that its body holds: shapes, axes, bounds."""
    name = unique(value.name or "constant", names)
    held = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
    model.graph.register_initializer(held)
    for index, read in enumerate(node.inputs):
        if read is value:
            node.replace_input_with(index, held)
    if not value.uses() and not value.is_graph_output() and value.graph is not None:
        value.graph.initializers.pop(value.name or "")
