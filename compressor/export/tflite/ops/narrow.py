"""Floats of 16 bits and fewer that no kernel takes: their numbers, held in FLOAT32.

Rounding to them is arithmetic: a number over its power of two has its mantissa before the point, where ROUND takes
halves to even as ONNX has it; below the least normal number the step stays what it is there.
"""

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import NARROW_FLOATS, Emitter, UnsupportedError
from edgepress.compressor.export.tflite.tensors import Tensor

OPERATORS = frozenset({
    "Cast", "QuantizeLinear", "DequantizeLinear", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
    "Transpose", "Expand", "Tile", "Concat", "Split", "Slice", "Gather", "GatherND", "DepthToSpace", "SpaceToDepth",
})  # fmt: skip
"""Those that round to such types, read them, or only move them; results of others would have to be rounded."""
_FORMATS = {
    ir.DataType.BFLOAT16: (7, -126, float("inf")),
    ir.DataType.FLOAT8E4M3FN: (3, -6, 448.0),
    ir.DataType.FLOAT8E4M3FNUZ: (3, -7, 240.0),
    ir.DataType.FLOAT8E5M2: (2, -14, 57344.0),
    ir.DataType.FLOAT8E5M2FNUZ: (2, -15, 57344.0),
    ir.DataType.FLOAT4E2M1: (1, 0, 6.0),
}
"""(Bits of the mantissa, exponent of the least normal number, largest number), as ONNX defines them."""
_OVERFLOWING = {ir.DataType.FLOAT8E5M2: float("inf")}
"""What numbers become that are too large, where they are not cut to the largest; else NaN."""
_MANTISSA = 2**23
_LARGEST_POWER = 2.0**127


def check_types(node: ir.Node) -> None:
    """Raise `UnsupportedError` where an operator reads or gives numbers of these types that it would compute."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype in NARROW_FLOATS and node.op_type not in OPERATORS:
            raise UnsupportedError(
                f"dtype: {value.name!r} is of type {value.dtype}, which TFLite's kernels do not take"
            )


def rounded(emit: Emitter, x: Tensor, kind: ir.DataType, *, saturate: bool = True) -> Tensor:
    """The nearest numbers of a type, halves to the even one.

    Args:
        emit: writes them.
        x: FLOAT32.
        kind: one of `NARROW_FLOATS`.
        saturate: whether what is too large becomes the largest number; bfloat16 never does, float4 always.
    """
    maths, (mantissa, least, largest) = emit.maths, _FORMATS[kind]
    if kind == ir.DataType.FLOAT4E2M1:  # has no NaN; a cast of one gives 0
        x = maths.select(maths.binary("EQUAL", x, x), x, 0.0)
    finer = 2.0**mantissa
    power = maths.maximum(_power(emit, x), 2.0**least)
    near = maths.unary("ROUND", maths.mul(maths.div(x, power), finer))
    near = maths.mul(maths.mul(near, 1 / finer), power)
    if kind == ir.DataType.BFLOAT16:
        return near
    fits = maths.binary("LESS_EQUAL", maths.unary("ABS", near), largest)
    if saturate or kind == ir.DataType.FLOAT4E2M1:
        ends = maths.mul(maths.unary("SIGN", near), largest)
    else:
        ends = maths.mul(maths.unary("SIGN", near), _OVERFLOWING.get(kind, float("nan")))
    is_number = maths.binary("EQUAL", x, x)
    return maths.select(fits, near, maths.select(is_number, ends, x))


def _power(emit: Emitter, x: Tensor) -> Tensor:
    """The power of two at or below |x|: its bits without those of the mantissa; 0 and infinity as near as can be."""
    maths = emit.maths
    bits = emit.builder.op("BITCAST", [maths.unary("ABS", x)], x.shape, "INT32")
    exponent = maths.sub(bits, maths.binary("FLOOR_MOD", bits, _MANTISSA))
    power = emit.builder.op("BITCAST", [exponent], x.shape, "FLOAT32")
    return maths.minimum(power, float(np.float32(_LARGEST_POWER)))
