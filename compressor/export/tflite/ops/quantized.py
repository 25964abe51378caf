"""QuantizeLinear and DequantizeLinear: between integer kernels they are only names for the same integers."""

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError
from edgepress.compressor.export.tflite.quantization import grid_of


def quantize_linear(emit: Emitter, node: ir.Node) -> None:
    """QUANTIZE, or nothing where the integers are there already."""
    grid = grid_of(node, emit.constants)
    if grid is None:
        raise UnsupportedError(
            "dtype: activations are quantized to 8 bits with one scale for the whole tensor"
        )
    x, last = node.inputs[0], emit.last(node.inputs[0])
    if x is not None and emit.grid(x) == grid:
        emit.alias(node.outputs[0], x)
        return
    source = emit.read(x, integer=emit.grid(x) is not None, last=last)
    emit.write(node.outputs[0], emit.quantized(source, grid), last=last)


def dequantize_linear(emit: Emitter, node: ir.Node) -> None:
    """A name for integers; reals are worked out where a float kernel asks for them."""
    x = node.inputs[0]
    if x is None or emit.grid(x) is None or grid_of(node, emit.constants) != emit.grid(x):
        raise UnsupportedError(
            "dtype: only 8-bit integers with one scale for the whole tensor are dequantized"
        )
    emit.alias(node.outputs[0], x)


HANDLERS = {"QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear}
