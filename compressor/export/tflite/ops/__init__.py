"""Handlers of ONNX operators, by family; each writes what a node does with TFLite's operators."""

from collections.abc import Callable

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter
from edgepress.compressor.export.tflite.ops import (
    activations,
    convolution,
    elementwise,
    integers,
    normalization,
    pooling,
    products,
    quantized,
    recurrent,
    reductions,
    shaping,
    transposed,
)

Handler = Callable[[Emitter, ir.Node], None]

HANDLERS: dict[str, Handler] = {
    **activations.HANDLERS,
    **convolution.HANDLERS,
    **elementwise.HANDLERS,
    **integers.HANDLERS,
    **normalization.HANDLERS,
    **pooling.HANDLERS,
    **products.HANDLERS,
    **quantized.HANDLERS,
    **recurrent.HANDLERS,
    **reductions.HANDLERS,
    **shaping.HANDLERS,
    **transposed.HANDLERS,
}
