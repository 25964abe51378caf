"""Pooling over windows and over whole maps."""

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError
from edgepress.compressor.export.tflite.layout import arranged
from edgepress.compressor.export.tflite.ops.convolution import finish, image, padded, window_of
from edgepress.compressor.export.tflite.ops.reductions import reduce
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.sites import int_attribute, ints_attribute


def max_pool(emit: Emitter, node: ir.Node) -> None:
    """MAX_POOL_2D; of integers, on their own grid."""
    x = node.inputs[0]
    kernel = ints_attribute(node, "kernel_shape", ())
    window = window_of(node, emit.shape(x)[2:], kernel)
    if window.dilations != (1, 1) or int_attribute(node, "ceil_mode", 0) or len(node.outputs) > 1:
        raise UnsupportedError("form: MaxPool with dilations, ceil_mode or indices")
    grid = emit.grid(x)
    data, padding = padded(emit, image(emit, x, integer=grid is not None), window, fill=float("-inf"))
    shape = arranged(emit.shape(node.outputs[0]), last=True)
    made = options(
        "Pool2D",
        padding=padding,
        strideH=window.strides[0],
        strideW=window.strides[1],
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
    )
    four = shape if len(shape) == 4 else (shape[0], 1, *shape[1:])
    finish(emit, node.outputs[0], emit.builder.op("MAX_POOL_2D", [data], four, grid=grid, options=made))


def global_average_pool(emit: Emitter, node: ir.Node) -> None:
    """MEAN over all but batch and channels."""
    reduce(emit, node, "MEAN", list(range(2, len(emit.shape(node.inputs[0])))), keep=True)


HANDLERS = {"MaxPool": max_pool, "GlobalAveragePool": global_average_pool}
