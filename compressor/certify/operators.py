"""ONNX operators as steps, one handler each: linear ones, pools, moves; and what all handlers share."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.affine import Affine, Join, Move
from edgepress.compressor.certify.linear import ConvMap, MatrixMap, MeanMap, ScaleMap, TransposedMap
from edgepress.compressor.certify.program import Reader, Step, refused
from edgepress.compressor.certify.rules import Rule
from edgepress.compressor.certify.selection import Largest
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import attribute, conv_padding, exclusive, ints_attribute, site_name

MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout")
"""Operators that keep a row's numbers, in another order or shape."""


def name_of(value: ir.Value | None) -> str:
    """Name of a value."""
    return "" if value is None else value.name or ""


def step(node: ir.Node, rule: Rule, inputs: Sequence[int] = (0,), tunable: bool = False) -> Sequence[Step]:
    """The one step of a node that reads these inputs."""
    names = tuple(name_of(node.inputs[i]) for i in inputs)
    biased = tunable and node.op_type != "MatMul"
    return [Step(site_name(node), names, name_of(node.outputs[0]), rule, tunable, biased)]


def own_weight(node: ir.Node) -> bool:
    """Whether the second input is a float constant of this node alone."""
    value = node.inputs[1]
    return (
        value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT and exclusive(value)
    )


def optional(reader: Reader, node: ir.Node, index: int) -> Array | None:
    """A constant input that may be missing."""
    there = index < len(node.inputs) and node.inputs[index] is not None
    return reader.number(node, index) if there else None


def geometry(
    node: ir.Node, size: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...], tuple[int, ...], int]:
    """What the maps of convolutions take behind their weight: size, strides, pads, dilations and groups."""
    ones = (1,) * len(kernel)
    return (
        size,
        ints_attribute(node, "strides", ones),
        tuple(conv_padding(node, size, kernel)),
        ints_attribute(node, "dilations", ones),
        node.attributes.get_int("group", 1),
    )


def conv(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Conv, grouped or not."""
    weight, bias = reader.number(node, 1), optional(reader, node, 2)
    row, kernel = reader.row(node.inputs[0], node), weight.shape[2:]
    ones = (1,) * len(kernel)
    op = ConvMap(weight, *geometry(node, row[1:], kernel))
    shape = (-1, *ones)
    return step(
        node,
        Affine(op, (np.zeros(len(weight)) if bias is None else bias).reshape(shape)),
        tunable=own_weight(node),
    )


def conv_transpose(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """ConvTranspose, grouped or not: what takes a convolution's outputs to its inputs."""
    weight, bias = reader.number(node, 1), optional(reader, node, 2)
    row, out, kernel = (
        reader.row(node.inputs[0], node),
        reader.row(node.outputs[0], node),
        weight.shape[2:],
    )
    ones = (1,) * len(kernel)
    if "output_shape" in node.attributes or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise refused(node, "its padding follows from the shape of its output")
    op = TransposedMap(weight, *geometry(node, out[1:], kernel))
    if op.conv.positions != row[1:]:
        raise refused(node, "it pads its output by a stride or more")
    shift = (np.zeros(out[0]) if bias is None else bias).reshape(-1, *ones)
    return step(node, Affine(op, shift), tunable=own_weight(node))


def gemm(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Gemm with constant B and C."""
    if node.attributes.get_int("transA", 0):
        raise refused(node, "it transposes its input")
    alpha, beta = (float(str(attribute(node, name, 1.0))) for name in ("alpha", "beta"))
    weight, bias = reader.number(node, 1), optional(reader, node, 2)
    transposed = bool(node.attributes.get_int("transB", 0))
    outputs = weight.shape[0 if transposed else 1]
    shift = np.zeros(outputs) if bias is None else beta * bias
    if shift.ndim > 1 and shift.shape[0] != 1:
        raise refused(node, "its bias differs from row to row")
    shift = np.broadcast_to(shift.reshape(-1), (outputs,))
    plain = alpha == beta == 1.0 and own_weight(node)
    return step(node, Affine(MatrixMap(alpha * weight, transposed), shift), tunable=plain)


def matmul(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """MatMul with a constant matrix on the right."""
    weight = reader.number(node, 1)
    if weight.ndim != 2:
        raise refused(node, "its right side is no matrix")
    return step(node, Affine(MatrixMap(weight), np.zeros(weight.shape[1])), tunable=own_weight(node))


def scaled(
    node: ir.Node,
    row: tuple[int, ...],
    scale: Array,
    shift: Array,
    index: int = 0,
    *,
    roundings: int = 0,
    shift_size: Array | None = None,
) -> Sequence[Step]:
    """Y = scale x + shift, both given as they broadcast to a batch; `roundings` and `shift_size` as in `Affine`."""
    wide = []
    for array in (scale, shift, np.abs(shift) if shift_size is None else shift_size):
        if array.ndim > len(row) + 1 or (array.ndim == len(row) + 1 and array.shape[0] != 1):
            raise refused(node, "a constant differs from row to row")
        try:
            own = array.reshape(array.shape[-len(row) :]) if array.ndim > len(row) else array
            wide.append(np.broadcast_to(own, row))
        except ValueError:
            raise refused(node, "a constant makes its input larger") from None
    size = None if shift_size is None else wide[2].copy()
    return step(node, Affine(ScaleMap(wide[0].copy(), terms=2), wide[1].copy(), roundings, size), (index,))


def batch_normalization(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """BatchNormalization that was not folded."""
    gamma, beta, mean, variance = (reader.number(node, i) for i in range(1, 5))
    scale = gamma / np.sqrt(variance + float(str(attribute(node, "epsilon", 1e-5))))
    row = reader.row(node.inputs[0], node)
    shape = (-1, *(1,) * (len(row) - 1))
    moved = scale * mean
    # A sum, a root and a quotient; for the shift a product and a difference as well, which may cancel.
    return scaled(
        node,
        row,
        scale.reshape(shape),
        (beta - moved).reshape(shape),
        roundings=5,
        shift_size=(np.abs(beta) + np.abs(moved)).reshape(shape),
    )


def concat(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Concat along any axis but the batch."""
    rows = [reader.row(value, node) for value in node.inputs]
    axis = node.attributes.get_int("axis", 1)
    axis = axis - 1 if axis > 0 else axis + len(rows[0])
    if axis < 0 or any(reader.constant(value) is not None for value in node.inputs):
        raise refused(node, "it joins rows, or constants")
    return step(node, Join(axis, tuple(row[axis] for row in rows)), range(len(rows)))


def move(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Operators that keep each row's numbers, in another order or shape."""
    row, out = reader.row(node.inputs[0], node), reader.row(node.outputs[0], node)
    order = tuple(range(len(row)))
    if node.op_type == "Transpose":
        perm = ints_attribute(node, "perm", tuple(range(len(row), -1, -1)))
        if perm[0] != 0:
            raise refused(node, "it moves the batch")
        order = tuple(i - 1 for i in perm[1:])
    if math.prod(row) != math.prod(out):
        raise refused(node, "it mixes rows")
    return step(node, Move(row, order, out))


def mean(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """ReduceMean and GlobalAveragePool."""
    row = reader.row(node.inputs[0], node)
    if node.op_type == "GlobalAveragePool":
        axes, keep = tuple(range(1, len(row))), True
    else:
        given = optional(reader, node, 1)
        listed = (
            ints_attribute(node, "axes", ()) if given is None else tuple(int(a) for a in given.reshape(-1))
        )
        axes = tuple(sorted(a - 1 if a > 0 else a + len(row) for a in listed))
        keep = bool(node.attributes.get_int("keepdims", 1))
        if not axes or min(axes) < 0 or 0 in listed:
            raise refused(node, "it runs over the batch")
    weight = np.full(1, 1.0 / math.prod(row[a] for a in axes))
    rule = Affine(MeanMap(row, axes, weight), np.zeros(1))
    if keep:
        return step(node, rule)
    # As a mean that keeps its axes and a move: other versions of a net may have it in these two operators.
    kept = tuple(1 if i in axes else n for i, n in enumerate(row))
    first = Step(
        f"{site_name(node)}/mean", (name_of(node.inputs[0]),), f"{name_of(node.outputs[0])}/mean", rule
    )
    last = Move(kept, tuple(range(len(row))), reader.row(node.outputs[0], node))
    return [first, Step(site_name(node), (first.output,), name_of(node.outputs[0]), last)]


def average_pool(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """AveragePool: a depthwise convolution, and each sum divided by how many it counts."""
    row, out = reader.row(node.inputs[0], node), reader.row(node.outputs[0], node)
    op = pooling(node, row, out)
    inside = op.apply(np.ones((1, *row)))[0]
    if node.attributes.get_int("count_include_pad", 0):
        if node.attributes.get_int("ceil_mode", 0):
            raise refused(node, "it counts padding and rounds its size up")
        inside = np.full_like(inside, math.prod(op.weight.shape[2:]))
    if not inside.all():
        raise refused(node, "a window reads nothing but padding")
    middle = name_of(node.outputs[0]) + "/sum"
    first = Step(site_name(node) + "/sum", (name_of(node.inputs[0]),), middle, Affine(op, np.zeros(1)))
    last = Affine(ScaleMap(1 / inside, terms=2), np.zeros(1), roundings=1)
    return [first, Step(site_name(node), (middle,), name_of(node.outputs[0]), last)]


def pooling(node: ir.Node, row: tuple[int, ...], out: tuple[int, ...]) -> ConvMap:
    """The depthwise convolution that sums each window."""
    kernel = ints_attribute(node, "kernel_shape", ())
    ones = (1,) * len(kernel)
    strides, dilations = ints_attribute(node, "strides", ones), ints_attribute(node, "dilations", ones)
    pads = []
    for (before, after), n, m, k, s, d in zip(
        conv_padding(node, row[1:], kernel), row[1:], out[1:], kernel, strides, dilations, strict=True
    ):
        pads.append(
            (before, max(after, (m - 1) * s + (k - 1) * d + 1 - n - before))
        )  # ceil_mode reaches farther
    return ConvMap(np.ones((row[0], 1, *kernel)), row[1:], strides, tuple(pads), dilations, row[0])


def max_pool(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """MaxPool and GlobalMaxPool."""
    row, out = reader.row(node.inputs[0], node), reader.row(node.outputs[0], node)
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise refused(node, "its indices are read")
    if node.op_type == "GlobalMaxPool":
        return step(node, Largest(row, out, np.arange(math.prod(row)).reshape(row[0], -1)))
    op = pooling(node, row, out)
    numbers = np.arange(1, math.prod(row) + 1, dtype=np.float64).reshape(1, *row)
    reads = []
    for tap in np.ndindex(*op.weight.shape[2:]):
        picked = np.zeros_like(op.weight)
        picked[(slice(None), slice(None), *tap)] = 1.0
        found = op.with_weight(picked).apply(numbers)
        reads.append(found.reshape(-1)[: math.prod(out)] if found.shape[1:] == out else cropped(found, out))
    taps = np.stack(reads, 1).astype(np.int64) - 1
    if not (taps >= 0).any(1).all():
        raise refused(node, "a window reads nothing but padding")
    return step(node, Largest(row, out, taps))


def cropped(found: Array, out: tuple[int, ...]) -> Array:
    """The first positions of each dimension: attributes may leave padding that no window reaches."""
    index: tuple[int | slice, ...] = (0, *(slice(n) for n in out))
    return np.asarray(found[index]).reshape(-1)
