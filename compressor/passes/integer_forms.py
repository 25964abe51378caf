"""Equal forms that have integer kernels, where a model says the same in a way that has none."""

import math
from collections.abc import Callable

import onnx
import onnx_ir as ir

from edgepress.compressor.errors import ModelError
from edgepress.compressor.maps import represent
from edgepress.compressor.sites import Site, constant, int_attribute, ints_attribute, site_name

PER_AXIS_OPSET = 13
"""First opset whose DequantizeLinear takes one scale per channel."""

SIXTEEN_BITS_OPSET = 21
"""First opset whose QuantizeLinear gives 16 bits."""

HEAVY = 1 << 16
"""Bytes from which on the converter sees a weight as an input: it takes one protobuf, which ends at 2 GB."""

Bounds = tuple[float, float]


def raise_opset(model: ir.Model, version: int = PER_AXIS_OPSET) -> bool:
    """Convert `model` in place to an opset of at least `version`, by onnx's own converter.

    Args:
        model: any model; one that is new enough is not touched.
        version: opset of the default domain.

    Returns:
        Whether the model changed.

    Raises:
        ModelError: the converter does not know an operator.
    """
    now = model.opset_imports.get("", version)
    if now >= version:
        return False
    try:
        rewrite(model, lambda proto: onnx.version_converter.convert_version(proto, version))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"The model cannot be converted from opset {now} to {version}: {error}",
            f"Export it with opset {version} or later.",
        ) from error
    return True


def rewrite(model: ir.Model, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """Let a function of onnx's change a model, in place; large weights stay out of its way.

    Args:
        model: any.
        change: gives another model with the same inputs and outputs.
    """
    weights = {v.name: v.const_value for v in model.graph.initializers.values()}
    copy = model.clone()
    heavy = [v for v in copy.graph.initializers.values() if v.const_value and v.const_value.nbytes > HEAVY]
    heavy = [value for value in heavy if not value.is_graph_input()]
    for value in heavy:
        copy.graph.initializers.pop(value.name or "")
        copy.graph.inputs.append(value)
    new = represent(change(ir.to_proto(copy)))
    for value in heavy:
        moved = next(each for each in new.graph.inputs if each.name == value.name)
        new.graph.inputs.remove(moved)
        moved.const_value = weights[value.name]
        new.graph.register_initializer(moved)
    _keep_interface(model.graph, new.graph)
    for value in new.graph.initializers.values():
        value.const_value = weights.get(value.name) or value.const_value
    model.graph = new.graph
    model.opset_imports.update(new.opset_imports)
    model.ir_version = max(model.ir_version, new.ir_version)


def _keep_interface(old: ir.Graph, new: ir.Graph) -> None:
    """Give the inputs and outputs of `new` the types and shapes they had: the converter rewrites some."""
    for before, after in zip((*old.inputs, *old.outputs), (*new.inputs, *new.outputs), strict=True):
        after.name, after.type, after.shape = before.name, before.type, before.shape


def clip_bounds(node: ir.Node) -> Bounds | None:
    """What a Relu or Clip with constant bounds lets through; None for other nodes."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    found = []
    for index, default in ((1, -math.inf), (2, math.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = None if value is None else constant(value)
        if value is not None and array is None:
            return None
        found.append(default if array is None else float(array.reshape(-1)[0]))
    return found[0], found[1]


def is_spatial_mean(node: ir.Node) -> bool:
    """Whether a ReduceMean is a GlobalAveragePool: the mean over all axes behind the channels."""
    x = node.inputs[0]
    if node.op_type != "ReduceMean" or x is None or x.shape is None or len(x.shape) < 3:
        return False
    axes = ints_attribute(node, "axes", ())
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1])
        axes = () if array is None else tuple(int(a) for a in array.reshape(-1))
    rank = len(x.shape)
    return sorted(a % rank for a in axes) == list(range(2, rank))


def as_global_pool(node: ir.Node) -> None:
    """Turn a spatial ReduceMean into the GlobalAveragePool it is, which has an integer kernel.

    Args:
        node: for which `is_spatial_mean` holds; one that drops its axes becomes a Flatten behind a new pool.
    """
    graph, y = node.graph, node.outputs[0]
    keeps = bool(int_attribute(node, "keepdims", 1))
    node.attributes.clear()
    node.resize_inputs(1)
    node.op_type = "GlobalAveragePool" if keeps else "Flatten"
    if not keeps and graph is not None:
        pooled = ir.Value(name=f"{y.name}_pooled", type=y.type)
        name = f"{site_name(node)}_pool"
        pool = ir.Node("", "GlobalAveragePool", [node.inputs[0]], outputs=[pooled], name=name)
        graph.insert_before(node, pool)
        node.replace_input_with(0, pooled)


def as_gemm(site: Site) -> bool:
    """Make a MatMul of matrices and the Add of a constant behind it a Gemm.

    The runtime does it, too, but not with the integers that its fused kernel asks for.

    Args:
        site: any site.

    Returns:
        Whether the node is a Gemm now; it gives the value that the Add gave.
    """
    node, y = site.node, site.y
    uses = list(y.uses())
    if node.op_type != "MatMul" or site.x.shape is None or len(site.x.shape) != 2:
        return False
    if len(uses) != 1 or y.is_graph_output():
        return False
    add = uses[0].node
    if add.op_type != "Add" or add.graph is not node.graph:
        return False
    bias = add.inputs[1 - uses[0].idx]
    array = constant(bias)
    if array is None or array.shape != (site.outputs,) or array.dtype != site.weight.dtype:
        return False
    result = add.outputs[0]
    ir.convenience.replace_all_uses_with(result, y, replace_graph_outputs=True)
    node.name = site.name  # a nameless node goes by its output, which gets another name now
    name, shape, kind, meta = result.name, result.shape, result.type, result.meta
    if add.graph is not None:
        add.graph.remove(add, safe=True)
    y.name, y.shape, y.type = name, shape, kind
    y.meta.update(meta)
    node.op_type = "Gemm"
    node.resize_inputs(3)
    node.replace_input_with(2, bias)
    return True


def clip_before_pool(site: Site) -> bool:
    """Swap a MaxPool behind a Conv with the Relu or Clip behind that: the same, for both are monotone.

    Integers then imply the Relu, where behind the pool it would be a float island.

    Args:
        site: any site.

    Returns:
        Whether anything changed; what the pool gave is gone, what the Relu gave stays.
    """
    pool = _only_reader(site.y)
    if not site.is_conv or pool is None or pool.op_type != "MaxPool" or len(pool.outputs) != 1:
        return False
    clip = _only_reader(pool.outputs[0])
    bounds = None if clip is None else clip_bounds(clip)
    if clip is None or bounds is None or not bounds[0] <= 0.0 <= bounds[1] or pool.graph is None:
        return False
    result, middle = clip.outputs[0], pool.outputs[0]
    clip.replace_input_with(0, site.y)
    pool.graph.remove(clip)
    pool.graph.insert_before(pool, clip)
    result.name, middle.name = f"{site.y.name}_clipped", result.name
    middle.type, middle.shape, result.shape = result.type, result.shape, site.y.shape
    middle.meta.update(result.meta)
    ir.convenience.replace_all_uses_with(result, middle, replace_graph_outputs=True)
    pool.replace_input_with(0, result)
    return True


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The one node of the same graph that reads a value, or None."""
    uses, producer = value.uses(), value.producer()
    if len(uses) != 1 or value.is_graph_output() or producer is None:
        return None
    reader = next(iter(uses)).node
    return reader if reader.graph is producer.graph and reader.domain in ("", "ai.onnx") else None
