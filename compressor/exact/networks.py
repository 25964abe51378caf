"""Exact networks, and the oracle: what a ReLU network with weights 0 and 1 must answer (Kepner et al. 2018, §II–III).

    Y_{l+1} = max(W_l Y_l + B_l, 0) = W_l Y_l ⊗ B_l ⊕ 0        W Y over (+, ×), the rest over (max, +)
    b_l = β_l |W_l 1|₀ − W_l 1,  0 < β_l ≤ 1

With β = 1 a neuron gives 1 where all that it reads is 1, and 0 where one of them is 0. Nothing is dense here: b ≤ 0, so
where nothing is stored of W Y nothing comes out. As in the document, rows of Y are neurons and columns samples; in the
other modules rows are samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from edgepress.compressor.exact.arrays import MAX_PLUS, AssociativeArray, Keys

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ExactNet:
    """A network that tells its categories apart without an error.

    Attributes:
        name: for people.
        weights: a layer each, [neurons, neurons before], ones alone are stored.
        labels: of features, of each layer's neurons, and at last of categories; texts, made when they are asked for.
    """

    name: str
    weights: tuple[sp.csr_array, ...]
    labels: tuple[Sequence[str], ...]

    @property
    def neurons(self) -> int:
        """Of all layers; features are not counted."""
        return sum(each.shape[0] for each in self.weights)

    @property
    def connections(self) -> int:
        """Weights that are 1."""
        return sum(each.nnz for each in self.weights)

    def supports(self, layer: int | None = None) -> sp.csr_array:
        """Features that neurons of a layer rest on, [neurons, features] of 0 and 1; without a layer, of categories.

        Its transpose is the input Y₀ = W₀ᵀ of the single-layer solution, to which the network answers 𝕀.
        """
        found = self.weights[0]
        for weight in self.weights[1 : None if layer is None else layer + 1]:
            found = weight @ found
            found.data[:] = 1  # |·|₀
        return found

    def degrees(self) -> list[Vector]:
        """Ones in each neuron's row, a layer each: W_l 1."""
        return [np.diff(each.indptr).astype(np.float64) for each in self.weights]

    def biases(self, betas: Sequence[float] | None = None) -> list[Vector]:
        """b_l = β_l |W_l 1|₀ − W_l 1, a layer each.

        Args:
            betas: one a layer, above 0 and at most 1; without them, 1.

        Raises:
            ValueError: one is outside of that, or they are too few or too many.
        """
        betas = [1.0] * len(self.weights) if betas is None else betas
        if len(betas) != len(self.weights) or not all(0 < beta <= 1 for beta in betas):
            raise ValueError(f"β must be above 0 and at most 1, one for each of {len(self.weights)} layers")
        return [beta * (each > 0) - each for beta, each in zip(betas, self.degrees(), strict=True)]

    def collapsed(
        self, betas: Sequence[float] | None = None, *, named: bool = True
    ) -> tuple[AssociativeArray, AssociativeArray]:
        """The whole network as two arrays over unique keys: W = ⊕ W_l and b = ⊕ b_l (over max, +).

        Args:
            betas: as `biases` takes them.
            named: keys are labels behind the number of their layer (a neuron that hands on what it reads is not taken
                for it); False: numbers, counted through all layers from the first feature on.
        """
        starts = np.cumsum([0, *map(len, self.labels)])
        keys: list[Keys] = [
            np.array([f"{place}|{label}" for label in labels])
            if named
            else starts[place] + np.arange(len(labels))
            for place, labels in enumerate(self.labels)
        ]
        rows, columns = [], []
        for place, weight in enumerate(self.weights):
            found = weight.tocoo()
            rows.append(keys[place + 1][found.row])
            columns.append(keys[place][found.col])
        weights = AssociativeArray.of(np.concatenate(rows), np.concatenate(columns), 1.0)
        values, names = np.concatenate(self.biases(betas)), np.concatenate(keys[1:])
        return weights, AssociativeArray.of(names, np.full(len(names), ""), values, MAX_PLUS)


def step(weight: sp.csr_array, bias: Vector, y: sp.csr_array) -> sp.csr_array:
    """One layer: W Y ⊗ B ⊕ 0.

    Args:
        weight: [m, n].
        bias: [m], none above 0.
        y: [n, samples], not below 0.

    Returns:
        [m, samples]; zeros are not stored.
    """
    z = weight @ y
    z.data += np.repeat(bias.astype(z.dtype, copy=False), np.diff(z.indptr))
    kept = z.data > 0
    before = np.concatenate(([0], np.cumsum(kept)))
    return sp.csr_array((z.data[kept], z.indices[kept], before[z.indptr]), shape=z.shape)


def forward(
    net: ExactNet, y: sp.csr_array | npt.NDArray[np.float64], betas: Sequence[float] | None = None
) -> list[sp.csr_array]:
    """What every layer gives.

    Args:
        net: the network.
        y: [features, samples], not below 0.
        betas: as `ExactNet.biases` takes them.

    Returns:
        A layer each, [neurons, samples].
    """
    found, y = [], sp.csr_array(y)
    for weight, bias in zip(net.weights, net.biases(betas), strict=True):
        y = step(weight, bias, y)
        found.append(y)
    return found


def collapsed_step(
    weights: AssociativeArray, biases: AssociativeArray, y: AssociativeArray
) -> AssociativeArray:
    """Y ← W Y ⊗ B ⊕ 0 on the collapsed arrays: neurons answer to those of the layer before, whichever it is.

    Args:
        weights: neurons × neurons, over (+, ×).
        biases: neurons × the empty key, over (max, +); B is b repeated for every sample.
        y: neurons × samples.

    Returns:
        Neurons × samples, over (+, ×); zeros are not stored.
    """
    z = (weights @ y).over(MAX_PLUS)
    samples = AssociativeArray.of(np.full(len(z.columns), ""), z.columns, MAX_PLUS.one, MAX_PLUS)
    z = z * (biases @ samples)
    i, j, values = z.entries()
    kept = values > 0
    return AssociativeArray.of(z.rows[i[kept]], z.columns[j[kept]], values[kept])


def infer(
    weights: AssociativeArray, biases: AssociativeArray, y: AssociativeArray, layers: int
) -> AssociativeArray:
    """Y ← W Y ⊗ B ⊕ 0, so many times: as `collapsed_step`, but keys are looked up once.

    Args:
        weights: neurons × neurons, over (+, ×).
        biases: neurons × the empty key, over (max, +).
        y: features × samples.
        layers: times.
    """
    keys = np.union1d(np.union1d(weights.rows, weights.columns), y.rows)
    square = weights.placed(keys, keys)
    bias = np.zeros(len(keys))
    bias[np.searchsorted(keys, biases.rows)] = biases.dense()[:, 0]
    matrix = y.placed(keys, y.columns)
    for _ in range(layers):
        matrix = step(square, bias, matrix)
    return AssociativeArray(keys, y.columns, matrix)
