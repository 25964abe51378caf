"""The inner loops of training on sparse layers, compiled by numba and shared by all cores.

Activations lie as [neurons, batch]: a connection then is one pass over neighbouring numbers, which vector units like.
Forward goes by outputs and backward by inputs, so that no two threads write to the same place, every sum is made in one
order, and equal seeds give equal bits with any number of threads. Four connections at once share what they all read or
write. The gradient exists on the connections alone (the sampled product x deltaᵀ) and is used up at once.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from edgepress.compressor.evolve.topology import Floats, Ints, Keys, Topology

F = TypeVar("F", bound=Callable[..., object])
NO_NOISE = np.empty((0, 0), np.uint16)
NO_OUT = np.empty((0, 0), np.float32)


def _compiled(function: F) -> F:
    return cast(F, numba.njit(parallel=True, fastmath=True, cache=True, error_model="numpy")(function))


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
    """What the neurons behind a layer give for a batch.

    Args:
        topology: the connections.
        weights: [connections].
        bias: [outputs].
        x: [inputs, batch].
        out: [outputs, batch], is written.
        threshold: of the modified ReLU: numbers up to it become zero (0: ReLU); None: no activation.
        noise: [outputs, batch], evenly spread; None: no dropout.
        dropped: what has less noise becomes zero, the rest is made larger to make up for it; of 65 536.
    """
    starts, sources, order = topology.by_output
    _forward(
        starts,
        sources,
        order,
        topology.output_chunks,
        weights,
        bias,
        x,
        out,
        threshold is not None,
        np.float32(threshold or 0.0),
        NO_NOISE if noise is None else noise,
        dropped,
        np.float32(65536 / (65536 - dropped)),
    )


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
    """The gradient before a layer, and one step of its weights.

        velocity ← momentum · velocity − rate (gradient + decay · weights);  weights ← weights + velocity

    Args:
        topology: the connections.
        weights: [connections], change.
        velocity: [connections], changes.
        x: [inputs, batch], what forward was given.
        delta: [outputs, batch], derivative of the loss by what the layer gave, before its activation.
        out: [inputs, batch], is written: the same for the layer before, zero where `x` is; None: not wanted.
        rate: learning rate.
        momentum: share of the last step that is made again.
        decay: of the weights, L2.
        scale: by which dropout had made `x` larger.
    """
    _backward(
        topology.starts,
        topology.targets,
        topology.input_chunks,
        weights,
        velocity,
        x,
        delta,
        NO_OUT if out is None else out,
        np.float32(rate),
        np.float32(momentum),
        np.float32(decay),
        np.float32(scale),
    )


@_compiled
def _forward(
    starts: Ints,
    sources: Ints,
    order: Ints,
    chunks: Keys,
    weights: Floats,
    bias: Floats,
    x: Floats,
    out: Floats,
    hidden: bool,
    threshold: np.float32,
    noise: npt.NDArray[np.uint16],
    dropped: int,
    scale: np.float32,
) -> None:
    batch = x.shape[1]
    zero = np.float32(0)
    for chunk in numba.prange(len(chunks) - 1):
        for neuron in range(chunks[chunk], chunks[chunk + 1]):
            total = out[neuron]
            for b in range(batch):
                total[b] = bias[neuron]
            k, end = starts[neuron], starts[neuron + 1]
            while k + 4 <= end:
                x0, x1, x2, x3 = x[sources[k]], x[sources[k + 1]], x[sources[k + 2]], x[sources[k + 3]]
                w0, w1 = weights[order[k]], weights[order[k + 1]]
                w2, w3 = weights[order[k + 2]], weights[order[k + 3]]
                for b in range(batch):
                    total[b] += w0 * x0[b] + w1 * x1[b] + w2 * x2[b] + w3 * x3[b]
                k += 4
            while k < end:
                x0, w0 = x[sources[k]], weights[order[k]]
                for b in range(batch):
                    total[b] += w0 * x0[b]
                k += 1
            if hidden:
                for b in range(batch):
                    total[b] = total[b] if total[b] > threshold else zero
            if len(noise):
                for b in range(batch):
                    total[b] = total[b] * scale if noise[neuron, b] >= dropped else zero


@_compiled
def _backward(
    starts: Ints,
    targets: Ints,
    chunks: Keys,
    weights: Floats,
    velocity: Floats,
    x: Floats,
    delta: Floats,
    out: Floats,
    rate: np.float32,
    momentum: np.float32,
    decay: np.float32,
    scale: np.float32,
) -> None:
    batch = x.shape[1]
    wanted = len(out) > 0
    zero = np.float32(0)
    for chunk in numba.prange(len(chunks) - 1):
        spare = np.empty(batch, np.float32)
        for neuron in range(chunks[chunk], chunks[chunk + 1]):
            own = x[neuron]
            total = out[neuron] if wanted else spare
            for b in range(batch):
                total[b] = zero
            k, end = starts[neuron], starts[neuron + 1]
            while k + 4 <= end:
                d0, d1 = delta[targets[k]], delta[targets[k + 1]]
                d2, d3 = delta[targets[k + 2]], delta[targets[k + 3]]
                w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
                g0, g1, g2, g3 = zero, zero, zero, zero
                for b in range(batch):
                    total[b] += w0 * d0[b] + w1 * d1[b] + w2 * d2[b] + w3 * d3[b]
                    g0 += own[b] * d0[b]
                    g1 += own[b] * d1[b]
                    g2 += own[b] * d2[b]
                    g3 += own[b] * d3[b]
                velocity[k] = momentum * velocity[k] - rate * (g0 + decay * w0)
                velocity[k + 1] = momentum * velocity[k + 1] - rate * (g1 + decay * w1)
                velocity[k + 2] = momentum * velocity[k + 2] - rate * (g2 + decay * w2)
                velocity[k + 3] = momentum * velocity[k + 3] - rate * (g3 + decay * w3)
                for i in range(4):
                    weights[k + i] += velocity[k + i]
                k += 4
            while k < end:
                d0, w0, g0 = delta[targets[k]], weights[k], zero
                for b in range(batch):
                    total[b] += w0 * d0[b]
                    g0 += own[b] * d0[b]
                velocity[k] = momentum * velocity[k] - rate * (g0 + decay * w0)
                weights[k] += velocity[k]
                k += 1
            if wanted:
                for b in range(batch):
                    total[b] = total[b] * scale if own[b] > zero else zero
