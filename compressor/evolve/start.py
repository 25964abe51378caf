"""A trained dense perceptron to start from, for `--from`."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from edgepress.compressor.errors import ModelError
from edgepress.compressor.evolve.samples import Scaling
from edgepress.compressor.evolve.topology import Floats
from edgepress.compressor.evolve.widen import widened
from edgepress.compressor.export.sparse import from_model
from edgepress.compressor.model import load


@dataclass(frozen=True, eq=False)
class Start:
    """A perceptron as it was trained, for samples as they come.

    Attributes:
        layers: weights [inputs, outputs] and biases [outputs].
        shape: of a sample.
        threshold: of the modified ReLU between the layers; 0: ReLU.
    """

    layers: tuple[tuple[Floats, Floats], ...]
    shape: tuple[int, ...]
    threshold: float

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons from inputs to classes."""
        return (self.layers[0][0].shape[0], *(len(bias) for _, bias in self.layers))

    def scaled(self, scaling: Scaling) -> list[tuple[Floats, Floats]]:
        """The same net for samples that are scaled before: which weights are large is told there."""
        (weights, bias), *rest = self.layers
        wide = weights.astype(np.float64) / scaling.factor[:, None]
        shifted = bias + weights.astype(np.float64).T @ scaling.mean
        return [(wide.astype(np.float32), shifted.astype(np.float32)), *rest]


def read_start(path: Path) -> Start:
    """Read a perceptron of ReLU layers.

    Raises:
        ModelError: it cannot be read, or is no such thing.
    """
    try:
        net = from_model(widened(load(path)))
    except ModelError as error:
        told = str(error).removeprefix(f"{path}: ")
        raise ModelError(f"{path}: {told}", "Give a perceptron that computes in floats.") from error
    inner = net.layers[:-1]
    thresholds = {layer.alpha if layer.activation == "ThresholdedRelu" else 0.0 for layer in inner}
    known = {layer.activation for layer in inner} <= {"Relu", "ThresholdedRelu"}
    if not known or len(thresholds) > 1 or min(thresholds, default=0.0) < 0:
        raise ModelError(
            f"{path} has other activations than ReLU between its layers.",
            "Evolution trains layers of ReLU, or of ThresholdedRelu with one ε of at least 0.",
        )
    if net.layers[-1].activation not in ("", "Softmax"):
        raise ModelError(f"{path} ends in {net.layers[-1].activation}, not in classes.", "Give a classifier.")
    layers = tuple(
        (layer.weights.toarray().astype(np.float32), np.asarray(layer.bias, np.float32))
        for layer in net.layers
    )
    for place, ((before, _), (after, _)) in enumerate(pairwise(layers), 1):
        if before.shape[1] != after.shape[0]:
            raise ModelError(
                f"{path}: layer {place + 1} has {after.shape[0]} inputs, the one before {before.shape[1]} outputs.",
                "Export the model again.",
            )
    return Start(layers, net.input_shape or (layers[0][0].shape[0],), max(thresholds, default=0.0))
