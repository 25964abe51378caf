"""Pooling over windows of one, two or three dimensions, and over whole maps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError
from edgepress.compressor.export.tflite.ops.moving import (
    carried,
    keeps_grid,
    moved,
    surrounded,
    taken,
    vector,
)
from edgepress.compressor.export.tflite.ops.reductions import extreme, reduce
from edgepress.compressor.export.tflite.ops.values import write
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Array, Tensor
from edgepress.compressor.passes.integer_forms import clip_bounds
from edgepress.compressor.sites import conv_padding, int_attribute, ints_attribute

Handler = Callable[[Emitter, ir.Node], None]
_KERNELS = ("FLOAT32", "INT8")
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Sqrt", "Exp"})


@dataclass(frozen=True)
class Pool:
    """What a pooling moves over its input.

    Attributes:
        size: spatial dimensions of the input.
        steps: of the result.
        kernel: of the window, in numbers that it takes.
        strides: between windows.
        dilations: between numbers.
        pads: that the node asks for.
    """

    size: tuple[int, ...]
    steps: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, emit: Emitter, node: ir.Node) -> "Pool":
        """A node's windows."""
        size = emit.shape(node.inputs[0])[2:]
        kernel = ints_attribute(node, "kernel_shape", ())
        ones = (1,) * len(kernel)
        return cls(
            size,
            emit.shape(node.outputs[0])[2:],
            kernel,
            ints_attribute(node, "strides", ones),
            ints_attribute(node, "dilations", ones),
            tuple(conv_padding(node, size, kernel)),
        )

    @property
    def reach(self) -> tuple[int, ...]:
        """How far a window extends."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def filled(self) -> tuple[tuple[int, int], ...]:
        """Pads with what the last window (ceil_mode) needs more; less than asked for where nothing reads it."""
        ends = ((n - 1) * s + r for n, s, r in zip(self.steps, self.strides, self.reach, strict=True))
        return tuple(
            (pad[0], max(0, end - pad[0] - size))
            for end, pad, size in zip(ends, self.pads, self.size, strict=True)
        )

    @property
    def same(self) -> bool:
        """Whether this is what TensorFlow calls SAME, for windows without gaps in two dimensions."""
        if len(self.size) > 2 or any(d > 1 for d in self.dilations):
            return False
        for size, steps, stride, reach, pad in zip(
            self.size, self.steps, self.strides, self.reach, self.filled, strict=True
        ):
            total = max((steps - 1) * stride + reach - size, 0)
            if steps != -(-size // stride) or pad != (total // 2, total - total // 2):
                return False
        return True

    def counts(self, include_pads: bool) -> Array:
        """How many numbers each window divides its sum by, [1, *steps, 1].

        Args:
            include_pads: whether pads that the node asks for count.
        """
        whole = np.ones(())
        for at, (before, after) in enumerate(self.pads):
            low, high = (-before, self.size[at] + after) if include_pads else (0, self.size[at])
            starts = np.arange(self.steps[at])[:, None] * self.strides[at] - before
            places = starts + np.arange(self.kernel[at])[None, :] * self.dilations[at]
            whole = np.multiply.outer(whole, ((places >= low) & (places < high)).sum(1))
        return whole.reshape(1, *self.steps, 1).astype(np.float32)


def pooled(emit: Emitter, code: str, x: Tensor, pool: Pool, padding: str = "VALID") -> Tensor:
    """A kernel over [N, *spatial, C] that is padded already; beyond two dimensions, two at a time."""
    for axis, dilation in enumerate(pool.dilations):
        if dilation > 1 and pool.kernel[axis] > 1:
            places = np.arange(pool.steps[axis])[:, None] * pool.strides[axis]
            indices = places + np.arange(pool.kernel[axis])[None, :] * dilation
            x = taken(emit, x, vector(emit, indices.reshape(-1)), axis + 1)
            strides = list(pool.strides)
            strides[axis] = pool.kernel[axis]
            pool = replace(pool, strides=tuple(strides))
    rank, channels = len(pool.kernel), x.shape[-1]
    if rank < 3:
        front: tuple[int, ...] = (1,) * (2 - rank)
        four = emit.builder.reshaped(x, (x.shape[0], *front, *x.shape[1:]))
        made = _kernel(
            emit, code, four, (*front, *pool.kernel), (*front, *pool.strides), (*front, *pool.steps), padding
        )
        return emit.builder.reshaped(made, (x.shape[0], *pool.steps, channels))
    if rank > 3:
        raise UnsupportedError(f"rank: windows of {rank} dimensions")
    n, depth, height, width, _ = x.shape
    flat = emit.builder.reshaped(x, (n * depth, height, width, channels))
    flat = _kernel(emit, code, flat, pool.kernel[1:], pool.strides[1:], pool.steps[1:], "VALID")
    area = prod(pool.steps[1:])
    tall = emit.builder.reshaped(flat, (n, depth, area, channels))
    tall = _kernel(
        emit, code, tall, (pool.kernel[0], 1), (pool.strides[0], 1), (pool.steps[0], area), "VALID"
    )
    return emit.builder.reshaped(tall, (n, *pool.steps, channels))


def _kernel(
    emit: Emitter,
    code: str,
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    steps: Sequence[int],
    padding: str,
) -> Tensor:
    made = options(
        "Pool2D",
        padding=padding,
        strideH=strides[0],
        strideW=strides[1],
        filterHeight=kernel[0],
        filterWidth=kernel[1],
    )
    return emit.builder.op(code, [x], (x.shape[0], *steps, x.shape[-1]), "", x.grid, made)


def max_pool(emit: Emitter, node: ir.Node) -> None:
    """MAX_POOL_2D; of integers, on their own grid."""
    x, pool = node.inputs[0], Pool.of(emit, node)
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        _indices(emit, node, pool)
    data = moved(emit, x, _KERNELS, last=True)
    padding = "SAME" if pool.same and any(map(any, pool.filled)) else "VALID"
    if padding == "VALID":
        data = _filled(emit, data, pool, 0.0 if _not_negative(x) else float("-inf"))
    made = pooled(emit, "MAX_POOL_2D", data, pool, padding)
    write(emit, node.outputs[0], made, last=True)


def _filled(emit: Emitter, x: Tensor, pool: Pool, fill: float) -> Tensor:
    return surrounded(emit, x, [(0, 0), *pool.filled, (0, 0)], fill)


def _not_negative(value: ir.Value | None) -> bool:
    """Whether 0 is as low as any number of a value, so that PAD does, which the delegate has."""
    node = value.producer() if value is not None else None
    if node is None:
        return False
    bounds = clip_bounds(node)
    return node.op_type in _NOT_NEGATIVE or (bounds is not None and bounds[0] >= 0)


def _indices(emit: Emitter, node: ir.Node, pool: Pool) -> None:
    """Where the largest number of each window lies in the flat input: ARG_MAX over the windows' numbers."""
    n, c = emit.shape(node.inputs[0])[:2]
    if emit.builder.batch:
        raise UnsupportedError("dynamic shape: indices into the whole batch need a fixed batch size")
    data = _filled(
        emit, carried(emit, emit.read(node.inputs[0], last=True), ("FLOAT32",)), pool, float("-inf")
    )
    columns = bool(int_attribute(node, "storage_order", 0))
    order = range(len(pool.size)) if columns else reversed(range(len(pool.size)))
    weight, each = {}, 1
    for axis in order:
        weight[axis], each = each, each * pool.size[axis]
    base, inside = np.zeros(()), np.zeros(())
    for axis in range(len(pool.size)):
        starts = np.arange(pool.steps[axis]) * pool.strides[axis]
        offsets = np.arange(pool.kernel[axis]) * pool.dilations[axis]
        base = np.add.outer(base, (starts - pool.pads[axis][0]) * weight[axis])
        inside = np.add.outer(inside, offsets * weight[axis])
        at = 1 + 2 * axis
        data = taken(emit, data, vector(emit, starts[:, None] + offsets[None, :]), at)
    dims = len(pool.size)
    order_of = [0, *range(1, 2 * dims, 2), 2 * dims + 1, *range(2, 2 * dims + 1, 2)]
    if len(order_of) > 6:
        raise UnsupportedError("rank: indices of the largest numbers in three dimensions")
    moved_last = emit.builder.transposed(data, order_of)
    shape = (n, *pool.steps, c)
    flat = emit.builder.reshaped(moved_last, (*shape, inside.size))
    where = emit.builder.constant(np.array(len(shape), np.int32))
    made = options("ArgMax", outputType="INT32")
    best = emit.builder.op("ARG_MAX", [flat, where], shape, "INT32", options=made)
    found = taken(emit, emit.builder.constant(inside.reshape(-1).astype(np.int64)), best, 0)
    maps = np.add.outer(np.arange(n) * c * each, base)[..., None] + np.arange(c) * each
    result = emit.maths.add(found, emit.builder.constant(maps.astype(np.int64)))
    emit.write(node.outputs[1], result, last=True)


def average_pool(emit: Emitter, node: ir.Node) -> None:
    """AVERAGE_POOL_2D; where its count is not the node's, its result is multiplied by a map of corrections."""
    x, pool = node.inputs[0], Pool.of(emit, node)
    counts = pool.counts(bool(int_attribute(node, "count_include_pad", 0)))
    alone = pool.same and np.array_equal(counts, pool.counts(include_pads=False))
    ratio = np.float32(prod(pool.kernel)) / np.maximum(counts, 1)
    uneven = not alone and bool(np.any(ratio != 1))
    ending = emit.ending(node.outputs[0])
    integer = not uneven and len(pool.size) < 3 and keeps_grid(emit, x, ending)
    data = carried(emit, emit.read(x, integer=integer, last=True), _KERNELS)
    data = data if alone else _filled(emit, data, pool, 0.0)
    made = pooled(emit, "AVERAGE_POOL_2D", data, pool, "SAME" if alone else "VALID")
    if uneven:
        made = emit.maths.mul(made, emit.builder.constant(ratio))
    write(emit, node.outputs[0], made, last=True)


def lp_pool(emit: Emitter, node: ir.Node) -> None:
    """The p-th root of a window's sum of p-th powers: of its mean, times the window's size."""
    pool, p = Pool.of(emit, node), int_attribute(node, "p", 2)
    data = carried(emit, emit.read(node.inputs[0], last=True), ("FLOAT32",))
    data = _filled(emit, _powers(emit, data, p), pool, 0.0)
    made = pooled(emit, "AVERAGE_POOL_2D", data, pool)
    made = emit.maths.mul(made, prod(pool.kernel))
    write(emit, node.outputs[0], _root(emit, made, p), last=True)


def _powers(emit: Emitter, x: Tensor, p: int) -> Tensor:
    if p == 2:
        return emit.maths.mul(x, x)
    sizes = emit.maths.unary("ABS", x)
    return sizes if p == 1 else emit.maths.binary("POW", sizes, p)


def _root(emit: Emitter, x: Tensor, p: int) -> Tensor:
    if p == 2:
        return emit.maths.unary("SQRT", x)
    return x if p == 1 else emit.maths.binary("POW", x, 1 / p)


def whole_map(emit: Emitter, node: ir.Node, by: Callable[..., None]) -> None:
    """A reduction over all but batch and channels."""
    by(emit, node, axes=list(range(2, len(emit.shape(node.inputs[0])))))


HANDLERS: dict[str, Handler] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": partial(whole_map, by=partial(reduce, code="MEAN")),
    "GlobalMaxPool": partial(whole_map, by=partial(extreme, code="REDUCE_MAX")),
}
