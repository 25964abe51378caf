"""What a tensor of a TFLite file is to the writer: a handle, and the grid that its integers lie on."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
SHORTEST = 8
"""Weights that share a scale below which int8 saves nothing: a scale and a zero point take 12 bytes."""


@dataclass(frozen=True)
class Grid:
    """Evenly spaced levels: real = scale · (integer − zero_point).

    Attributes:
        scale: one, or one for each index of `axis`.
        zero_point: as many as scales.
        axis: of the tensor, where there are several scales.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0

    @classmethod
    def of(cls, scale: float, zero_point: int = 0) -> "Grid":
        """A grid for a whole tensor."""
        return cls((float(np.float32(scale)),), (int(zero_point),))

    @property
    def single(self) -> bool:
        """Whether the whole tensor has one scale."""
        return len(self.scale) == 1


@dataclass(frozen=True)
class Codes:
    """A constant as integers: what a DequantizeLinear of constants gives, before it is worked out.

    Attributes:
        integers: signed; unsigned ones were moved to the middle with their zero points.
        scale: [] or [channels] or, for blocks, as many dimensions as `integers`.
        zero_point: likewise.
        axis: of the channels.
        block: indices of `axis` that share a scale; 0: no blocks.
    """

    integers: Array
    scale: Array
    zero_point: Array
    axis: int
    block: int = 0

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is 0."""
        return not np.any(self.zero_point)

    @property
    def bits(self) -> int:
        """The narrowest of 2, 4, 8, 16 and 32 that holds every integer, whatever they are stored in."""
        low, high = int(self.integers.min(initial=0)), int(self.integers.max(initial=0))
        return next(
            bits for bits in (2, 4, 8, 16, 32, 64) if -(1 << bits - 1) <= low and high < 1 << bits - 1
        )

    def floats(self) -> Array:
        """What the integers stand for, in float32, shaped like `integers`."""
        scale, zero = (self._spread(part) for part in (self.scale, self.zero_point))
        wide = self.integers.astype(np.float32) - zero.astype(np.float32)
        return (wide * scale.astype(np.float32)).astype(np.float32)

    def factors(self) -> "Factors":
        """The same with a scale and a zero point for each integer."""
        shape = self.integers.shape
        scale, zero = (np.broadcast_to(self._spread(part), shape) for part in (self.scale, self.zero_point))
        return Factors(self.integers, scale.astype(np.float32), zero)

    def _spread(self, part: Array) -> Array:
        if part.ndim == 0 or part.size == 1:
            return part.reshape(())
        if self.block:
            repeated = np.repeat(part, self.block, axis=self.axis)
            return repeated.take(range(self.integers.shape[self.axis]), axis=self.axis)
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return part.reshape(shape)


@dataclass(frozen=True)
class Factors:
    """A constant as scale · (integer − zero point), all three of its own shape.

    Attributes:
        integers: int8.
        scale: float32.
        zero_point: integers.
    """

    integers: Array
    scale: Array
    zero_point: Array

    def moved(self, move: Callable[[Array], Array]) -> "Factors":
        """All three after something that only moves numbers."""
        return Factors(move(self.integers), move(self.scale), move(self.zero_point))

    def positive(self) -> "Factors":
        """The same with no scale below 0, as kernels want it: −s (q − z) = s ((−1 − q + z) + 1)."""
        negative = self.scale < 0
        if not negative.any():
            return self
        distance = self.integers.astype(np.int16) - self.zero_point
        zero = -1 if (distance[negative] < -127).any() else 0
        return Factors(
            np.where(negative, zero - distance, self.integers).astype(np.int8),
            np.abs(self.scale),
            np.where(negative, zero, self.zero_point),
        )

    def codes(self) -> Codes | None:
        """The same with one scale, or one for each index of an axis; None where that is not enough."""
        if self.uniform(self.integers.ndim):
            first = (0,) * self.integers.ndim
            return Codes(self.integers, self.scale[first].reshape(1), self.zero_point[first].reshape(1), 0)
        for axis, size in enumerate(self.integers.shape):
            if size > 1 and self.uniform(axis):
                index = tuple(slice(None) if at == axis else 0 for at in range(self.integers.ndim))
                return Codes(self.integers, self.scale[index], self.zero_point[index], axis)
        return None

    def uniform(self, axis: int) -> bool:
        """Whether scale and zero point hang on the index of one axis alone (on none, where there is no such)."""
        index = tuple(slice(None) if at == axis else slice(0, 1) for at in range(self.integers.ndim))
        return bool(
            (self.scale == self.scale[index]).all() and (self.zero_point == self.zero_point[index]).all()
        )

    def run(self) -> int:
        """How many numbers in a row, in memory's order, always share scale and zero point."""
        ends = []
        for part in (self.scale.reshape(-1), self.zero_point.reshape(-1)):
            ends += (np.flatnonzero(part[1:] != part[:-1]) + 1).tolist()
        return math.gcd(self.integers.size, *ends)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the file that is being written.

    Attributes:
        index: in the subgraph.
        shape: a multiple of the builder's stand-in for the batch marks a dimension that follows it.
        dtype: the schema's name of the type, such as `FLOAT32`.
        grid: of integers that stand for reals.
        array: of constants.
    """

    index: int
    shape: Shape
    dtype: str
    grid: Grid | None = None
    array: Array | None = None
