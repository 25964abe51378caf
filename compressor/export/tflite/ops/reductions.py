"""Sums, means and extremes over dimensions."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, axes_of
from edgepress.compressor.export.tflite.layout import axis_in, to_last
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.sites import int_attribute


def reduce(emit: Emitter, node: ir.Node, code: str, axes: Sequence[int], *, keep: bool) -> None:
    """One reduction; MEAN has an 8-bit kernel."""
    x, result = node.inputs[0], node.outputs[0]
    rank = len(emit.shape(x))
    ending = emit.ending(result)
    integer = code == "MEAN" and emit.integral(ending, x)
    last = emit.last(x)
    data = emit.read(x, integer=integer, last=last)
    over = emit.builder.constant(np.array(sorted(axis_in(a, rank, last) for a in axes), np.int32))
    grid, dtype = (ending.grid, "INT8") if integer else (None, data.dtype)
    stays = [axis for axis in (to_last(rank) if last else range(rank)) if keep or axis not in axes]
    kept = last and len(stays) > 2 and stays == [sorted(stays)[at] for at in to_last(len(stays))]
    sizes = [1 if axis in axes else emit.shape(x)[axis] for axis in stays]
    made = emit.builder.op(code, [data, over], sizes, dtype, grid, options("Reducer", keepDims=keep))
    if not kept:
        made = emit.builder.transposed(made, [stays.index(axis) for axis in sorted(stays)])
    emit.write(ending.value, made, last=kept)


def reduce_mean(emit: Emitter, node: ir.Node) -> None:
    """ReduceMean over the axes that are given, or all."""
    rank = len(emit.shape(node.inputs[0]))
    axes = axes_of(emit, node, 1, rank)
    reduce(emit, node, "MEAN", axes or list(range(rank)), keep=bool(int_attribute(node, "keepdims", 1)))


HANDLERS = {"ReduceMean": reduce_mean}
