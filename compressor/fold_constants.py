"""What depends on constants alone is computed once, unless the file would grow by it.

A weight may pass through a whole chain before it is read: exporters cut the gates of an LSTM apart and join them in
another order. Each step of that makes the file larger, the chain as a whole does not. On the other hand, 8 bits behind
a Cast stay what they are: a compact weight.
"""

from collections.abc import Callable, Collection, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer._constant_folding import FoldConstantsPass

from edgepress.compressor.model import CONTROL_FLOW, dims
from edgepress.compressor.sites import fixed

SMALL = 4096
"""Elements up to which a folded constant may be larger than what it was computed from."""

_NO_LIMIT = 2**62

_RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
_NO_LARGER = {
    *("Cast", "Compress", "Flatten", "Gather", "Identity", "NonZero", "Reshape", "Slice", "Squeeze"),
    *("Transpose", "Unique", "Unsqueeze"),
}
"""Operators that give no more than some times what they read, wherever sizes are not known."""

GROWTH = 64
"""Elements of a result for each that is read, beyond which it is not computed: it is looked at only once it is there.
Codes of 2 bits in words of 32 give 16, broadcast with what picks them apart."""

PASSING = 1 << 22
"""Elements up to which something on the way may be made for what is read at the end, however little it is made of."""

_QUANTIZING = {"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"}
"""They tell a runtime to compute in integers, on constants, too."""


def fold_constants(model: ir.Model) -> bool:
    """Compute constants of constants, in place, and drop what nothing reads then.

    Args:
        model: with types and shapes inferred.

    Returns:
        Whether there was anything to do.
    """
    graphs = [model.graph, *model.graph.subgraphs()]
    kinds = {
        (graph, name): value.dtype  # siblings may know one name as different things
        for graph in graphs
        for name, value in ir.convenience.create_value_mapping(graph, include_subgraphs=False).items()
    }
    edge = (*model.graph.inputs, *model.graph.outputs)
    said = [None if value.shape is None else value.shape.copy() for value in edge]
    modified = False
    for _ in range(3):
        once = fold(model, _may_fold, most=SMALL)
        modified |= once
        if not once:
            break
    if chains := set(_chains(model)):
        modified |= fold(model, chains.__contains__)
    for graph in graphs:
        for name, value in graph.initializers.items():
            _restore_dtype(value, kinds.get((graph, name)))
    for value, shape in zip((*model.graph.inputs, *model.graph.outputs), said, strict=True):
        value.shape = shape  # a size learnt on the way, or a name given to one, is no part of the interface
    return modified


def fold(
    model: ir.Model,
    should_fold: Callable[[ir.Node], bool | None],
    *,
    most: int = _NO_LIMIT,
    shape_inference: bool = True,
) -> bool:
    """Compute nodes that read constants alone, in place, by onnxscript's optimizer, and drop what nothing reads then.

    Args:
        model: the model.
        should_fold: True and False have the last word on a node; None leaves it to the optimizer's own rules.
        most: elements of a result, unless it takes no more than what goes with it. Whatever it is, what is far larger
            than all that it is computed from is not computed.
        shape_inference: whether shapes are worked out on the way.

    Returns:
        Whether there was anything to do.
    """
    modified = FoldConstantsPass(
        shape_inference=shape_inference,
        input_size_limit=_NO_LIMIT,
        output_size_limit=most,
        should_fold=lambda node: should_fold(node) if _bounded(node, most) else False,
    )(model).modified
    if modified:  # of sizes it makes nodes, and nothing looks for constants there
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    return bool(modified)


def _bounded(node: ir.Node, most: int) -> bool:
    """Whether the results of a node are known not to be far larger than what they are computed from."""
    counts = [elements(value) for value in node.outputs]
    if any(count is None for count in counts) and node.op_type not in _NO_LARGER:
        return False
    read = sum(v.const_value.size for v in node.inputs if v is not None and v.const_value is not None)
    largest = max((count for count in counts if count is not None), default=0.0)
    return largest <= (max(SMALL, read) if most < _NO_LIMIT else max(PASSING, GROWTH * read))


def _may_fold(node: ir.Node) -> bool | None:
    """False where folding would undo a compact weight (8 bits behind a Cast), True for small fills."""
    tensors = [
        value.const_value for value in node.inputs if value is not None and value.const_value is not None
    ]
    if node.op_type == "ConstantOfShape" and tensors:
        return bool(np.prod(tensors[0].numpy(), dtype=np.float64) <= SMALL) or None
    largest = max(tensors, key=lambda tensor: tensor.size, default=None)
    kind = node.outputs[0].dtype
    if (
        largest is None
        or largest.size <= SMALL
        or kind is None
        or ir.DataType.STRING in {kind, largest.dtype}
    ):
        return None
    return False if kind.bitwidth > largest.dtype.bitwidth else None


def is_pure(node: ir.Node) -> bool:
    """Whether a node gives one result that depends on its inputs alone, and is read for its numbers only."""
    if node.op_type in CONTROL_FLOW or node.op_type in _RANDOM or node.op_type in _QUANTIZING:
        return False
    return node.domain in {"", "ai.onnx"} and len(node.outputs) == 1 and any(node.inputs)


def elements(value: ir.Value) -> float | None:
    """How many numbers a value holds, None where that is not known."""
    sizes = dims(value)
    if sizes is None or not all(isinstance(size, int) for size in sizes):
        return None
    return float(np.prod([float(size) for size in sizes if isinstance(size, int)]))


def _chains(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes that compute large constants, of groups whose results take no more bytes than what goes with them."""
    computing: dict[ir.Node, None] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if is_pure(node) and all(v is None or fixed(v) or v.producer() in computing for v in node.inputs):
            computing[node] = None
    left = dict(computing)
    while left:
        group = _group(next(iter(left)), computing)
        for node in group:
            left.pop(node)
        if len(group) > 1 and _no_larger(group):
            yield from group


def _group(start: ir.Node, computing: Collection[ir.Node]) -> set[ir.Node]:
    """The nodes that are tied to one by large values, which they make or read."""
    group, stack = set[ir.Node](), [start]
    while stack:
        node = stack.pop()
        if node in group:
            continue
        group.add(node)
        for value in (*node.inputs, *node.outputs):
            count = elements(value) if value is not None else 0.0
            if value is None or (count is not None and count <= SMALL):
                continue
            producer = value.producer()
            stack.extend(user for user in value.consumers() if user in computing)
            stack.extend([producer] if producer is not None and producer in computing else [])
    return group


def _no_larger(group: Collection[ir.Node]) -> bool:
    """Whether the constants that would be left take no more bytes than those that would go."""
    going = {
        v for node in group for v in node.inputs if v is not None and fixed(v) and not v.is_graph_output()
    }
    freed = sum(_bits(v) or 0.0 for v in going if all(user in group for user in v.consumers()))
    results = [v for node in group for v in node.outputs]
    counts, held = [elements(v) for v in results], sum(elements(v) or 0.0 for v in going)
    if any(count is None or count > max(PASSING, GROWTH * held) for count in counts):
        return False
    left = [v for v in results if v.is_graph_output() or any(user not in group for user in v.consumers())]
    return sum(np.inf if (bits := _bits(v)) is None else bits for v in left) <= freed


def _bits(value: ir.Value) -> float | None:
    """Size of a value in bits, None where that is not known."""
    count, kind = elements(value), value.dtype
    return None if count is None or kind is None or kind is ir.DataType.STRING else count * kind.bitwidth


def _restore_dtype(value: ir.Value, kind: ir.DataType | None) -> None:
    """The evaluator computes with numpy, which widens some types; the graph says which one is right."""
    tensor = value.const_value
    if tensor is None or kind is None or tensor.dtype == kind:
        return
    array = tensor.numpy().astype(kind.numpy())
    value.const_value = ir.Tensor(array, dtype=kind, name=value.name)
    value.dtype = kind
