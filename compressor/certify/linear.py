"""Linear operators on rows: y = A x, its adjoint, and A with absolute weights, in float64.

Shapes leave out the first axis, which counts rows. Convolutions go tap by tap, so that no im2col matrix is made.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from types import EllipsisType
from typing import Protocol, Self

import numpy as np

from edgepress.compressor.protocols import Array


class Linear(Protocol):
    """y = A x for rows x; `terms` products are summed for one y."""

    @property
    def weight(self) -> Array:
        """What it multiplies by, in its own layout."""

    @property
    def terms(self) -> int:
        """Products of one sum."""

    def apply(self, x: Array) -> Array:
        """[B, *in] → [B, *out]."""

    def adjoint(self, a: Array) -> Array:
        """[B, *out] → [B, *in]: Aᵀ a."""

    def gradient(self, x: Array, a: Array) -> Array:
        """X [*in], a [K, *out] → [K, *weight]: the derivative of ⟨a, A x⟩ with respect to each weight."""

    def with_weight(self, weight: Array) -> Self:
        """The same operator with other weights."""


@dataclass(frozen=True, eq=False)
class MatrixMap:
    """y = x W over the last axis.

    Attributes:
        weight: [in, out]; [out, in] where transposed.
        transposed: whether W is stored so.
    """

    weight: Array
    transposed: bool = False

    @property
    def terms(self) -> int:
        """Products of one sum."""
        return int(self.weight.shape[1 if self.transposed else 0])

    @property
    def matrix(self) -> Array:
        """W, [in, out]."""
        return self.weight.T if self.transposed else self.weight

    def apply(self, x: Array) -> Array:
        """[B, …, in] → [B, …, out]."""
        return np.asarray(x @ self.matrix)

    def adjoint(self, a: Array) -> Array:
        """[B, …, out] → [B, …, in]."""
        return np.asarray(a @ self.matrix.T)

    def gradient(self, x: Array, a: Array) -> Array:
        """Sum over leading axes of x ⊗ a."""
        rows, lead = x.reshape(-1, x.shape[-1]), len(a)
        found: Array = np.einsum("ri,kro->kio", rows, a.reshape(lead, len(rows), -1), optimize=True)
        return found.transpose(0, 2, 1) if self.transposed else found

    def with_weight(self, weight: Array) -> Self:
        """The same with other weights."""
        return replace(self, weight=weight)


@dataclass(frozen=True, eq=False)
class ConvMap:
    """Convolution (correlation, as ONNX has it) of any number of dimensions, grouped or not.

    Attributes:
        weight: [out, in / groups, *kernel].
        size: spatial shape of the input.
        strides: one a dimension.
        pads: (before, after) a dimension.
        dilations: one a dimension.
        groups: of channels.
    """

    weight: Array
    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]
    groups: int = 1

    @property
    def terms(self) -> int:
        """Products of one sum."""
        return math.prod(self.weight.shape[1:])

    @property
    def positions(self) -> tuple[int, ...]:
        """Spatial shape of the output."""
        return tuple(
            (n + sum(p) - (k - 1) * d - 1) // s + 1
            for n, p, k, d, s in zip(
                self.size, self.pads, self.weight.shape[2:], self.dilations, self.strides, strict=True
            )
        )

    def _taps(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Each tap of the kernel, and where in the padded input it reads."""
        for tap in product(*map(range, self.weight.shape[2:])):
            yield (
                tap,
                tuple(
                    slice(t * d, t * d + s * (n - 1) + 1, s)
                    for t, d, s, n in zip(tap, self.dilations, self.strides, self.positions, strict=True)
                ),
            )

    def reads(self) -> Array:
        """Where in the flat input each output position reads, in the order of a filter's weights; −1 in padding.

        Returns:
            [positions, in × taps], for groups = 1.
        """
        channels = self.weight.shape[1] * self.groups
        numbers = np.arange(channels * math.prod(self.size)).reshape(channels, *self.size)
        padded = np.pad(numbers, [(0, 0), *self.pads], constant_values=-1)
        seen = [padded[(slice(None), *where)] for _, where in self._taps()]
        return np.stack(seen, 1).reshape(channels * len(seen), -1).T

    def _matrices(self) -> Array:
        """Weights [groups, out / groups, taps × in / groups], so that each product is one of BLAS."""
        w = self.weight.reshape(self.groups, self.weight.shape[0] // self.groups, self.weight.shape[1], -1)
        return np.ascontiguousarray(w.transpose(0, 1, 3, 2)).reshape(*w.shape[:2], -1)

    def apply(self, x: Array) -> Array:
        """[B, C, *size] → [B, out, *positions]."""
        batch, where = len(x), self.positions
        padded = np.pad(x, [(0, 0), (0, 0), *self.pads])
        seen = [padded[(slice(None), slice(None), *reads)] for _, reads in self._taps()]
        columns = np.stack(seen, 1).reshape(batch, len(seen), self.groups, -1, math.prod(where))
        columns = columns.transpose(0, 2, 1, 3, 4).reshape(batch, self.groups, -1, math.prod(where))
        return np.asarray(self._matrices() @ columns).reshape(batch, self.weight.shape[0], *where)

    def adjoint(self, a: Array) -> Array:
        """[B, out, *positions] → [B, C, *size]."""
        batch, each = len(a), self.weight.shape[1]
        shape = (batch, self.groups * each, *(n + sum(p) for n, p in zip(self.size, self.pads, strict=True)))
        padded = np.zeros(shape)
        rows = a.reshape(batch, self.groups, self.weight.shape[0] // self.groups, -1)
        taps = list(self._taps())
        columns = self._matrices().transpose(0, 2, 1) @ rows
        columns = columns.reshape(batch, self.groups, len(taps), each, -1)
        for number, (_, reads) in enumerate(taps):
            part = columns[:, :, number].reshape(batch, -1, *self.positions)
            padded[(slice(None), slice(None), *reads)] += part
        inside = tuple(slice(p[0], p[0] + n) for p, n in zip(self.pads, self.size, strict=True))
        return padded[(slice(None), slice(None), *inside)]

    def gradient(self, x: Array, a: Array) -> Array:
        """Sum over positions of x at each tap ⊗ a."""
        lead = len(a)
        weight = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        padded = np.pad(x, [(0, 0), *self.pads])
        rows = a.reshape(lead, self.groups, weight.shape[1], -1)
        found = np.empty((lead, *weight.shape))
        for tap, reads in self._taps():
            seen = padded[(slice(None), *reads)].reshape(self.groups, weight.shape[2], -1)
            at: tuple[int | EllipsisType, ...] = (..., *tap)
            found[at] = rows @ seen.transpose(0, 2, 1)
        return found.reshape(lead, *self.weight.shape)

    def with_weight(self, weight: Array) -> Self:
        """The same with other weights."""
        return replace(self, weight=weight)


@dataclass(frozen=True, eq=False)
class TransposedMap:
    """Transposed convolution: the adjoint of a convolution from its output to its input.

    Attributes:
        weight: [in, out / groups, *kernel].
        size: spatial shape of the output.
        strides: one a dimension, of the convolution.
        pads: (before, after) a dimension, taken off the output.
        dilations: one a dimension.
        groups: of channels.
    """

    weight: Array
    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]
    groups: int = 1

    @property
    def conv(self) -> ConvMap:
        """That convolution."""
        return ConvMap(self.weight, self.size, self.strides, self.pads, self.dilations, self.groups)

    @property
    def terms(self) -> int:
        """Products of one sum, at most."""
        return int(self.weight.size // self.weight.shape[1] // self.groups)

    def apply(self, x: Array) -> Array:
        """[B, in, *positions] → [B, out, *size]."""
        return self.conv.adjoint(x)

    def adjoint(self, a: Array) -> Array:
        """[B, out, *size] → [B, in, *positions]."""
        return self.conv.apply(a)

    def gradient(self, x: Array, a: Array) -> Array:
        """⟨a, Cᵀ x⟩ = ⟨C a, x⟩, form by form."""
        conv = self.conv
        return np.concatenate([conv.gradient(form, x[None]) for form in a])

    def with_weight(self, weight: Array) -> Self:
        """The same with other weights."""
        return replace(self, weight=weight)


@dataclass(frozen=True, eq=False)
class SpreadMap:
    """The same numbers repeated along axes of length 1.

    Attributes:
        size: shape of an input row.
        shape: of an output row, with as many axes.
        weight: 1, as an array of one number.
    """

    size: tuple[int, ...]
    shape: tuple[int, ...]
    weight: Array
    terms: int = 1

    def apply(self, x: Array) -> Array:
        """[B, *size] → [B, *shape]."""
        return np.broadcast_to(self.weight * x, (len(x), *self.shape)).copy()

    def adjoint(self, a: Array) -> Array:
        """Summed."""
        axes = tuple(i + 1 for i, (n, m) in enumerate(zip(self.size, self.shape, strict=True)) if n == 1 < m)
        return np.asarray(self.weight * a.sum(axes, keepdims=True))

    def gradient(self, x: Array, a: Array) -> Array:
        """What is repeated has no weights of its own."""
        raise NotImplementedError("repetition has no weights")

    def with_weight(self, weight: Array) -> Self:
        """The same with another factor."""
        return replace(self, weight=weight)


@dataclass(frozen=True, eq=False)
class ScaleMap:
    """y = s x, element by element.

    Attributes:
        weight: s, of the shape of a row.
    """

    weight: Array
    terms: int = 1

    def apply(self, x: Array) -> Array:
        """[B, *in] → the same shape."""
        return np.asarray(x * self.weight)

    def adjoint(self, a: Array) -> Array:
        """As `apply`."""
        return np.asarray(a * self.weight)

    def gradient(self, x: Array, a: Array) -> Array:
        """X a."""
        return np.asarray(x * a)

    def with_weight(self, weight: Array) -> Self:
        """The same with other weights."""
        return replace(self, weight=weight)


@dataclass(frozen=True, eq=False)
class MeanMap:
    """Mean over some axes of a row, which stay, with length 1.

    Attributes:
        size: shape of a row.
        axes: of the row, counted from 0.
        weight: 1 / number of elements, as an array of one number.
    """

    size: tuple[int, ...]
    axes: tuple[int, ...]
    weight: Array

    @property
    def terms(self) -> int:
        """Elements of one mean, and the division."""
        return math.prod(self.size[a] for a in self.axes) + 1

    def apply(self, x: Array) -> Array:
        """[B, *size] → means."""
        return np.asarray(self.weight * x.sum(tuple(a + 1 for a in self.axes), keepdims=True))

    def adjoint(self, a: Array) -> Array:
        """Spread evenly."""
        return np.broadcast_to(self.weight * a, (len(a), *self.size)).copy()

    def gradient(self, x: Array, a: Array) -> Array:
        """A mean has no weights of its own."""
        raise NotImplementedError("a mean has no weights")

    def with_weight(self, weight: Array) -> Self:
        """The same with another factor."""
        return replace(self, weight=weight)
