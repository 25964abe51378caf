"""Which version of an operator a file must name: the lowest whose kernel takes these types.

A runtime refuses a version above its own, so a number too high shuts out older boards. Source: the rules in
`tensorflow/compiler/mlir/lite/tools/versioning/op_version.cc`, for what the writer emits.
"""

from collections.abc import Sequence
from typing import Any

from edgepress.compressor.export.tflite.tensors import Tensor

_INT8 = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "RESHAPE": 1, "HARD_SWISH": 1, "GATHER": 2,
    "QUANTIZE": 1, "SPLIT_V": 2, "BATCH_MATMUL": 2, "MIRROR_PAD": 2, "TRANSPOSE_CONV": 2, "ELU": 1,
    "SELECT_V2": 1, "TILE": 1, "BROADCAST_TO": 2, "GELU": 2, "PRELU": 1, "LEAKY_RELU": 1, "DIV": 1, "DEPTH_TO_SPACE": 2,
}  # fmt: skip
"""Where int8 needs another version than 2, or where 1 serves it."""

_TYPED = {
    ("ADD", "INT64"): 4, ("SUB", "INT64"): 4, ("MUL", "INT64"): 5, ("ABS", "INT32"): 5, ("FLOOR_MOD", "INT8"): 2,
}  # fmt: skip
_CAST = {"FLOAT64": 5, "FLOAT16": 5, "UINT16": 4, "INT8": 3, "UINT32": 2}
_BROADCAST = {"SUB": 3, "DIV": 2, "MAXIMUM": 3, "MINIMUM": 3}
"""Of more than four dimensions."""


def version_of(
    code: str,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    options: Any,
) -> int:
    """The lowest version of `code` for these types and options."""
    kinds = [None if tensor is None else tensor.dtype for tensor in inputs]
    first, second = kinds[0], kinds[1] if len(kinds) > 1 else None
    rank = max((len(tensor.shape) for tensor in inputs if tensor is not None), default=0)
    if code == "FULLY_CONNECTED":
        return _fully_connected(first, second, kinds, options)
    if code == "QUANTIZE":
        return 1 if first == "FLOAT32" and outputs[0].dtype == "INT8" else 2
    if code == "DEQUANTIZE":
        return {"FLOAT16": 3, "INT8": 2, "UINT8": 1, "INT16": 3, "INT4": 6}.get(first or "", 2)
    if code in {"RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"}:
        return 3 if options.alignCorners or options.halfPixelCenters else 2 if first == "INT8" else 1
    if (code, first or "") in _TYPED:
        return _TYPED[code, first or ""]
    if code == "CAST":
        return max(_CAST.get(kind or "", 1) for kind in (first, outputs[0].dtype))
    if code in _BROADCAST and rank > 4:
        return _BROADCAST[code]
    if code in {"TRANSPOSE", "STRIDED_SLICE", "SLICE", "PAD"} and rank > 4:
        return {"TRANSPOSE": 4 if rank < 6 else 6, "STRIDED_SLICE": 4, "SLICE": 5, "PAD": 3}[code]
    if code == "CONV_2D" and second == "INT4":
        return 7
    if first == "INT8":
        return _INT8.get(code, 2)
    return {"PADV2": 1, "BROADCAST_TO": 2, "DEPTHWISE_CONV_2D": 2}.get(code, 1)


def _fully_connected(
    first: str | None,
    second: str | None,
    kinds: Sequence[str | None],
    options: Any,
) -> int:
    if second in {"INT4", "INT2"}:
        return 10 if second == "INT4" else 14
    if first == "INT8":
        return 5 if options.keepNumDims else 4
    if second == "INT8":
        return 9 if options.asymmetricQuantizeInputs else 3
    if len(kinds) < 3 or kinds[2] is None:
        return 6
    return 5 if options.keepNumDims else 1
