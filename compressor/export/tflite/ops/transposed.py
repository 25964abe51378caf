"""ConvTranspose: TRANSPOSE_CONV without pads, which are cut off behind it; groups one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.ops.convolution import (
    finish,
    float_bias,
    image,
    integer_bias,
    integer_weights,
)
from edgepress.compressor.export.tflite.ops.moving import cut, joined, parts, surrounded, vector
from edgepress.compressor.export.tflite.ops.values import real
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Array, Grid, Tensor
from edgepress.compressor.sites import attribute, int_attribute, ints_attribute

Pair = tuple[int, int]


@dataclass(frozen=True)
class Spread:
    """What a transposed convolution does to height and width.

    Attributes:
        strides: of the output, for one step of the input.
        dilations: of the kernel.
        reach: of the kernel, holes included.
        before: positions cut off in front.
        result: size of the output.
    """

    strides: Pair
    dilations: Pair
    reach: Pair
    before: Pair
    result: Pair

    @classmethod
    def of(cls, node: ir.Node, size: Sequence[int], kernel: Sequence[int], result: Sequence[int]) -> "Spread":
        """What a node does to an input of this size; all have one or two dimensions."""
        one = [1] * len(size)
        strides, dilations = ints_attribute(node, "strides", one), ints_attribute(node, "dilations", one)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        before = list(ints_attribute(node, "pads", [0] * 2 * len(size)))[: len(size)]
        auto = attribute(node, "auto_pad", "NOTSET")
        if auto == "VALID":
            before = [0] * len(size)
        elif auto != "NOTSET":
            extra = ints_attribute(node, "output_padding", [0] * len(size))
            total = [
                max((n - 1) * s + r + e - out, 0)
                for n, s, r, e, out in zip(size, strides, reach, extra, result, strict=True)
            ]
            before = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
        flat = [(1, *each) if len(size) == 1 else each for each in (strides, dilations, reach, result)]
        s, d, r, out = ((int(each[0]), int(each[1])) for each in flat)
        pad = (0, before[0]) if len(size) == 1 else (before[0], before[1])
        return cls(s, d, r, pad, out)

    def full(self, size: Sequence[int]) -> Pair:
        """Height and width before anything is cut off."""
        h, w = ((size[at] - 1) * self.strides[at] + self.reach[at] for at in (0, 1))
        return h, w

    def is_same(self, size: Sequence[int]) -> bool:
        """Whether what is cut off is what TensorFlow calls SAME."""
        for at, full in enumerate(self.full(size)):
            total = max(full - self.result[at], 0)
            if -(-self.result[at] // self.strides[at]) != size[at] or self.before[at] != total // 2:
                return False
        return True


def conv_transpose(emit: Emitter, node: ir.Node) -> None:
    """TRANSPOSE_CONV, with SPLIT and CONCATENATION around it for groups, and a SLICE behind it for pads."""
    x, w, b = node.inputs[0], node.inputs[1], operand_of(node, 2)
    weight, size = emit.shape(w), emit.shape(x)[2:]
    if len(size) not in {1, 2} or w is None:
        raise UnsupportedError(f"rank: ConvTranspose in {len(size)} dimensions; TFLite has one and two")
    group = int_attribute(node, "group", 1)
    outputs = weight[1] * group
    spread = Spread.of(node, size, weight[2:], emit.shape(node.outputs[0])[2:])
    ending = emit.ending(node.outputs[0], fuse=True)
    scale = integer_weights(emit, w, weight[1], axis=1)
    known = b is None or emit.constant(b) is not None
    integer = scale is not None and known and emit.integral(ending, x)
    data = image(emit, x, integer=integer)
    if integer and scale is not None and data.grid is not None:
        bias = integer_bias(emit, b, data.grid, np.resize(scale, outputs), outputs)
    else:
        bias = float_bias(emit, b, outputs)
    lacking = [
        r + f - w for r, f, w in zip(spread.result, spread.before, spread.full(data.shape[1:3]), strict=True)
    ]
    more = [-(-lack // s) if lack >= s else 0 for lack, s in zip(lacking, spread.strides, strict=True)]
    if any(more):
        data = surrounded(emit, data, [(0, 0), (0, more[0]), (0, more[1]), (0, 0)])
    grid = ending.grid if integer else None
    filters = _filters(emit, w, group, spread.dilations, integer=integer)
    y = joined(
        emit,
        [
            _scattered(emit, one, kernel, offset, spread, (ending.activation, grid))
            for one, kernel, offset in zip(
                parts(emit, data, 3, group), filters, _biases(emit, bias, group), strict=True
            )
        ],
        3,
    )
    for at in (0, 1):
        before = 0 if y.shape[1 + at] == spread.result[at] else spread.before[at]
        y = cut(emit, y, {1 + at: range(before, before + spread.result[at])})
    finish(emit, ending.value, y)


def _scattered(
    emit: Emitter, x: Tensor, filters: Tensor, bias: Tensor, spread: Spread, end: tuple[str, Grid | None]
) -> Tensor:
    """One TRANSPOSE_CONV, either of the size that is wanted or with what is still to be cut off.

    Args:
        emit: writes it.
        x: [N, H, W, I].
        filters: [O, kH, kW, I].
        bias: [O].
        spread: what it does to height and width.
        end: the activation that the kernel applies, and the grid of the result.
    """
    activation, grid = end
    same, size = spread.is_same(x.shape[1:3]), x.shape[1:3]
    whole = [
        out if same else max(full, before + out)
        for out, full, before in zip(spread.result, spread.full(size), spread.before, strict=True)
    ]
    shape = (x.shape[0], *whole, filters.shape[0])
    made = options(
        "TransposeConv",
        padding="SAME" if same else "VALID",
        strideH=spread.strides[0],
        strideW=spread.strides[1],
        fusedActivationFunction=activation,
    )
    inputs = [_sizes(emit, x, shape), filters, x, bias]
    dtype, version = "FLOAT32" if grid is None else "INT8", 3 if activation == "NONE" else 4
    return emit.builder.op("TRANSPOSE_CONV", inputs, shape, dtype, grid, made, version)


def _sizes(emit: Emitter, x: Tensor, shape: Sequence[int]) -> Tensor:
    """The output's shape, as the kernel reads it; the batch is taken from the input where it may be any."""
    static = emit.builder.signature(shape)
    if -1 not in static:
        return vector(emit, shape)
    made = options("Shape", outType="INT32")
    own = emit.builder.op("SHAPE", [x], (4,), "INT32", options=made)
    return joined(emit, [cut(emit, own, {0: range(1)}), vector(emit, shape[1:])], 0)


def _biases(emit: Emitter, bias: Tensor, group: int) -> list[Tensor]:
    """The bias of each group."""
    if bias.array is None or group == 1:
        return parts(emit, bias, 0, group)
    pieces = np.split(bias.array, group)
    if bias.grid is None:
        return [emit.builder.constant(piece) for piece in pieces]
    each = len(pieces[0])
    cut = [Grid(bias.grid.scale[at * each : (at + 1) * each], (0,) * each) for at in range(group)]
    return [emit.builder.constant(piece, grid) for piece, grid in zip(pieces, cut, strict=True)]


def _filters(emit: Emitter, value: ir.Value, group: int, dilations: Pair, *, integer: bool) -> list[Tensor]:
    """Weights [I, O/g, (kH,) kW] as one [O/g, kH, kW, I/g] for each group, holes filled with zeros."""
    shape, codes = emit.shape(value), emit.codes(value)
    inputs, outputs, *kernel = shape
    four = (inputs, outputs, *([1] * (2 - len(kernel))), *kernel)
    each = inputs // group

    def arrange(array: Array, at: int) -> Array:
        turned = array.reshape(four)[at * each : (at + 1) * each].transpose(1, 2, 3, 0)
        reach = [(k - 1) * d + 1 for k, d in zip(four[2:], dilations, strict=True)]
        wide = np.zeros((outputs, *reach, each), array.dtype)
        wide[:, :: dilations[0], :: dilations[1]] = turned
        return wide

    if emit.constant(value) is None:
        whole = emit.builder.transposed(emit.builder.reshaped(real(emit, value), four), [1, 2, 3, 0])
        for axis in (1, 2):
            whole = _with_holes(emit, whole, axis, dilations[axis - 1])
        return parts(emit, whole, 3, group)
    if integer and codes is not None:
        scale = codes.scale.reshape(-1).astype(np.float32)
        grid = Grid(tuple(scale.tolist()), (0,) * scale.size)
        narrow = codes.integers.astype(np.int8)
        return [emit.builder.constant(arrange(narrow, at), grid) for at in range(group)]
    return [emit.stored(value, lambda array, at=at: arrange(array, at), 0) for at in range(group)]  # type: ignore[misc]


def _with_holes(emit: Emitter, x: Tensor, axis: int, step: int) -> Tensor:
    """Zeros between neighbours along one dimension, `step` − 1 of them."""
    if step == 1:
        return x
    front, length, rest = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    four = (int(np.prod(front)), length, 1, int(np.prod(rest)))
    spaced = surrounded(emit, emit.builder.reshaped(x, four), [(0, 0), (0, 0), (0, step - 1), (0, 0)])
    whole = emit.builder.reshaped(spaced, (*front, length * step, *rest))
    return cut(emit, whole, {axis: range((length - 1) * step + 1)})


HANDLERS = {"ConvTranspose": conv_transpose}
