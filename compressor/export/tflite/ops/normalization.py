"""Normalizations: means and variances out of MEAN, RSQRT and arithmetic, in float32."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, operand_of
from edgepress.compressor.export.tflite.layout import axis_in
from edgepress.compressor.export.tflite.maths import TINY
from edgepress.compressor.export.tflite.ops.values import axes_in, real, spread, write
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Tensor
from edgepress.compressor.sites import int_attribute, ints_attribute


def moments(emit: Emitter, x: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and variance over dimensions of the file, which stay with size 1."""
    mean = emit.maths.reduced("MEAN", x, axes)
    return mean, emit.maths.reduced("MEAN", emit.maths.binary("SQUARED_DIFFERENCE", x, mean), axes)


def inverse_deviation(emit: Emitter, variance: Tensor, epsilon: float) -> Tensor:
    """1 / √(variance + ε)."""
    return emit.maths.unary("RSQRT", emit.maths.add(variance, epsilon))


def scaled(emit: Emitter, x: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """A scale and a bias, whichever there is."""
    y = x if scale is None else emit.maths.mul(x, scale)
    return y if bias is None else emit.maths.add(y, bias)


def batch_normalization(emit: Emitter, node: ir.Node) -> None:
    """One that no layer took in: MUL and ADD; in training mode with the moments of the batch."""
    x, scale, bias, mean, variance = node.inputs[:5]
    shape = emit.shape(x)
    rank, last = len(shape), emit.last(x)
    wide = (1, shape[1], *(1 for _ in shape[2:])) if rank > 1 else (shape[0],)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    if int_attribute(node, "training_mode", 0):
        _trained(emit, node, wide, epsilon)
        return
    data = real(emit, x, last=last)
    known = [array for each in (scale, bias, mean, variance) if (array := emit.constant(each)) is not None]
    if len(known) == 4:
        weight, shift, middle, power = (array.astype(np.float64) for array in known)
        factor = weight / np.sqrt(power + epsilon)
        slope = spread(emit, None, wide, last=last, array=factor)
        offset = spread(emit, None, wide, last=last, array=shift - middle * factor)
        write(emit, node.outputs[0], scaled(emit, data, slope, offset), last=last)
        return
    s, b, m, v = (spread(emit, each, wide, last=last) for each in (scale, bias, mean, variance))
    slope = emit.maths.mul(inverse_deviation(emit, v, epsilon), s)
    write(emit, node.outputs[0], scaled(emit, emit.maths.sub(data, m), slope, b), last=last)


def _trained(emit: Emitter, node: ir.Node, wide: tuple[int, ...], epsilon: float) -> None:
    """BatchNormalization with the moments of the batch; its running ones are moved towards them."""
    x, last = node.inputs[0], emit.last(node.inputs[0])
    rank, momentum = len(wide), node.attributes.get_float("momentum", 0.9)
    data = real(emit, x, last=last)
    mean, variance = moments(emit, data, axes_in([a for a in range(rank) if a != 1], rank, last))
    s, b = (spread(emit, each, wide, last=last) for each in node.inputs[1:3])
    slope = emit.maths.mul(inverse_deviation(emit, variance, epsilon), s)
    write(emit, node.outputs[0], scaled(emit, emit.maths.sub(data, mean), slope, b), last=last)
    for at, now in ((1, mean), (2, variance)):
        if len(node.outputs) > at:
            flat = emit.builder.reshaped(now, (wide[1],))
            old = emit.maths.mul(real(emit, node.inputs[2 + at]), momentum)
            write(emit, node.outputs[at], emit.maths.add(old, emit.maths.mul(flat, 1 - momentum)))


def layer_normalization(emit: Emitter, node: ir.Node) -> None:
    """Over all dimensions from `axis` on; mean and inverse deviation are further outputs."""
    x, scale, bias = node.inputs[0], operand_of(node, 1), operand_of(node, 2)
    shape = emit.shape(x)
    rank, last = len(shape), emit.last(x)
    over = range(int_attribute(node, "axis", -1) % rank, rank)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    data = real(emit, x, last=last)
    mean, variance = moments(emit, data, axes_in(over, rank, last))
    inverse = inverse_deviation(emit, variance, epsilon)
    y = emit.maths.mul(emit.maths.sub(data, mean), inverse)
    s, b = (_trailing(emit, each, rank, last) for each in (scale, bias))
    write(emit, node.outputs[0], scaled(emit, y, s, b), last=last)
    for at, found in ((1, mean), (2, inverse)):
        if len(node.outputs) > at:
            write(emit, node.outputs[at], found, last=last)


def rms_normalization(emit: Emitter, node: ir.Node) -> None:
    """By the root of the mean square: x / √(mean of squares + ε) · scale, over all dimensions from `axis` on."""
    x = node.inputs[0]
    rank, last = len(emit.shape(x)), emit.last(x)
    over = range(int_attribute(node, "axis", -1) % rank, rank)
    data = real(emit, x, last=last)
    power = emit.maths.reduced("MEAN", emit.maths.mul(data, data), axes_in(over, rank, last))
    inverse = inverse_deviation(emit, power, node.attributes.get_float("epsilon", 1e-5))
    y = emit.maths.mul(data, inverse)
    write(
        emit,
        node.outputs[0],
        scaled(emit, y, _trailing(emit, operand_of(node, 1), rank, last), None),
        last=last,
    )


def _trailing(emit: Emitter, value: ir.Value | None, rank: int, last: bool) -> Tensor | None:
    """A parameter for the last dimensions, with ones in front."""
    if value is None:
        return None
    own = emit.shape(value)
    return spread(emit, value, (1,) * (rank - len(own)) + own, last=last)


def instance_normalization(emit: Emitter, node: ir.Node) -> None:
    """Each channel of each sample by itself."""
    x = node.inputs[0]
    shape = emit.shape(x)
    rank, last = len(shape), emit.last(x)
    data = real(emit, x, last=last)
    mean, variance = moments(emit, data, axes_in(range(2, rank), rank, last))
    wide = (1, shape[1], *(1 for _ in shape[2:]))
    s, b = (spread(emit, each, wide, last=last) for each in node.inputs[1:3])
    inverse = inverse_deviation(emit, variance, node.attributes.get_float("epsilon", 1e-5))
    slope = emit.maths.mul(inverse, s)
    write(emit, node.outputs[0], scaled(emit, emit.maths.sub(data, mean), slope, b), last=last)


def group_normalization(emit: Emitter, node: ir.Node) -> None:
    """Groups of channels of each sample; scale and bias are of channels (of groups before opset 21)."""
    x = node.inputs[0]
    n, channels, *spatial = emit.shape(x)
    groups, last = int_attribute(node, "num_groups", 1), emit.last(x)
    each, positions = channels // groups, int(np.prod(spatial))
    data = real(emit, x, last=last)
    split, over = ((n, positions, groups, each), (1, 3)) if last else ((n, groups, each, positions), (2, 3))
    grouped = emit.builder.reshaped(data, split)
    mean, variance = moments(emit, grouped, over)
    inverse = inverse_deviation(emit, variance, node.attributes.get_float("epsilon", 1e-5))
    y = emit.maths.mul(emit.maths.sub(grouped, mean), inverse)
    for code, value in zip(("MUL", "ADD"), node.inputs[1:3], strict=True):
        parameter = real(emit, value)
        own = each if parameter.shape[0] == channels else 1
        wide = (1, 1, groups, own) if last else (1, groups, own, 1)
        y = emit.maths.binary(code, y, emit.builder.reshaped(parameter, wide))
    write(emit, node.outputs[0], emit.builder.reshaped(y, data.shape), last=last)


def mean_variance_normalization(emit: Emitter, node: ir.Node) -> None:
    """(x − mean) / (deviation + 1e-9), over batch and positions where nothing else is said."""
    x = node.inputs[0]
    rank, last = len(emit.shape(x)), emit.last(x)
    data = real(emit, x, last=last)
    mean, variance = moments(emit, data, axes_in(ints_attribute(node, "axes", (0, 2, 3)), rank, last))
    deviation = emit.maths.add(emit.maths.unary("SQRT", variance), 1e-9)
    write(
        emit,
        node.outputs[0],
        emit.maths.div(emit.maths.sub(data, mean), deviation),
        last=last,
    )


def lp_normalization(emit: Emitter, node: ir.Node) -> None:
    """Each vector by its length; L2_NORMALIZATION has a floor of its own, so it is not used."""
    x = node.inputs[0]
    rank, last = len(emit.shape(x)), emit.last(x)
    data = real(emit, x, last=last)
    axis = axis_in(int_attribute(node, "axis", -1) % rank, rank, last)
    if int_attribute(node, "p", 2) == 1:
        length = emit.maths.reduced("SUM", emit.maths.unary("ABS", data), [axis])
    else:
        length = emit.maths.unary("SQRT", emit.maths.reduced("SUM", emit.maths.mul(data, data), [axis]))
    y = emit.maths.div(data, emit.maths.maximum(length, TINY))
    write(emit, node.outputs[0], y, last=last)


def local_response_normalization(emit: Emitter, node: ir.Node) -> None:
    """LOCAL_RESPONSE_NORMALIZATION; windows of even size, and other ranks than 4, by a product with a band."""
    x = node.inputs[0]
    size = int_attribute(node, "size", 1)
    alpha, beta, bias = (
        node.attributes.get_float(name, default)
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    data = real(emit, x, last=True)
    if size % 2 and len(data.shape) == 4:
        made = options(
            "LocalResponseNormalization", radius=size // 2, bias=bias, alpha=alpha / size, beta=beta
        )
        y = emit.builder.op("LOCAL_RESPONSE_NORMALIZATION", [data], data.shape, options=made)
        write(emit, node.outputs[0], y, last=True)
        return
    channels = emit.shape(x)[1]
    reach = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    band = (reach >= -((size - 1) // 2)) & (reach <= size // 2)
    weights = emit.builder.constant(band.astype(np.float32) * np.float32(alpha / size))
    offset = emit.builder.constant(np.full(channels, bias, np.float32))
    made = options("FullyConnected", keepNumDims=True)
    inputs = [emit.maths.mul(data, data), weights, offset]
    powers = emit.builder.op("FULLY_CONNECTED", inputs, data.shape, options=made)
    y = emit.maths.div(data, emit.maths.binary("POW", powers, beta))
    write(emit, node.outputs[0], y, last=True)


HANDLERS = {
    "BatchNormalization": batch_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "LpNormalization": lp_normalization,
    "LRN": local_response_normalization,
}
