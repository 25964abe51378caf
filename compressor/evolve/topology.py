"""Which neurons of two neighbouring layers are connected: the random start, the largest of a dense net, and evolution.

A layer's connections are the entries of a matrix [inputs, outputs] by rows (CSR): sorted by input, then by output. A
connection's key is input · outputs + output, so that sorted keys are sorted connections. Memory goes with the number of
connections, unless that is most of the matrix anyway.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Keys = npt.NDArray[np.int64]

CHUNKS = 16
"""Pieces of about equally many connections into which kernels cut a layer."""


@dataclass(frozen=True, eq=False)
class Topology:
    """Connections of one layer, seen from both sides.

    Attributes:
        inputs: neurons before.
        outputs: neurons behind.
        starts: [inputs + 1], where the connections of each input begin.
        targets: [connections], the output of each.
    """

    inputs: int
    outputs: int
    starts: Ints
    targets: Ints

    @classmethod
    def of(cls, keys: Keys, inputs: int, outputs: int) -> "Topology":
        """Of sorted keys."""
        sources, targets = np.divmod(keys, outputs)
        starts = np.searchsorted(sources, np.arange(inputs + 1))
        return cls(inputs, outputs, starts.astype(np.int32), targets.astype(np.int32))

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self.targets)

    @cached_property
    def sources(self) -> Ints:
        """[connections], the input of each."""
        return np.repeat(np.arange(self.inputs, dtype=np.int32), np.diff(self.starts))

    @cached_property
    def keys(self) -> Keys:
        """[connections], ascending."""
        return self.sources.astype(np.int64) * self.outputs + self.targets

    @cached_property
    def by_output(self) -> tuple[Ints, Ints, Ints]:
        """The same sorted by output: where each begins [outputs + 1], inputs and places by input [connections]."""
        places = np.arange(self.connections, dtype=np.int32)
        turned = csr_matrix((places, self.targets, self.starts), (self.inputs, self.outputs)).tocsc()
        return (turned.indptr.astype(np.int32), turned.indices.astype(np.int32), turned.data)

    @cached_property
    def output_chunks(self) -> Keys:
        """Borders between outputs that part the connections about evenly, [pieces + 1]."""
        return _chunks(self.by_output[0])

    @cached_property
    def input_chunks(self) -> Keys:
        """The same between inputs."""
        return _chunks(self.starts)

    def matrix(self, weights: Floats) -> csr_matrix:
        """The layer as [inputs, outputs] with weights of [connections]."""
        return csr_matrix((weights, self.targets, self.starts), (self.inputs, self.outputs))


def _chunks(starts: Ints) -> Keys:
    inner = np.searchsorted(starts, np.linspace(0, starts[-1], CHUNKS + 1)[1:-1])
    return np.concatenate([[0], inner, [len(starts) - 1]]).astype(np.int64)


def probability(inputs: int, outputs: int, epsilon: float) -> float:
    """Share of all possible connections that a layer begins with, in [0, 1]; Chouliaras 2021, eq. 3.1."""
    return min(epsilon * (inputs + outputs) / (inputs * outputs), 1.0)


def erdos_renyi(inputs: int, outputs: int, epsilon: float, random: np.random.Generator) -> Topology:
    """A random start: every connection is there with the probability of eq. 3.1, whatever the others do.

    How many there are is drawn first and then which ones, which is the same graph G(n, p) in less memory.
    """
    total = inputs * outputs
    count = int(random.binomial(total, probability(inputs, outputs, epsilon)))
    return Topology.of(draw_free(np.empty(0, np.int64), total, count, random), inputs, outputs)


def largest(weights: Floats, epsilon: float) -> Topology:
    """As many connections as eq. 3.1 expects, where a dense layer's weights [inputs, outputs] are largest."""
    inputs, outputs = weights.shape
    count = round(weights.size * probability(inputs, outputs, epsilon))
    size = np.abs(weights).ravel()
    keys = (
        np.sort(np.argpartition(size, size.size - count)[size.size - count :]) if count else np.empty(0, int)
    )
    return Topology.of(keys.astype(np.int64), inputs, outputs)


def weakest(weights: Floats, zeta: float) -> npt.NDArray[np.bool_]:
    """Connections that go: the share ζ of the smallest positive and of the largest negative weights.

    Weights of exactly zero count as positive. Each share is rounded down; of equal weights any may go.

    Args:
        weights: [connections].
        zeta: in [0, 1].

    Returns:
        [connections].
    """
    gone = np.zeros(len(weights), bool)
    for side in (np.flatnonzero(weights >= 0), np.flatnonzero(weights < 0)):
        count = int(zeta * len(side))
        if count:
            gone[side[np.argpartition(np.abs(weights[side]), count - 1)[:count]]] = True
    return gone


def draw_free(taken: Keys, total: int, count: int, random: np.random.Generator) -> Keys:
    """Draw `count` different keys below `total` that are not in `taken`, all sets of them equally likely.

    Args:
        taken: ascending.
        total: number of all keys.
        count: at most as many as are free.
        random: where chance comes from.

    Returns:
        [count], ascending.
    """
    if 2 * (len(taken) + count) > total:  # a list of all that are free is no longer than what is kept
        free = np.ones(total, bool)
        free[taken] = False
        return np.sort(random.choice(np.flatnonzero(free), count, replace=False))
    found = np.empty(0, np.int64)
    while len(found) < count:  # never more than are missing, or small keys would be likelier
        drawn = np.unique(random.integers(0, total, count - len(found)))
        drawn = drawn[~_in_sorted(drawn, taken) & ~_in_sorted(drawn, found)]
        found = np.sort(np.concatenate([found, drawn]), kind="stable")
    return found


def _in_sorted(keys: Keys, among: Keys) -> npt.NDArray[np.bool_]:
    if not len(among):
        return np.zeros(len(keys), bool)
    places = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    found: npt.NDArray[np.bool_] = among[places] == keys
    return found
