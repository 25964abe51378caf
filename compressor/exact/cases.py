"""What a network is tested on: clean inputs, inputs with features too many, one feature changed, numbers that are tiny.

All rows are whole multiples of 1/n, and so is all that must come out; see `models.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgepress.compressor.exact.models import Precision
from edgepress.compressor.exact.networks import ExactNet, Vector
from edgepress.compressor.exact.perturb import betas_for, paths, thresholds

Rows = npt.NDArray[np.float64]

DEEPEST = 3
"""Layers up to which features are changed: beyond, the ways from a feature to a category outgrow every grid."""

EXTRA_ROWS = 4
"""Pairs of rows a category with features too many: two such rows together have every feature once."""

FAINT = 0.1
"""What one feature of a category is in some rows: its neuron still fires, and the weight for it counts less."""

FAINT_ROWS = 400
"""Such rows at most, drawn."""

NEAR = 2
"""Steps to both sides of r_d that are tried."""

COARSE = 9
"""Values of r from 0 to 2 that are tried besides."""


@dataclass(frozen=True, eq=False)
class Case:
    """Rows for a network, and the biases that it has then.

    Attributes:
        net: the network.
        kind: `answers` (β = 1; features of a category, alone and among others) or `changed` (one of them is r).
        precision: whose grid the numbers lie on.
        steps: n: 1 is so many steps.
        biases: a layer each, in steps.
        rows: inputs, [rows, features].
        category: that each row belongs to, [rows].
        feature: that is changed, [rows]; −1 where none is.
        clean: first so many rows have a category's features and no others.
        threshold: r_d of each row, by the formula; empty for `answers`.
    """

    net: ExactNet
    kind: Literal["answers", "changed"]
    precision: Precision
    steps: int
    biases: tuple[Vector, ...]
    rows: Rows
    category: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    clean: int
    threshold: Vector

    @property
    def r(self) -> Vector:
        """What the changed feature is, a row each."""
        return np.asarray(self.rows[np.arange(len(self.rows)), self.feature])


def answers(net: ExactNet, precision: Precision, extra: int = EXTRA_ROWS, seed: int = 0) -> Case:
    """Every category's own features, and the same among random others: neurons must fire where all of theirs are on.

    A neuron that fires shows any of its weights that is not what it should be, if it reads something there; where it
    reads little there, that tells a weight from the bias.

    Args:
        net: the network.
        precision: of its kernels.
        extra: pairs of rows a category with others.
        seed: of those.
    """
    own = net.supports().toarray()
    rng = np.random.default_rng(seed)
    parts = [own]
    for _ in range(extra):
        some = rng.random(own.shape) < 0.5
        parts += [np.maximum(own, some), np.maximum(own, ~some)]
    steps = 1 if precision.tiny else precision.steps(1.0, max(each.max() for each in net.degrees()))
    category = np.tile(np.arange(len(own)), 1 + 2 * extra)
    if steps > 1:
        c, f = np.nonzero(own)
        drawn = rng.permutation(len(c))[: FAINT_ROWS * extra // EXTRA_ROWS]
        faint = own[c[drawn]]
        faint[np.arange(len(drawn)), f[drawn]] = max(1.0, np.rint(FAINT * steps)) / steps
        parts.append(faint)
        category = np.concatenate([category, c[drawn]])
    rows = np.concatenate(parts)
    biases = tuple(each * steps for each in net.biases())
    none = np.full(len(rows), -1)
    return Case(net, "answers", precision, steps, biases, rows, category, none, len(own), np.zeros(0))


def changed(net: ExactNet, precision: Precision, pairs: int, seed: int = 0) -> Case | None:
    """One feature of a category is r: around r_d and all over [0, 2].

    Args:
        net: the network.
        precision: of its kernels.
        pairs: of a category and one of its features, at most; drawn.
        seed: of the draw.

    Returns:
        None where the network has more than `DEEPEST` layers, or the grid is too coarse for any gap.
    """
    if len(net.weights) > DEEPEST or precision.tiny:
        return None
    steps = _steps(net, precision)
    betas = betas_for(len(net.weights), steps)
    try:
        limits = thresholds(net, betas).tocoo()
    except ValueError:
        return None
    chosen = np.arange(limits.nnz)
    if len(chosen) > pairs:
        chosen = np.sort(np.random.default_rng(seed).choice(limits.nnz, pairs, replace=False))
    own = net.supports().toarray()
    rows, category, feature, threshold = [], [], [], []
    for at in chosen:
        c, f, limit = int(limits.row[at]), int(limits.col[at]), float(limits.data[at])
        values = _values(limit, steps)
        block = np.repeat(own[c : c + 1], len(values), axis=0)
        block[:, f] = values
        rows.append(block)
        category.append(np.full(len(values), c))
        feature.append(np.full(len(values), f))
        threshold.append(np.full(len(values), limit))
    biases = tuple(np.rint(each * steps) for each in net.biases(betas))
    return Case(
        net, "changed", precision, steps, biases, np.concatenate(rows),
        np.concatenate(category), np.concatenate(feature), 0, np.concatenate(threshold),
    )  # fmt: skip


def expected(case: Case) -> Iterator[Rows]:
    """What every layer must give, [rows, neurons], in steps, one after the other: the oracle's answer."""
    y = np.rint(case.rows * case.steps)
    for weight, bias in zip(case.net.weights, case.biases, strict=True):
        y = np.maximum((weight @ y.T).T + bias, 0)
        yield y


def exercised(case: Case) -> tuple[int, int]:
    """Weights that would show if they were wrong: of all layers, and how many there are.

    One shows in a row where its neuron fires and what it reads is not 0.
    """
    before, seen, total = case.rows, 0, 0
    for layer in expected(case):
        fires, reads = layer > 0, before > 0
        seen += int(np.count_nonzero(fires.T.astype(np.float32) @ reads.astype(np.float32)))
        total += layer.shape[1] * before.shape[1]
        before = layer
    return seen, total


def _steps(net: ExactNet, precision: Precision) -> int:
    """Steps of a grid that holds what comes of r = 2: with β = 1 a category gives 1, and 1 more for each way to it."""
    most = float(paths(net).data.max())
    return precision.steps(1 + most, max(float(each.max()) for each in net.degrees()) + most)


def _values(limit: float, steps: int) -> Sequence[float]:
    """Values of r, on the grid, from 0 to 2."""
    middle = int(np.floor(limit * steps + 1e-9))
    near = range(middle - NEAR, middle + NEAR + 1)
    coarse = np.rint(np.linspace(0, 2 * steps, COARSE)).astype(int)
    found = {int(value) for value in (*near, *coarse) if 0 <= value <= 2 * steps}
    return [value / steps for value in sorted(found)]
