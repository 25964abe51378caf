"""Which version of an operator a file must name: the lowest whose kernel takes these types.

A runtime refuses a version above its own, so a number too high shuts out older boards. Source: the rules in
`tensorflow/compiler/mlir/lite/tools/versioning/op_version.cc`, for what the writer emits.
"""

from collections.abc import Sequence
from typing import Any

from edgepress.compressor.export.tflite.tensors import Tensor

_INT8 = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "RESHAPE": 1, "HARD_SWISH": 1,
    "QUANTIZE": 1, "SPLIT_V": 2, "BATCH_MATMUL": 2, "TRANSPOSE_CONV": 2, "ELU": 1,
    "SELECT_V2": 1, "BROADCAST_TO": 2, "GELU": 2, "PRELU": 1, "LEAKY_RELU": 1, "DIV": 1, "DEPTH_TO_SPACE": 2,
}  # fmt: skip
"""Where int8 needs another version than 2, or where 1 serves it."""

_MOVING: dict[str, dict[str, int]] = {
    "ABS": {"INT32": 5, "INT8": 2},
    "CONCATENATION": {"UINT32": 4, "INT16": 3, "INT8": 2},
    "GATHER": {"INT16": 4, "BOOL": 3, "INT8": 2},
    "GATHER_ND": {"BOOL": 5, "INT16": 3},
    "MIRROR_PAD": {"INT16": 3, "INT8": 2},
    "PAD": {"BOOL": 5, "INT16": 3, "INT8": 2},
    "PADV2": {"BOOL": 5, "INT16": 3, "INT8": 2},
    "RANGE": {"INT64": 2},
    "REVERSE_V2": {"INT8": 3, "BOOL": 2},
    "SLICE": {"INT16": 4, "INT8": 2},
    "SPLIT": {"INT16": 4, "INT32": 3, "INT8": 2},
    "STRIDED_SLICE": {"BOOL": 3, "INT8": 2},
    "TILE": {"INT8": 3},
    "TRANSPOSE": {"INT16": 5, "BOOL": 3, "INT8": 2},
}
"""Versions by the type of what is moved."""
_RANKS = {
    "PAD": ((4, 4),),
    "PADV2": ((4, 4),),
    "SLICE": ((4, 5),),
    "STRIDED_SLICE": ((4, 4),),
    "TRANSPOSE": ((6, 8), (5, 6), (4, 4)),
}
"""(Rank, version that more than it needs), the highest first."""
_TYPED = {
    ("ADD", "INT64"): 4, ("SUB", "INT64"): 4, ("MUL", "INT64"): 5, ("FLOOR_MOD", "INT8"): 2,
}  # fmt: skip
_BROADCAST = {"SUB": 3, "DIV": 2, "MAXIMUM": 3, "MINIMUM": 3}
"""Of more than four dimensions."""
_CAST = {"FLOAT64": 5, "FLOAT16": 5, "UINT16": 4, "INT8": 3, "UINT32": 2}


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
    if code in _MOVING:
        kind = second if code == "SPLIT" else first
        over = (lowest for limit, lowest in _RANKS.get(code, ()) if rank > limit)
        return max(_MOVING[code].get(kind or "", 1), next(over, 1))
    if code == "CAST":
        return max(_CAST.get(kind, 1) for kind in (first or "", outputs[0].dtype))
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
    if code in _BROADCAST and rank > 4:
        return _BROADCAST[code]
    if code == "CONV_2D" and second == "INT4":
        return 7
    if first == "INT8":
        return _INT8.get(code, 2)
    return {"BROADCAST_TO": 2, "DEPTHWISE_CONV_2D": 2}.get(code, 1)


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
