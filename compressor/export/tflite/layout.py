"""Order of dimensions: ONNX has channels second, TFLite's kernels want them last."""

from collections.abc import Sequence

from edgepress.compressor.export.tflite.builder import Builder
from edgepress.compressor.export.tflite.tensors import Shape, Tensor


def to_last(rank: int) -> list[int]:
    """The permutation from channels second to channels last, such as [0, 2, 3, 1]."""
    return list(range(rank)) if rank < 3 else [0, *range(2, rank), 1]


def to_first(rank: int) -> list[int]:
    """The permutation back, such as [0, 3, 1, 2]."""
    return list(range(rank)) if rank < 3 else [0, rank - 1, *range(1, rank - 1)]


def channels_last(builder: Builder, tensor: Tensor) -> Tensor:
    """A tensor whose channels come second, with its channels last."""
    return builder.transposed(tensor, to_last(len(tensor.shape)))


def channels_first(builder: Builder, tensor: Tensor) -> Tensor:
    """A tensor whose channels come last, with its channels second."""
    return builder.transposed(tensor, to_first(len(tensor.shape)))


def arranged(shape: Sequence[int], last: bool) -> Shape:
    """A shape of ONNX in the file's order."""
    return tuple(shape[axis] for axis in to_last(len(shape))) if last else tuple(shape)


def axis_in(axis: int, rank: int, last: bool) -> int:
    """Where an axis of ONNX (0 ≤ axis < rank) stands in the file."""
    return to_last(rank).index(axis) if last else axis
