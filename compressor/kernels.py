"""Which measured kernel of a device's profile stands for a node, and at which sizes.

What the kinds and their sizes mean stands in `devices/table.py`. Operators without a kernel of their own are taken for
one that moves as much and computes alike.
"""

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgepress.compressor.protocols import KernelTimes
from edgepress.compressor.sites import has_body, int_attribute, ints_attribute

Sizes = tuple[str, float, float, float]
"""Kind of kernel, inputs, outputs and positions."""

FLOAT, INTEGER = "fp32", "int8"

_PRODUCTS = frozenset({"Gemm", "MatMul", "MatMulInteger", "MatMulNBits"})
_WEIGHTED = frozenset({"conv", "pointwise", "depthwise", "product"})
_VIEWS = frozenset({"Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})
_WHOLE = ("Global", "Reduce")
"""What operators begin with that make one value of many."""
_DEAR = frozenset(
    {
        *("Celu", "Elu", "Erf", "Exp", "Gelu", "LayerNormalization", "Log", "LogSoftmax", "LpNormalization", "Mish"),
        *("InstanceNormalization", "GroupNormalization", "Pow", "RMSNormalization", "Selu", "Sigmoid", "Softmax"),
        *("Softplus", "Sqrt", "Swish", "Tanh", "Cos", "Sin", "LRN"),
    }
)  # fmt: skip
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


def table_ns(
    node: ir.Node, shapes: Mapping[str, tuple[int, ...]], table: KernelTimes, *, integer: bool, lanes: int = 1
) -> float | None:
    """Nanoseconds of one node by measured kernels; None where they cannot tell.

    Args:
        node: any node.
        shapes: observed for a batch of one, weights included where they are not constant.
        table: of the device.
        integer: whether it computes in 8 bits.
        lanes: layers with weights take as long as with the next multiple of so many outputs.
    """
    sizes = [shape_of(value, shapes) for value in (*node.inputs, *node.outputs[:1])]
    if node.op_type in _RECURRENT and len(sizes) > 3:
        return _recurrent(node, sizes, table)
    found = _sizes(node, sizes[:-1], sizes[-1]) if node.outputs else None
    if found is None:
        return None
    kind, inputs, outputs, positions = found
    if kind in _WEIGHTED:
        outputs = math.ceil(outputs / lanes) * lanes
    if kind == "quantize":  # a pair was timed
        both = table.ns(kind, FLOAT, inputs, outputs, positions)
        return None if both is None else both / 2
    exact = table.ns(kind, INTEGER, inputs, outputs, positions) if integer else None
    return table.ns(kind, FLOAT, inputs, outputs, positions) if exact is None else exact


def shape_of(value: ir.Value | None, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """A value's shape, None where it is unknown."""
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape.numpy())
    return shapes.get(value.name or "")


def _sizes(
    node: ir.Node, inputs: Sequence[tuple[int, ...] | None], y: tuple[int, ...] | None
) -> Sizes | None:
    x = inputs[0] if inputs else None
    w = inputs[1] if len(inputs) > 1 else None
    if y is None or has_body(node):
        return None
    values = math.prod(y)
    if node.op_type in ("Conv", "ConvTranspose"):
        return None if not x or not w or len(y) < 3 else _conv(node, x, w, y)
    if node.op_type in _PRODUCTS:
        return None if not x or not y else ("product", _summed(node, x), y[-1], math.prod(y[:-1]))
    if node.op_type in _VIEWS:
        return "node", 1, 1, 1
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        return "quantize", 1, 1, values
    if node.op_type in _POOLS:
        return "pool", math.prod(ints_attribute(node, "kernel_shape", ())), 1, values
    if node.op_type.startswith(_WHOLE):
        return None if x is None else ("pool", math.prod(x) / max(values, 1), 1, values)
    return ("sigmoid" if node.op_type in _DEAR else "add"), 1, 1, values


def _conv(node: ir.Node, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Sizes:
    """Of a transposed one the positions are those that go in."""
    taps, groups = math.prod(w[2:]), int_attribute(node, "group", 1)
    if node.op_type == "ConvTranspose":
        return "conv", w[0] / groups * taps, w[1] * groups, x[0] * math.prod(x[2:])
    positions = y[0] * math.prod(y[2:])
    if groups > 1 and w[1] == 1:
        return "depthwise", taps, w[0], positions
    return ("pointwise" if taps == 1 else "conv"), w[1] * taps, w[0], positions


def _summed(node: ir.Node, x: tuple[int, ...]) -> int:
    """How many products make one value of a Gemm or MatMul."""
    return x[0] if node.op_type == "Gemm" and int_attribute(node, "transA", 0) else x[-1]


def _recurrent(node: ir.Node, sizes: Sequence[tuple[int, ...] | None], table: KernelTimes) -> float | None:
    """What goes in is one product for all steps; what comes back is one a step."""
    x, w, r = sizes[:3]
    if x is None or w is None or r is None or (len(x), len(w), len(r)) != (3, 3, 3):
        return None
    steps, rows = (x[1], x[0]) if int_attribute(node, "layout", 0) else (x[0], x[1])
    forward = table.ns("product", FLOAT, x[2], w[0] * w[1], steps * rows)
    back = table.ns("product", FLOAT, r[2], r[1], rows)
    return None if forward is None or back is None else forward + steps * w[0] * back
