"""The same node of two nets, for `recheck`: what both must share, or the pair is too hard."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.rational import Whole, exactly
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import attribute, constant, conv_padding, ints_attribute
from edgepress.compressor.specs import dims


class TooHardError(Exception):
    """Two nets that are too large, built differently, or have a node that exact arithmetic has no rule for."""


@dataclass(frozen=True)
class Nodes:
    """The same node of both nets."""

    ours: ir.Node
    theirs: ir.Node

    def constants(self, index: int, otherwise: float | None = None) -> tuple[Whole, Whole]:
        """A constant input of either; `otherwise` where neither has it."""
        found = self.arrays(index)
        if any(array is None for array in found) and otherwise is None:
            raise TooHardError(f"input {index} of a {self.ours.op_type} is missing")
        if len({array.shape for array in found if array is not None}) > 1:
            raise TooHardError(f"input {index} of a {self.ours.op_type} has another shape in the candidate")
        ours, theirs = (exactly(np.asarray(otherwise) if array is None else array) for array in found)
        return ours, theirs

    def arrays(self, index: int) -> list[Array | None]:
        """A constant input of either as it is stored; None where a node does not have it."""
        found = []
        for node in (self.ours, self.theirs):
            value = node.inputs[index] if index < len(node.inputs) else None
            array = constant(value)
            if array is None and value is not None:
                raise TooHardError(f"input {index} of a {node.op_type} is no constant")
            found.append(array)
        return found

    def same_constant(self, index: int) -> None:
        """Both must have the same array there: what says how numbers move is no weight."""
        ours, theirs = self.arrays(index)
        if ours is None or theirs is None or not np.array_equal(ours, theirs):
            raise TooHardError(f"input {index} of a {self.ours.op_type} is another in the candidate")

    def row(self, index: int | None) -> tuple[int, ...]:
        """Shape of a row of an input; None: of the output."""
        return row_of(self.ours.outputs[0] if index is None else self.ours.inputs[index])

    def same(self, **defaults: object) -> None:
        """Both must have the same attributes of these names; which may be left out where they are the default."""
        for name, default in defaults.items():
            found = [attribute(node, name, default) for node in (self.ours, self.theirs)]
            if len({tuple(value) if isinstance(value, list) else value for value in found}) > 1:
                raise TooHardError(f"{name} of a {self.ours.op_type} is another in the candidate")


def row_of(value: ir.Value | None) -> tuple[int, ...]:
    """Shape of a value's rows; raises `TooHardError` where it is not known."""
    sizes = () if value is None else dims(value) or ()
    if len(sizes) < 2 or not all(isinstance(n, int) for n in sizes[1:]):
        raise TooHardError("sizes are not known")
    return tuple(int(n) for n in sizes[1:] if isinstance(n, int))


def same_row(ours: ir.Value, theirs: ir.Value) -> tuple[int, ...]:
    """Shape of the rows of a value, which must be the same in both nets."""
    row = row_of(ours)
    if row_of(theirs) != row:
        raise TooHardError(f"rows of {ours.name!r} have another shape in the candidate")
    return row


def operands(node: ir.Node, known: Mapping[ir.Value, ir.Value]) -> list[ir.Value | None]:
    """What `known` has for each input, in order; None for a constant, and those at the end left out."""
    found = []
    for value in node.inputs:
        if value is not None and value not in known and constant(value) is None:
            raise TooHardError(f"a {node.op_type} reads what no rule gives")
        found.append(None if value is None else known.get(value))
    while found and found[-1] is None:
        found.pop()
    return found


def reads_of(nodes: Nodes, row: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...]) -> Array:
    """Where each window of one channel reads: [positions, taps] in the flat spatial input; −1 over the edge."""
    ones, none = (1,) * len(kernel), (0,) * 2 * len(kernel)
    nodes.same(strides=ones, dilations=ones, pads=none, auto_pad="NOTSET", kernel_shape=kernel, ceil_mode=0)
    strides, dilations = (ints_attribute(nodes.ours, name, ones) for name in ("strides", "dilations"))
    before = [pads[0] for pads in conv_padding(nodes.ours, row[1:], kernel)]
    flat = np.zeros((*out[1:], *kernel), np.int64)
    inside = np.ones(flat.shape, bool)
    for axis, size in enumerate(row[1:]):
        at = np.arange(out[1 + axis])[:, None] * strides[axis] - before[axis]
        at = at + np.arange(kernel[axis]) * dilations[axis]
        shape = [1] * flat.ndim
        shape[axis], shape[len(kernel) + axis] = at.shape
        flat = flat * size + at.reshape(shape)
        inside &= ((at >= 0) & (at < size)).reshape(shape)
    return np.where(inside, flat, -1).reshape(math.prod(out[1:]), -1)


def per_channel(reads: Array, row: tuple[int, ...]) -> Array:
    """The same for all channels: [channels × positions, taps] in the flat input."""
    offsets = np.arange(row[0])[:, None, None] * math.prod(row[1:])
    return np.where(reads >= 0, reads + offsets, -1).reshape(-1, reads.shape[1])
