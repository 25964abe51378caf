"""Handlers of ONNX operators, by family; each writes what a node does with TFLite's operators."""

from collections.abc import Callable

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter
from edgepress.compressor.export.tflite.ops import (
    activations,
    convolution,
    elementwise,
    gathering,
    integers,
    logic,
    normalization,
    padding,
    pooling,
    products,
    quantized,
    recurrent,
    reductions,
    resize,
    shaping,
    slicing,
    transposed,
)

Handler = Callable[[Emitter, ir.Node], None]

HANDLERS: dict[str, Handler] = {
    **activations.HANDLERS,
    **convolution.HANDLERS,
    **elementwise.HANDLERS,
    **logic.HANDLERS,
    **gathering.HANDLERS,
    **integers.HANDLERS,
    **normalization.HANDLERS,
    **pooling.HANDLERS,
    **padding.HANDLERS,
    **products.HANDLERS,
    **quantized.HANDLERS,
    **recurrent.HANDLERS,
    **reductions.HANDLERS,
    **resize.HANDLERS,
    **shaping.HANDLERS,
    **slicing.HANDLERS,
    **transposed.HANDLERS,
}
