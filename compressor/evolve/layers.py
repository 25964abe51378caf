"""One layer with its weights, sparse or dense: what it gives for a batch, and a step of learning.

Activations and gradients are [neurons, batch]. The dense layer is what the sparse one is compared with: the same
arithmetic by NumPy's BLAS.
"""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from edgepress.compressor.evolve import plain
from edgepress.compressor.evolve.topology import Floats, Topology, draw_free, erdos_renyi, largest, weakest

LEVELS = 65536
"""Of the noise that dropout draws."""


@dataclass(frozen=True)
class Step:
    """How weights learn: by stochastic gradient descent with momentum.

    Attributes:
        rate: learning rate.
        momentum: share of the last step that is made again.
        decay: of weights, L2; biases do not decay.
    """

    rate: float = 0.01
    momentum: float = 0.9
    decay: float = 0.0002


@dataclass(frozen=True)
class Hidden:
    """What hidden neurons do with their sums while they train.

    Attributes:
        threshold: of the modified ReLU, at least 0.
        dropped: share of neurons that dropout silences, in 65 536ths.
    """

    threshold: float = 0.0
    dropped: int = 0

    @property
    def scale(self) -> float:
        """By which dropout makes the other neurons larger."""
        return LEVELS / (LEVELS - self.dropped)


class Layer(Protocol):
    """A layer of the net; `bias` is [outputs]."""

    bias: Floats
    bias_velocity: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs."""

    @property
    def connections(self) -> int:
        """How many weights there are, without biases."""

    def forward(
        self, x: Floats, out: Floats, hidden: Hidden | None, noise: npt.NDArray[np.uint16] | None
    ) -> None:
        """Write what the layer gives, [outputs, batch]; `hidden` None: sums as they are."""

    def backward(self, x: Floats, delta: Floats, out: Floats | None, step: Step, scale: float) -> None:
        """Write the gradient before the layer (where wanted), and learn."""

    def matrix(self) -> csr_matrix:
        """Weights as [inputs, outputs]."""


@dataclass(eq=False)
class SparseLayer:
    """A layer with few connections.

    Attributes:
        topology: which.
        weights: [connections].
        velocity: [connections], the last step.
        deviation: standard deviation of new weights.
        kernels: that do the work.
    """

    topology: Topology
    weights: Floats
    velocity: Floats
    bias: Floats
    bias_velocity: Floats
    deviation: float
    kernels: ModuleType = field(default=plain)

    @property
    def shape(self) -> tuple[int, int]:
        """See `Layer`."""
        return self.topology.inputs, self.topology.outputs

    @property
    def connections(self) -> int:
        """See `Layer`."""
        return self.topology.connections

    def forward(
        self, x: Floats, out: Floats, hidden: Hidden | None, noise: npt.NDArray[np.uint16] | None
    ) -> None:
        """See `Layer`."""
        threshold = None if hidden is None else hidden.threshold
        dropped = 0 if hidden is None else hidden.dropped
        self.kernels.forward(self.topology, self.weights, self.bias, x, out, threshold, noise, dropped)

    def backward(self, x: Floats, delta: Floats, out: Floats | None, step: Step, scale: float) -> None:
        """See `Layer`."""
        self.kernels.backward(
            self.topology,
            self.weights,
            self.velocity,
            x,
            delta,
            out,
            step.rate,
            step.momentum,
            step.decay,
            scale,
        )
        learn_bias(self, delta, step)

    def matrix(self) -> csr_matrix:
        """See `Layer`."""
        return self.topology.matrix(self.weights)

    def evolve(self, zeta: float, random: np.random.Generator, regrow: bool = True) -> int:
        """Lines 12–17 of Algorithm 1: the weakest connections go, as many new ones come where there are none.

        New ones are small and without momentum. Places that have just become free count as free.

        Args:
            zeta: share that goes.
            random: where chance comes from.
            regrow: whether new ones come.

        Returns:
            How many went.
        """
        keep = ~weakest(self.weights, zeta)
        kept, count = self.topology.keys[keep], int((~keep).sum())
        inputs, outputs = self.shape
        fresh = draw_free(kept, inputs * outputs, count if regrow else 0, random)
        order = np.argsort(keys := np.concatenate([kept, fresh]), kind="stable")
        drawn = random.normal(0, self.deviation, len(fresh)).astype(np.float32)
        self.weights = np.concatenate([self.weights[keep], drawn])[order]
        self.velocity = np.concatenate([self.velocity[keep], np.zeros_like(drawn)])[order]
        self.topology = Topology.of(keys[order], inputs, outputs)
        return count


@dataclass(eq=False)
class DenseLayer:
    """A layer with all connections; `weights` and `velocity` are [inputs, outputs]."""

    weights: Floats
    velocity: Floats
    bias: Floats
    bias_velocity: Floats
    gradient: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """See `Layer`."""
        return self.weights.shape[0], self.weights.shape[1]

    @property
    def connections(self) -> int:
        """See `Layer`."""
        return self.weights.size

    def forward(
        self, x: Floats, out: Floats, hidden: Hidden | None, noise: npt.NDArray[np.uint16] | None
    ) -> None:
        """See `Layer`."""
        np.matmul(self.weights.T, x, out=out)
        out += self.bias[:, None]
        if hidden is None:
            return
        if hidden.threshold:
            out[out <= hidden.threshold] = 0
        else:
            np.maximum(out, 0, out=out)
        if noise is not None:
            out *= (noise >= hidden.dropped) * np.float32(hidden.scale)

    def backward(self, x: Floats, delta: Floats, out: Floats | None, step: Step, scale: float) -> None:
        """See `Layer`."""
        if out is not None:
            np.matmul(self.weights, delta, out=out)
            out *= (x > 0) * np.float32(scale)
        # velocity ← m v − rate g − rate decay w in place: large matrices are slow to read, and slower to make.
        np.matmul(x, (delta * np.float32(step.rate)).T, out=self.gradient)
        self.velocity *= np.float32(step.momentum)
        self.velocity -= self.gradient
        if step.decay:
            self.velocity -= np.multiply(self.weights, np.float32(step.rate * step.decay), out=self.gradient)
        self.weights += self.velocity
        learn_bias(self, delta, step)

    def matrix(self) -> csr_matrix:
        """See `Layer`."""
        return csr_matrix(self.weights)


def learn_bias(layer: Layer, delta: Floats, step: Step) -> None:
    """One step of a layer's biases; `delta` is [outputs, batch]."""
    layer.bias_velocity *= np.float32(step.momentum)
    layer.bias_velocity -= np.float32(step.rate) * delta.sum(axis=1)
    layer.bias += layer.bias_velocity


def start_sparse(
    inputs: int, outputs: int, epsilon: float, random: np.random.Generator, kernels: ModuleType
) -> SparseLayer:
    """A layer of random connections with random weights.

    Weights are drawn as He et al. (2015) do for ReLU, by how many connections a neuron has on average, or signals would
    die out from layer to layer.
    """
    topology = erdos_renyi(inputs, outputs, epsilon, random)
    deviation = float(np.sqrt(2 * outputs / max(topology.connections, 1)))
    weights = random.normal(0, deviation, topology.connections).astype(np.float32)
    return _fresh(topology, weights, np.zeros(outputs, np.float32), kernels)


def sparse_from(weights: Floats, bias: Floats, epsilon: float, kernels: ModuleType) -> SparseLayer:
    """A layer of the largest weights of a dense one; `weights` are [inputs, outputs]."""
    topology = largest(weights, epsilon)
    kept = weights.ravel()[topology.keys].astype(np.float32)
    return _fresh(topology, kept, bias.astype(np.float32), kernels)


def _fresh(topology: Topology, weights: Floats, bias: Floats, kernels: ModuleType) -> SparseLayer:
    # New connections are drawn as if the layer were dense (He et al. 2015): by how few there really are, they would
    # be as large as trained ones, a new noise after every epoch.
    deviation = float(np.sqrt(2 / topology.inputs))
    return SparseLayer(
        topology, weights, np.zeros_like(weights), bias, np.zeros_like(bias), deviation, kernels
    )


def start_dense(inputs: int, outputs: int, random: np.random.Generator) -> DenseLayer:
    """A layer of all connections with random weights, drawn as He et al. (2015) do."""
    weights = random.standard_normal((inputs, outputs), np.float32)
    weights *= np.float32(np.sqrt(2 / inputs))
    return dense_from(weights, np.zeros(outputs, np.float32))


def dense_from(weights: Floats, bias: Floats) -> DenseLayer:
    """A layer that begins with given weights [inputs, outputs]."""
    held = np.ascontiguousarray(weights, np.float32)
    return DenseLayer(
        held,
        np.zeros_like(held),
        bias.astype(np.float32),
        np.zeros_like(bias, np.float32),
        np.empty_like(held),
    )
