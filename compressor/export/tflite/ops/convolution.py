"""Conv and ConvTranspose, in one and two dimensions; one dimension is two with a height of 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, Ending, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.layout import arranged
from edgepress.compressor.export.tflite.ops.moving import surrounded
from edgepress.compressor.export.tflite.ops.values import real, write
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Array, Grid, Shape, Tensor
from edgepress.compressor.sites import conv_padding, int_attribute, ints_attribute

INT4_KERNEL = 4
"""Bits up to which a 1 × 1 convolution is written as FULLY_CONNECTED, the only kernel that reads packed weights."""


@dataclass(frozen=True)
class Window:
    """What a convolution or a pooling moves over its input, always in two dimensions."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]

    @property
    def padded(self) -> bool:
        """Whether anything is added around the input."""
        return any(edge for pair in self.pads for edge in pair)

    def is_same(self, size: Sequence[int]) -> bool:
        """Whether the pads are those that TensorFlow calls SAME for an input of this height and width."""
        for at, length in enumerate(size):
            steps = -(-length // self.strides[at])
            reach = (self.kernel[at] - 1) * self.dilations[at] + 1
            total = max((steps - 1) * self.strides[at] + reach - length, 0)
            if self.pads[at] != (total // 2, total - total // 2):
                return False
        return True


def window_of(node: ir.Node, size: Sequence[int], kernel: Sequence[int]) -> Window:
    """A node's window; `size` and `kernel` have one or two dimensions."""
    if len(kernel) not in {1, 2}:
        raise UnsupportedError(f"rank: {node.op_type} in {len(kernel)} dimensions; TFLite has one and two")
    one = [1] * len(kernel)
    strides, dilations = ints_attribute(node, "strides", one), ints_attribute(node, "dilations", one)
    pads = conv_padding(node, size, kernel)
    flat = len(kernel) == 1
    return Window(
        _pair(kernel, flat),
        _pair(strides, flat),
        _pair(dilations, flat),
        ((0, 0), pads[0]) if flat else (pads[0], pads[1]),
    )


def _pair(sizes: Sequence[int], flat: bool) -> tuple[int, int]:
    return (1, int(sizes[0])) if flat else (int(sizes[0]), int(sizes[1]))


def image(emit: Emitter, value: ir.Value | None, *, integer: bool) -> Tensor:
    """A value [N, C, W] or [N, C, H, W] as [N, H, W, C]."""
    tensor = emit.read(value, integer=True, last=True) if integer else real(emit, value, last=True)
    if len(tensor.shape) == 3:
        n, w, c = tensor.shape
        return emit.builder.reshaped(tensor, (n, 1, w, c))
    return tensor


def finish(emit: Emitter, value: ir.Value, tensor: Tensor) -> None:
    """Write a result [N, H, W, C] as the value's own rank."""
    shape = arranged(emit.shape(value), last=True)
    write(emit, value, emit.builder.reshaped(tensor, shape), last=True)


def padded(emit: Emitter, x: Tensor, window: Window) -> tuple[Tensor, str]:
    """The input with what `Window.pads` adds, and the padding that the kernel does itself."""
    if not window.padded:
        return x, "VALID"
    if window.is_same(x.shape[1:3]):
        return x, "SAME"
    return surrounded(emit, x, [(0, 0), *window.pads, (0, 0)]), "VALID"


def integer_bias(emit: Emitter, value: ir.Value | None, x: Grid, scale: Array, outputs: int) -> Tensor:
    """The bias [outputs] in int32 on the grid of the products, scale(x) · scale(w)."""
    steps = (np.float32(x.scale[0]) * scale.astype(np.float32)).astype(np.float32)
    grid = Grid(tuple(steps.tolist()), (0,) * steps.size)
    codes, known = emit.codes(value), emit.constant(value)
    if value is not None and known is None:
        raise UnsupportedError(f"form: the bias {value.name!r} is not a constant")
    if (
        codes is not None
        and np.allclose(codes.scale.reshape(-1), steps, rtol=1e-5, atol=0)
        and codes.symmetric
    ):
        integers = codes.integers.reshape(-1).astype(np.int32)
    elif known is not None:
        wide = np.round(known.reshape(-1).astype(np.float32) / steps)  # in float32, as onnxruntime does
        integers = np.clip(wide, -(2**31), 2**31 - 1).astype(np.int32)
    else:
        integers = np.zeros(outputs, np.int32)
    return emit.builder.constant(np.broadcast_to(integers, (outputs,)), grid)


def float_bias(emit: Emitter, value: ir.Value | None, outputs: int) -> Tensor:
    """The bias [outputs] in float32; zeros where there is none."""
    known = emit.constant(value)
    if value is not None and known is None:
        return emit.builder.reshaped(real(emit, value), (outputs,))
    array = np.zeros(outputs) if known is None else np.broadcast_to(known.reshape(-1), (outputs,))
    return emit.builder.constant(array.astype(np.float32))


def integer_weights(emit: Emitter, value: ir.Value | None, outputs: int, axis: int = 0) -> Array | None:
    """Scales [1] or [outputs] of a weight that integer kernels take (8 bits, symmetric); None for others.

    Args:
        emit: knows it.
        value: the weight.
        outputs: how many.
        axis: that counts them.
    """
    codes = emit.codes(value)
    if (
        codes is None
        or codes.bits > 8
        or not codes.symmetric
        or codes.block
        or codes.scale.size not in {1, outputs}
        or (codes.scale.size > 1 and codes.axis != axis)
    ):
        return None
    return codes.scale.reshape(-1)


def conv(emit: Emitter, node: ir.Node) -> None:
    """CONV_2D, DEPTHWISE_CONV_2D, or FULLY_CONNECTED for 1 × 1 with packed weights."""
    x, w, b = node.inputs[0], node.inputs[1], operand_of(node, 2)
    if w is None or x is None:
        raise UnsupportedError("form: an operand is missing")
    weight = emit.shape(w)
    outputs, group = weight[0], int_attribute(node, "group", 1)
    window = window_of(node, emit.shape(x)[2:], weight[2:])
    ending = emit.ending(node.outputs[0], fuse=True)
    scale = integer_weights(emit, w, outputs)
    known = b is None or emit.constant(b) is not None
    integer = scale is not None and known and emit.integral(ending, x)
    data, padding = padded(emit, image(emit, x, integer=integer), window)
    depthwise = group > 1 and weight[1] == 1
    codes = emit.codes(w)
    whole = group == 1 and window.kernel == window.strides == (1, 1) and not window.padded
    few = integer and whole and codes is not None and codes.bits <= INT4_KERNEL
    if emit.constant(w) is None:
        filters = _computed_filters(emit, w, depthwise=depthwise)
    elif few and codes is not None and scale is not None:
        filters = packed(emit, w, codes.integers.reshape(outputs, -1), scale)
    else:
        filters = _filters(emit, w, weight, depthwise=depthwise, integer=integer)
    if integer and scale is not None and data.grid is not None:
        bias = integer_bias(emit, b, data.grid, scale, outputs)
    else:
        bias = float_bias(emit, b, outputs)
    code, made = _kernel(window, padding, ending, few=few, multiplier=outputs // group if depthwise else 0)
    result = (*_result_shape(emit, ending.value)[:3], outputs)
    grid, dtype = (ending.grid, "INT8") if integer else (None, "FLOAT32")
    finish(emit, ending.value, emit.builder.op(code, [data, filters, bias], result, dtype, grid, made))


def _kernel(window: Window, padding: str, ending: Ending, *, few: bool, multiplier: int) -> tuple[str, Any]:
    """The operator and its options."""
    activation = {"fusedActivationFunction": ending.activation}
    if few:
        return "FULLY_CONNECTED", options("FullyConnected", keepNumDims=True, **activation)
    fields = {
        "padding": padding,
        "strideH": window.strides[0],
        "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0],
        "dilationWFactor": window.dilations[1],
        **activation,
    }
    if multiplier:
        return "DEPTHWISE_CONV_2D", options("DepthwiseConv2D", depthMultiplier=multiplier, **fields)
    return "CONV_2D", options("Conv2D", **fields)


def _computed_filters(emit: Emitter, value: ir.Value, *, depthwise: bool) -> Tensor:
    """Weights [O, I/g, (H,) W] that are worked out while the model runs, as `_filters` gives them."""
    w = real(emit, value)
    if len(w.shape) == 3:
        w = emit.builder.reshaped(w, (*w.shape[:2], 1, w.shape[2]))
    return emit.builder.transposed(w, [1, 2, 3, 0] if depthwise else [0, 2, 3, 1])


def packed(emit: Emitter, value: ir.Value, integers: Array, scale: Array) -> Tensor:
    """Constant weights [O, I] in the fewest bits that FULLY_CONNECTED unpacks: 2, 4 or 8."""
    codes = emit.codes(value)
    bits = codes.bits if codes is not None else 8
    dtype = {2: "INT2", 4: "INT4"}.get(bits, "INT8")
    per_output = np.broadcast_to(scale, (integers.shape[0],)) if dtype != "INT8" else scale
    grid = Grid(tuple(per_output.astype(np.float32).tolist()), (0,) * per_output.size)
    return emit.builder.constant(integers.astype(np.int8), grid, dtype, value.name or "")


def _filters(emit: Emitter, value: ir.Value, shape: Shape, *, depthwise: bool, integer: bool) -> Tensor:
    """Weights [O, I/g, (H,) W] as [O, H, W, I/g], or [1, H, W, O] for depthwise."""
    o, i = shape[:2]
    h, w = shape[2:] if len(shape) == 4 else (1, shape[2])

    def arrange(array: Array) -> Array:
        four = array.reshape(o, i, h, w)
        return four.transpose(1, 2, 3, 0) if depthwise else four.transpose(0, 2, 3, 1)

    axis = 3 if depthwise else 0
    codes = emit.codes(value)
    if integer and codes is not None:
        scale = np.broadcast_to(codes.scale.reshape(-1), (codes.scale.size,)).astype(np.float32)
        grid = Grid(tuple(scale.tolist()), (0,) * scale.size, axis)
        return emit.builder.constant(arrange(codes.integers.astype(np.int8)), grid, name=value.name or "")
    return emit.stored(value, arrange, axis)


def _result_shape(emit: Emitter, value: ir.Value) -> Shape:
    shape = arranged(emit.shape(value), last=True)
    return shape if len(shape) == 4 else (shape[0], 1, *shape[1:])


HANDLERS = {"Conv": conv}
