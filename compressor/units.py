"""Units: what stands at each position of the channel axis of a value, and which of them are equal."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgepress.compressor.protocols import Array


@dataclass(frozen=True)
class Track:
    """Units of one value: `ids[i]` is the unit at position i of `axis`, of a value of `rank` axes."""

    axis: int
    rank: int
    ids: Array


@dataclass
class Channels:
    """Units of every value of a model."""

    tracks: dict[ir.Value, Track] = field(default_factory=dict)
    pinned: dict[int, str] = field(default_factory=dict)
    parent: list[int] = field(default_factory=list)
    made_by: dict[int, str] = field(default_factory=dict)
    settled: Array | None = None

    def fresh(self, count: int, maker: str) -> Array:
        """New units."""
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        self.made_by.update(dict.fromkeys(range(first, first + count), maker))
        return np.arange(first, first + count)

    def root(self, unit: int) -> int:
        """The unit that stands for all that are equal to `unit`."""
        while self.parent[unit] != unit:
            self.parent[unit] = self.parent[self.parent[unit]]
            unit = self.parent[unit]
        return unit

    def roots(self, ids: Array) -> Array:
        """`root` of each."""
        if self.settled is not None:
            return self.settled[ids]
        return np.fromiter((self.root(int(i)) for i in ids), np.int64, len(ids))

    def settle(self) -> None:
        """Look every root up once; no unit is made or joined after that."""
        self.settled = self.roots(np.arange(len(self.parent)))

    def union(self, a: Array, b: Array) -> None:
        """Make units equal, position by position."""
        for left, right in zip(a, b, strict=True):
            x, y = sorted((self.root(int(left)), self.root(int(right))))
            self.parent[y] = x

    def pin(self, values: Iterable[ir.Value | None], reason: str) -> None:
        """Forbid the removal of all units of these values."""
        for value in values:
            if value is not None and value in self.tracks:
                for unit in self.tracks[value].ids:
                    self.pinned.setdefault(int(unit), reason)

    def pinned_roots(self) -> dict[int, str]:
        """Roots that may not be removed, and why."""
        return {self.root(unit): why for unit, why in self.pinned.items()}
