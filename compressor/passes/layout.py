"""Weights as rows that share a scale, whatever operator reads them, and back."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepress.compressor.numerics.grids import Array
from edgepress.compressor.numerics.steps import Granularity, block_width
from edgepress.compressor.sites import int_attribute


@dataclass(frozen=True)
class Stored:
    """One weight to store.

    Attributes:
        value: the initializer.
        readers: names of the nodes that read it, the first of them the one that gives it its site.
        node: the first reader.
        index: which of that node's inputs it is.
    """

    value: ir.Value
    readers: tuple[str, ...]
    node: ir.Node
    index: int


def scale_shape(stored: Stored, array: Array, *, narrow: bool = True) -> tuple[tuple[int, ...], int]:
    """Shape of the scales, so that they broadcast over the weights, and how many there are.

    Args:
        stored: says how the weights are read.
        array: the weights.
        narrow: give one scale where those of narrow rows would cost as much as they save.
    """
    node, ndim = stored.node, array.ndim
    if ndim < 2:
        return (1,) * ndim, 1
    if node.op_type in ("GRU", "LSTM", "RNN"):
        keep: tuple[int, ...] = tuple(range(ndim - 1))
    elif node.op_type == "Gather":
        keep = (int_attribute(node, "axis", 0) % ndim,)
    elif node.op_type == "Conv":
        keep = (0,)
    elif node.op_type == "ConvTranspose":
        keep = (1,)
    elif node.op_type == "Gemm":
        flipped = int_attribute(node, "transB" if stored.index else "transA", 0)
        keep = (1 - flipped if stored.index else flipped,)
    else:
        keep = (ndim - 1 if stored.index else ndim - 2,)
    shape = tuple(size if i in keep else 1 for i, size in enumerate(array.shape))
    count = int(np.prod(shape))
    if narrow and count * 8 > array.size:
        return (1,) * ndim, 1
    return shape, count


@dataclass(frozen=True)
class Layout:
    """How a weight lies as rows, one for each output (or row of a table), and which of its numbers share a scale.

    Attributes:
        shape: of the weight.
        axis: that counts the rows; None where they are all axes but the last, or there is one row.
        rows: how many.
        width: numbers of a row that share a scale; None where all rows do.
    """

    shape: tuple[int, ...]
    axis: int | None
    rows: int
    width: int | None

    @staticmethod
    def of(stored: Stored, array: Array, granularity: Granularity, block: int) -> "Layout":
        """The layout of a weight."""
        shape, rows = scale_shape(stored, array, narrow=False)
        long = [i for i, size in enumerate(shape) if size != 1]
        axis = long[0] if len(long) == 1 else None
        length = array.size // rows
        splits = axis in (0, None) or (axis == 1 and array.ndim == 2)
        width = block_width(granularity if splits or granularity == "tensor" else "channel", block, length)
        narrow = width == length and rows * 8 > array.size
        return Layout(array.shape, axis, rows, None if narrow else width)

    @property
    def scales(self) -> int:
        """How many there are."""
        return 1 if self.width is None else int(np.prod(self.shape)) // self.width

    def matrix(self, array: Array) -> Array:
        """The weight as [rows, n], in float32."""
        turned = array if self.axis is None else np.moveaxis(array, self.axis, 0)
        return np.ascontiguousarray(turned.reshape(self.rows, -1), dtype=np.float32)

    def array(self, matrix: Array) -> Array:
        """The weight again."""
        if self.axis is None:
            return matrix.reshape(self.shape)
        rest = tuple(size for i, size in enumerate(self.shape) if i != self.axis)
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(self.rows, *rest), 0, self.axis))

    def split(self, matrix: Array) -> Array:
        """The weight so shaped that `each` broadcasts over it: itself, or with an axis for the blocks."""
        array = self.array(matrix)
        if not self._blocks:
            return array
        if self.axis == 1:
            return array.reshape(self._blocks, -1, self.rows)
        return array.reshape(self.rows, self._blocks, -1)

    def each(self, values: Array) -> Array:
        """Numbers [rows, blocks] so shaped that they broadcast over what `split` gives."""
        if self.width is None:
            return np.asarray(values.reshape(-1)[0])
        if self._blocks:
            turned = values.T[:, None, :] if self.axis == 1 else values[:, :, None]
            return np.ascontiguousarray(turned)
        if self.axis is None:
            return (
                values.reshape(*self.shape[:-1], 1)
                if self.rows > 1
                else values.reshape((1,) * len(self.shape))
            )
        return values.reshape(tuple(size if i == self.axis else 1 for i, size in enumerate(self.shape)))

    @property
    def _blocks(self) -> int:
        """Blocks of a row, 0 where it is not split."""
        length = int(np.prod(self.shape)) // self.rows
        return 0 if self.width in (None, length) else length // (self.width or 1)
