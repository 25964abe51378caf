"""Epochs of training with evolution between them: Algorithm 1 of Chouliaras 2021 with its schedules."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from types import ModuleType
from typing import Any, Literal

import numpy as np

from edgepress.compressor.errors import UsageError
from edgepress.compressor.evolve.augment import Augmentation
from edgepress.compressor.evolve.layers import (
    LEVELS,
    Hidden,
    Layer,
    SparseLayer,
    Step,
    dense_from,
    sparse_from,
    start_dense,
    start_sparse,
)
from edgepress.compressor.evolve.network import Network
from edgepress.compressor.evolve.samples import Samples, Scaling, batches
from edgepress.compressor.evolve.schedules import Schedule
from edgepress.compressor.evolve.topology import Floats

Last = Literal["prune", "keep"]
TEST_BATCH = 500
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        layers: neurons from input to classes.
        schedule: method, and how much evolves when.
        epsilon: ε of eq. 3.1: how many connections.
        epochs: passes over the samples.
        batch: samples a step.
        step: how weights learn.
        dropout: share of hidden neurons that is silent in a step, in [0, 1).
        threshold: of the modified ReLU (Im & Dasari, section 8); 0: ReLU.
        augmentation: of images.
        last: after the last epoch, whether the weakest connections go (Algorithm 1, line 15) or nothing does.
        seed: of every random choice.
    """

    layers: tuple[int, ...]
    schedule: Schedule = field(default_factory=Schedule)
    epsilon: float = 20.0
    epochs: int = 100
    batch: int = 100
    step: Step = field(default_factory=Step)
    dropout: float = 0.3
    threshold: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    last: Last = "prune"
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """All of it, for files."""
        return {**asdict(self), "layers": list(self.layers)}


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: from 1.
        loss: mean cross-entropy while training, with dropout, in nats.
        accuracy: of the test rows after training, before evolution, in percent.
        zeta: share of connections that went.
        connections: in the whole net after evolution.
        seconds: of training and evolution, without the test.
        evolution_seconds: of evolution alone.
    """

    number: int
    loss: float
    accuracy: float
    zeta: float
    connections: int
    seconds: float
    evolution_seconds: float


class Training:
    """A net, its samples and its source of chance: one call trains one epoch."""

    def __init__(
        self,
        settings: Settings,
        train: Samples,
        test: Samples,
        kernels: ModuleType,
        start: Sequence[tuple[Floats, Floats]] | None = None,
    ) -> None:
        """Prepare.

        Args:
            settings: how.
            train: rows to learn from.
            test: rows to judge by after each epoch; nothing is chosen by them.
            kernels: of sparse layers.
            start: weights [inputs, outputs] and biases of a dense net to start from, for inputs as scaled here.
        """
        self.settings, self.train, self.test = settings, train, test
        self.random = np.random.default_rng(settings.seed)
        self.scaling = Scaling.of(train.rows)
        layers = _layers(settings, self.random, kernels, start)
        self.network = Network(
            layers, Hidden(settings.threshold, round(settings.dropout * LEVELS)), settings.step
        )
        self.history: list[Epoch] = []
        self.started_with = self.network.parameters

    @property
    def layers(self) -> Sequence[Layer]:
        """Of the net."""
        return self.network.layers

    def epoch(self, tell: Tell | None = None) -> Epoch:
        """Train one epoch, test, and evolve.

        Args:
            tell: hears the share of the epoch that is done, and the loss in words.

        Raises:
            UsageError: it diverged.
        """
        number, began = len(self.history) + 1, time.perf_counter()
        loss = self._pass(tell)
        trained = time.perf_counter()
        accuracy = 100 * self.accuracy()
        evolving = time.perf_counter()
        zeta = self._evolve(number)
        evolved = time.perf_counter()
        connections = sum(layer.connections for layer in self.layers)
        seconds = trained - began + evolved - evolving
        found = Epoch(number, loss, accuracy, zeta, connections, seconds, evolved - evolving)
        self.history.append(found)
        return found

    def _pass(self, tell: Tell | None) -> float:
        size, augmentation = self.settings.batch, self.settings.augmentation
        order = self.random.permutation(len(self.train))
        buffers: dict[int, Floats] = {}
        total, done, told = 0.0, 0, time.monotonic()
        for rows in batches(order, size):
            images = self.train.rows[rows]
            if augmentation:
                images = augmentation.apply(images, self.random)
            if len(rows) not in buffers:
                buffers[len(rows)] = np.empty((self.train.features, len(rows)), np.float32)
            x = self.scaling.apply(images, buffers[len(rows)])
            with np.errstate(all="ignore"):  # what overflows is told below
                total += self.network.learn(x, self.train.labels[rows], self.random)
            if not math.isfinite(total):
                raise UsageError(
                    f"Training diverged in epoch {len(self.history) + 1}: the loss is no number any more.",
                    "Lower --learning-rate, or raise --batch.",
                )
            done += len(rows)
            if tell is not None and (now := time.monotonic()) > told + 0.2:
                told = now
                tell(done / len(order), f"loss {total / done:.4f}")
        return total / len(order)

    def _evolve(self, number: int) -> float:
        """All layers but the last (Algorithm 1, line 11)."""
        last = number >= self.settings.epochs
        zeta = self.settings.schedule.at(number, self.settings.epochs)
        if last and self.settings.last == "keep":
            zeta = 0.0
        if zeta > 0:
            for layer in self.layers[:-1]:
                if isinstance(layer, SparseLayer):
                    layer.evolve(zeta, self.random, regrow=not last)
        return zeta

    def accuracy(self) -> float:
        """Share of the test rows whose class is right, in [0, 1]."""
        right = 0
        for rows in batches(np.arange(len(self.test)), TEST_BATCH):
            x = self.scaling.apply(
                self.test.rows[rows], np.empty((self.test.features, len(rows)), np.float32)
            )
            right += int((self.network.logits(x).argmax(axis=0) == self.test.labels[rows]).sum())
        return right / len(self.test)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the layers, as JSON."""
        return {"random": self.random.bit_generator.state, "history": [asdict(each) for each in self.history]}

    def go_on(self, facts: dict[str, Any]) -> None:
        """Take up the state of a checkpoint, whose layers have been restored."""
        self.random.bit_generator.state = facts["random"]
        self.history = [Epoch(**each) for each in facts["history"]]


def _layers(
    settings: Settings,
    random: np.random.Generator,
    kernels: ModuleType,
    start: Sequence[tuple[Floats, Floats]] | None,
) -> list[Layer]:
    dense = settings.schedule.method == "dense"
    if start is not None:
        return [dense_from(w, b) if dense else sparse_from(w, b, settings.epsilon, kernels) for w, b in start]
    pairs = pairwise(settings.layers)
    if dense:
        return [start_dense(inputs, outputs, random) for inputs, outputs in pairs]
    return [start_sparse(inputs, outputs, settings.epsilon, random, kernels) for inputs, outputs in pairs]
