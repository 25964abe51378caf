"""Factors that give the two layers around an activation equal ranges (Nagel et al. 2019, Data-Free Quantization, §4.1).

Where f(s x) = s f(x) for s > 0, channel c of W₂ f(W₁ x + b) may be divided by any s_c > 0 in front and multiplied by
it behind. With r₁ and r₂ the ranges of what makes and what reads the channel, both become √(r₁ r₂) by

    s_c = √(r₁_c / r₂_c)

A layer is the reader of one pair and the maker of the next, so pairs have their turn again until nothing changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.protocols import Array, Matrix

LARGEST = 2.0**20
"""No factor is beyond this, nor below its inverse: numbers stay far from the ends of float32."""


@dataclass
class Entries:
    """The weights of one layer as magnitudes, one for each pair of an output and an input of the layer.

    Attributes:
        peaks: largest magnitude of the weights between them [outputs, inputs per group].
        groups: of the layer.
    """

    peaks: Matrix
    groups: int = 1

    def made(self) -> Matrix:
        """Range of the weights that make each output [outputs]."""
        ranges: Matrix = self.peaks.max(axis=1, initial=0.0)
        return ranges

    def read(self) -> Matrix:
        """Range of the weights that read each input [inputs]."""
        ranges: Matrix = self._grouped().max(axis=1, initial=0.0).reshape(-1)
        return ranges

    def scale_made(self, factors: Matrix) -> None:
        """Multiply outputs [outputs]."""
        self.peaks *= factors[:, None]

    def scale_read(self, factors: Matrix) -> None:
        """Multiply inputs [inputs]."""
        grouped = self._grouped()
        grouped *= factors.reshape(self.groups, 1, -1)

    def _grouped(self) -> Matrix:
        """A view [groups, outputs per group, inputs per group]."""
        return self.peaks.reshape(self.groups, -1, self.peaks.shape[1])


@dataclass(frozen=True)
class Pair:
    """A layer and those that read it.

    Attributes:
        maker: index of the layer in front.
        readers: indices of the layers behind, and for each of their inputs the output of the maker that it is.
        least: no output may be divided by less than this altogether [outputs].
        fixed: outputs that stay as they are [outputs].
    """

    maker: int
    readers: tuple[tuple[int, Array], ...]
    least: Matrix
    fixed: Array


def equalize(layers: Sequence[Entries], pairs: Sequence[Pair], rounds: int, little: float) -> list[Matrix]:
    """Factors [outputs] that each pair's maker is to be divided by; changes `layers`.

    Args:
        layers: all layers that pairs name.
        pairs: in the order of the net.
        rounds: most turns of all pairs.
        little: when no factor of a round is farther from 1, in its logarithm, it was the last.
    """
    totals = [np.ones(len(pair.least)) for pair in pairs]
    for _ in range(rounds):
        moved = 0.0
        for pair, total in zip(pairs, totals, strict=True):
            factors = _factors(layers, pair, total)
            moved = max(moved, float(np.abs(np.log(factors)).max(initial=0.0)))
            layers[pair.maker].scale_made(1 / factors)
            for index, source in pair.readers:
                layers[index].scale_read(factors[source])
            np.multiply(total, factors, out=total)
        if moved <= little:
            break
    return totals


def _factors(layers: Sequence[Entries], pair: Pair, total: Matrix) -> Matrix:
    """S [outputs] of one turn; 1 where a range is zero."""
    made, read = layers[pair.maker].made(), np.zeros(len(total))
    for index, source in pair.readers:
        np.maximum.at(read, source, layers[index].read())
    usable = (made > 0) & (read > 0) & ~pair.fixed
    wanted = np.sqrt(np.divide(made, read, out=np.ones_like(made), where=usable))
    inside: Matrix = np.clip(total * wanted, np.maximum(pair.least, 1 / LARGEST), LARGEST) / total
    return np.where(usable, inside, 1.0)
