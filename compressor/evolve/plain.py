"""The kernels of `compiled` by SciPy and NumPy: the same sums in another order, several times slower."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from edgepress.compressor.evolve.topology import Floats, Topology

BLOCK = 8192
"""Connections whose gradients are worked out together: [block, batch] numbers are held twice."""


def forward(
    topology: Topology,
    weights: Floats,
    bias: Floats,
    x: Floats,
    out: Floats,
    threshold: float | None,
    noise: npt.NDArray[np.uint16] | None,
    dropped: int,
) -> None:
    """See `compiled.forward`."""
    starts, sources, order = topology.by_output
    by_output = csr_matrix((weights[order], sources, starts), (topology.outputs, topology.inputs))
    np.add(by_output @ x, bias[:, None], out=out)
    if threshold is not None:
        out[out <= threshold] = 0
    if noise is not None:
        np.multiply(out, np.float32(65536 / (65536 - dropped)), out=out)
        out[noise < dropped] = 0


def backward(
    topology: Topology,
    weights: Floats,
    velocity: Floats,
    x: Floats,
    delta: Floats,
    out: Floats | None,
    rate: float,
    momentum: float,
    decay: float,
    scale: float,
) -> None:
    """See `compiled.backward`."""
    if out is not None:
        np.multiply(topology.matrix(weights) @ delta, np.float32(scale), out=out)
        out[x <= 0] = 0
    gradient = sampled(topology, x, delta)
    gradient += np.float32(decay) * weights
    velocity *= np.float32(momentum)
    velocity -= np.float32(rate) * gradient
    weights += velocity


def sampled(topology: Topology, x: Floats, delta: Floats) -> Floats:
    """The product x deltaᵀ where there are connections, [connections].

    Args:
        topology: the connections.
        x: [inputs, batch].
        delta: [outputs, batch].
    """
    found = np.empty(topology.connections, np.float32)
    for start in range(0, len(found), BLOCK):
        part = slice(start, start + BLOCK)
        np.einsum("kb,kb->k", x[topology.sources[part]], delta[topology.targets[part]], out=found[part])
    return found
