"""A perceptron of several layers: forward, softmax with cross-entropy, backward, and what is held for a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgepress.compressor.evolve.layers import Hidden, Layer, Step
from edgepress.compressor.evolve.topology import Floats


@dataclass(eq=False)
class Network:
    """Layers in order; what they need for a batch is made once for each size of batch.

    Attributes:
        layers: the last one gives a number a class.
        hidden: what the neurons between do.
        step: how weights learn.
    """

    layers: Sequence[Layer]
    hidden: Hidden
    step: Step
    _held: dict[int, list[Floats]] = field(default_factory=dict)
    _deltas: dict[int, list[Floats]] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Connections and biases."""
        return sum(layer.connections + layer.shape[1] for layer in self.layers)

    def logits(self, x: Floats) -> Floats:
        """What the net gives for a batch, without dropout.

        Args:
            x: [inputs, batch].

        Returns:
            [classes, batch], valid until the next batch of this size.
        """
        outs = self._outs(x.shape[1])
        for at, layer in enumerate(self.layers):
            last = at == len(self.layers) - 1
            layer.forward(
                x if at == 0 else outs[at - 1],
                outs[at],
                None if last else Hidden(self.hidden.threshold),
                None,
            )
        return outs[-1]

    def learn(self, x: Floats, labels: npt.NDArray[np.int64], random: np.random.Generator) -> float:
        """One step on a batch.

        Args:
            x: [inputs, batch].
            labels: [batch], classes from 0.
            random: where dropout's noise comes from.

        Returns:
            Cross-entropy, summed over the batch, in nats.
        """
        batch = x.shape[1]
        outs, deltas = self._outs(batch), self._backs(batch)
        last = len(self.layers) - 1
        for at, layer in enumerate(self.layers):
            noisy = at < last and self.hidden.dropped > 0
            noise = random.integers(0, 65536, outs[at].shape, np.uint16) if noisy else None
            layer.forward(x if at == 0 else outs[at - 1], outs[at], self.hidden if at < last else None, noise)
        loss = softmax_gradient(outs[last], labels, deltas[last])
        for at in range(last, -1, -1):
            self.layers[at].backward(
                x if at == 0 else outs[at - 1],
                deltas[at],
                deltas[at - 1] if at else None,
                self.step,
                self.hidden.scale,
            )
        return loss

    def _outs(self, batch: int) -> list[Floats]:
        return self._arrays(self._held, batch)

    def _backs(self, batch: int) -> list[Floats]:
        return self._arrays(self._deltas, batch)

    def _arrays(self, held: dict[int, list[Floats]], batch: int) -> list[Floats]:
        if batch not in held:
            held[batch] = [np.empty((layer.shape[1], batch), np.float32) for layer in self.layers]
        return held[batch]


def softmax_gradient(logits: Floats, labels: npt.NDArray[np.int64], out: Floats) -> float:
    """Cross-entropy of the softmax, and its derivative by the logits, averaged over the batch.

    Args:
        logits: [classes, batch].
        labels: [batch].
        out: [classes, batch], is written.

    Returns:
        The loss, summed over the batch, in nats.
    """
    batch = np.arange(logits.shape[1])
    shifted = logits - logits.max(axis=0)
    np.exp(shifted, out=out)
    sums = out.sum(axis=0)
    loss = float((np.log(sums) - shifted[labels, batch]).sum(dtype=np.float64))
    out /= sums
    out[labels, batch] -= 1
    out /= np.float32(len(batch))
    return loss
