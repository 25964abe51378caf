"""ONNX operators as steps: one handler each."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.affine import Affine, Join, Move, Sum
from edgepress.compressor.certify.curves import Bent, Grid, Smooth
from edgepress.compressor.certify.linear import ConvMap, Linear, MatrixMap, MeanMap, ScaleMap
from edgepress.compressor.certify.normalizers import Norm, Softmax
from edgepress.compressor.certify.program import CLIP_OF_GRID, Handler, Reader, Step, refused
from edgepress.compressor.certify.rules import Rule
from edgepress.compressor.certify.selection import Largest
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import attribute, conv_padding, exclusive, ints_attribute, site_name


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


def conv(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Conv, grouped or not."""
    weight, bias = reader.number(node, 1), optional(reader, node, 2)
    row, kernel = reader.row(node.inputs[0], node), weight.shape[2:]
    ones = (1,) * len(kernel)
    op = ConvMap(
        weight,
        row[1:],
        ints_attribute(node, "strides", ones),
        tuple(conv_padding(node, row[1:], kernel)),
        ints_attribute(node, "dilations", ones),
        node.attributes.get_int("group", 1),
    )
    shape = (-1, *ones)
    return step(
        node,
        Affine(op, (np.zeros(len(weight)) if bias is None else bias).reshape(shape)),
        tunable=own_weight(node),
    )


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


def scaled(node: ir.Node, row: tuple[int, ...], scale: Array, shift: Array, index: int = 0) -> Sequence[Step]:
    """Y = scale x + shift, both given as they broadcast to a batch."""
    wide = []
    for array in (scale, shift):
        if array.ndim > len(row) + 1 or (array.ndim == len(row) + 1 and array.shape[0] != 1):
            raise refused(node, "a constant differs from row to row")
        try:
            own = array.reshape(array.shape[-len(row) :]) if array.ndim > len(row) else array
            wide.append(np.broadcast_to(own, row))
        except ValueError:
            raise refused(node, "a constant makes its input larger") from None
    return step(node, Affine(ScaleMap(wide[0].copy(), terms=2), wide[1].copy()), (index,))


def batch_normalization(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """BatchNormalization that was not folded."""
    gamma, beta, mean, variance = (reader.number(node, i) for i in range(1, 5))
    scale = gamma / np.sqrt(variance + float(str(attribute(node, "epsilon", 1e-5))))
    row = reader.row(node.inputs[0], node)
    shape = (-1, *(1,) * (len(row) - 1))
    return scaled(node, row, scale.reshape(shape), (beta - scale * mean).reshape(shape))


def arithmetic(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Add, Sub, Mul, Div with a constant; Add and Sub of two values of one shape."""
    known = [reader.constant(value) is not None for value in node.inputs]
    kind = node.op_type
    if any(known):
        at = known.index(False) if not all(known) else 0
        other, row = reader.number(node, 1 - at), reader.row(node.inputs[at], node)
        one, none = np.ones(1), np.zeros(1)
        if kind == "Div":
            if at == 1 or not other.all():
                raise refused(node, "it divides by what varies, or by 0")
            return scaled(node, row, 1 / other, none)
        if kind == "Mul":
            return scaled(node, row, other, none, at)
        sign = -1.0 if kind == "Sub" else 1.0
        return scaled(node, row, one if at == 0 else sign * one, other * (sign if at == 0 else 1.0), at)
    if kind not in ("Add", "Sub") or len({reader.row(v, node) for v in node.inputs}) != 1:
        raise refused(node, "it joins two values that vary" if kind in ("Mul", "Div") else "its sizes differ")
    if node.inputs[0] is node.inputs[1]:
        return scaled(
            node, reader.row(node.inputs[0], node), np.full(1, 2.0 if kind == "Add" else 0.0), np.zeros(1)
        )
    return step(node, Sum((1.0, -1.0 if kind == "Sub" else 1.0)), (0, 1))


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


def clip(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Relu, Clip."""
    if node.op_type == "Relu":
        return step(node, Bent())
    ends = []
    for index, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        given = optional(reader, node, index)
        old = float(str(attribute(node, name, default)))
        ends.append(old if given is None else float(given.reshape(-1)[0]))
    if ends[0] > ends[1]:
        raise refused(node, "its least is above its largest")
    return step(node, Bent(ends[0], ends[1]))


def leaky(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """LeakyRelu and PRelu; slopes outside [0, 1], where it is no curve of `curves`, as relu(x) − s relu(−x)."""
    if node.op_type == "PRelu":
        below = reader.number(node, 1)
        row = reader.row(node.inputs[0], node)
        if below.ndim > len(row):
            below = below.reshape(below.shape[-len(row) :])
        below = np.broadcast_to(below, row)
    else:
        below = np.asarray(float(str(attribute(node, "alpha", 0.01))))
    if (below >= 0).all() and (below <= 1).all():
        return step(node, Bent(below=below))
    name, output = site_name(node), name_of(node.outputs[0])
    row = reader.row(node.inputs[0], node)

    def part(kind: str, rule: Rule, *reads: str) -> Step:
        return Step(f"{name}/{kind}", reads, f"{output}/{kind}", rule)

    def factor(scale: Array) -> Affine:
        return Affine(ScaleMap(np.broadcast_to(scale, row).copy()), np.zeros(1))

    above = part("above", Bent(), name_of(node.inputs[0]))
    minus = part("minus", factor(np.full(1, -1.0)), name_of(node.inputs[0]))
    under = part("under", Bent(), minus.output)
    bent = part("bent", factor(-below), under.output)
    return [above, minus, under, bent, Step(name, (above.output, bent.output), output, Sum((1.0, 1.0)))]


def smooth(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Sigmoid, Tanh."""
    return step(node, Smooth("Tanh" if node.op_type == "Tanh" else "Sigmoid"))


def softmax(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Softmax along an axis of a row."""
    rank = len(reader.row(node.inputs[0], node))
    axis = node.attributes.get_int("axis", -1)
    axis = axis - 1 if axis > 0 else axis + rank
    if axis < 0 or (opset_of(reader) < 13 and axis != rank - 1):
        raise refused(node, "it runs over the batch, or over several axes")
    return step(node, Softmax(axis))


def opset_of(reader: Reader) -> int:
    """Release of the operators."""
    return reader.model.graph.opset_imports.get("", 0)


def norm(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """LRN ("norm")."""
    found = [
        float(str(attribute(node, name, default)))
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    ]
    if found[0] < 0 or found[1] < 0 or found[2] <= 0:
        raise refused(node, "alpha or beta is below 0, or bias is not above 0")
    return step(node, Norm(node.attributes.get_int("size"), *found))


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
        axes = tuple(a - 1 if a > 0 else a + len(row) for a in listed)
        keep = bool(node.attributes.get_int("keepdims", 1))
        if not axes or min(axes) < 0 or 0 in listed:
            raise refused(node, "it runs over the batch")
    weight = np.full(1, 1.0 / math.prod(row[a] for a in axes))
    return step(node, Affine(MeanMap(row, axes, keep, weight), np.zeros(1)))


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
    last = Affine(ScaleMap(1 / inside, terms=2), np.zeros(1))
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


def quantizer(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """QuantizeLinear: clipped to what the integers hold, then rounded; the integers are told in units of the reals."""
    scale, zero = reader.number(node, 1), optional(reader, node, 2)
    kind = node.outputs[0].dtype
    if scale.size != 1 or kind is None or not kind.is_integer():
        raise refused(node, "its scale differs from channel to channel")
    reads = [use.node.op_type for use in node.outputs[0].uses()]
    if set(reads) != {"DequantizeLinear"} or node.outputs[0].is_graph_output():
        raise refused(node, "integers are read by other operators")
    if on_grid(reader, node.inputs[0], node):
        row = reader.row(node.inputs[0], node)
        return step(node, Move(row, tuple(range(len(row))), row))
    about = np.iinfo(kind.numpy())
    step_size, offset = float(scale.reshape(-1)[0]), 0.0 if zero is None else float(zero.reshape(-1)[0])
    middle = name_of(node.outputs[0]) + CLIP_OF_GRID
    ends = Bent((about.min - offset) * step_size, (about.max - offset) * step_size)
    name = site_name(node)
    return [
        Step(name + CLIP_OF_GRID, (name_of(node.inputs[0]),), middle, ends),
        Step(name, (middle,), name_of(node.outputs[0]), Grid(step_size)),
    ]


def on_grid(reader: Reader, value: ir.Value | None, node: ir.Node) -> bool:
    """Whether a value has just come from a pair with the grid of `node` and was only moved: it rounds to itself."""
    maker = None if value is None else value.producer()
    if maker is None:
        return False
    if maker.op_type == "DequantizeLinear":
        return same_grid(reader, maker, node)
    if maker.op_type == "Concat":
        return all(on_grid(reader, each, node) for each in maker.inputs)
    return maker.op_type in (*MOVES, "MaxPool") and on_grid(reader, maker.inputs[0], node)


def same_grid(reader: Reader, one: ir.Node, other: ir.Node) -> bool:
    """Whether two nodes have the same scale and zero point."""
    ours, theirs = ([reader.constant(v) for v in n.inputs[1:]] for n in (one, other))
    return len(ours) == len(theirs) and all(
        a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in zip(ours, theirs, strict=True)
    )


def dequantizer(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """DequantizeLinear of what a QuantizeLinear with the same grid gave: nothing is left to do."""
    value = node.inputs[0]
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "QuantizeLinear":
        raise refused(node, "it reads integers that no QuantizeLinear gave")
    if not same_grid(reader, node, maker):
        raise refused(node, "its scale or zero point is not that of its QuantizeLinear")
    row = reader.row(node.outputs[0], node)
    return step(node, Move(row, tuple(range(len(row))), row))


MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout")
HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), arithmetic),
    **dict.fromkeys(("Relu", "Clip"), clip),
    **dict.fromkeys(("LeakyRelu", "PRelu"), leaky),
    **dict.fromkeys(("Sigmoid", "Tanh"), smooth),
    **dict.fromkeys(("ReduceMean", "GlobalAveragePool"), mean),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), max_pool),
    "Conv": conv, "Gemm": gemm, "MatMul": matmul, "BatchNormalization": batch_normalization, "Concat": concat,
    "Softmax": softmax, "LRN": norm, "AveragePool": average_pool, "QuantizeLinear": quantizer,
    "DequantizeLinear": dequantizer,
}  # fmt: skip

__all__ = ["HANDLERS", "Linear"]
