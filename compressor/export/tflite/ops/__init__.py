"""Handlers of ONNX operators, by family; each writes what a node does with TFLite's operators."""

from collections.abc import Callable

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter
from edgepress.compressor.export.tflite.ops import (
    activations,
    convolution,
    elementwise,
    gathering,
    logic,
    padding,
    pooling,
    products,
    quantized,
    reductions,
    resize,
    shaping,
    slicing,
)

Handler = Callable[[Emitter, ir.Node], None]

HANDLERS: dict[str, Handler] = {
    **activations.HANDLERS,
    **convolution.HANDLERS,
    **elementwise.HANDLERS,
    **logic.HANDLERS,
    **gathering.HANDLERS,
    **pooling.HANDLERS,
    **padding.HANDLERS,
    **products.HANDLERS,
    **quantized.HANDLERS,
    **reductions.HANDLERS,
    **resize.HANDLERS,
    **shaping.HANDLERS,
    **slicing.HANDLERS,
}
