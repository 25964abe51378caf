"""The one kind of pass: a frozen dataclass whose fields are its recipe entry.

Rules:
    1. Fields are parameters and are never changed; data comes through `Context`, by `bind`.
    2. A pass changes the model in place and says truthfully whether it did.
    3. A site that it leaves alone is a `Skipped`, not an exception.
    4. Values that stay keep their names: a stage after it pairs them with the original's by name.
    5. Inputs and outputs keep name, dtype and shape.
"""

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import onnx_ir as ir

from edgepress.compressor.protocols import Array, Target


@dataclass(frozen=True)
class Skipped:
    """A site that was left alone.

    Attributes:
        site: the site's name (its node's, or its output value's where the node has none).
        reason: why, in words for the report.
    """

    site: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a pass did.

    Attributes:
        modified: whether the model changed at all.
        changed: names of the sites that changed.
        skipped: sites left alone, with the reason.
    """

    modified: bool
    changed: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()


class Stream(Protocol):
    """Activations of the current and of the original model on the same rows, batch by batch."""

    def __call__(
        self, model: ir.Model, values: Sequence[str], original: Sequence[str] = ()
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Yield (values of `model`, values of the original) for each calibration batch."""


@dataclass(frozen=True)
class Context:
    """What a pass may look at.

    Attributes:
        stream: calibration activations, or None without data.
        target: the device that the model is meant for, or None.
        seed: seed of every random choice.
        leave: regular expressions of sites not to touch (`--leave`).
        rows: how many samples one run of `stream` gives.
        memo: what passes worked out on these samples and may want again; never a source of truth.
    """

    stream: Stream | None = None
    target: Target | None = None
    seed: int = 0
    leave: tuple[str, ...] = ()
    rows: int = 0
    memo: dict[Hashable, object] = field(default_factory=dict, compare=False, repr=False)

    def rng(self) -> np.random.Generator:
        """A fresh generator: equal seeds give equal streams."""
        return np.random.default_rng(self.seed)

    def left_by_user(self, site: str) -> bool:
        """Whether `--leave` names this site."""
        return any(re.search(pattern, site) for pattern in self.leave)


@dataclass(frozen=True)
class Pass:
    """Base of all passes; subclasses add fields and `apply`."""

    kind: ClassVar[str]

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Change `model` in place; needs `context.stream` where the pass uses data."""
        raise TypeError(f"{type(self).__name__} does not say what it does")

    def bind(self, context: Context) -> "BoundPass":
        """The runnable form, for onnx-ir's pass managers."""
        return BoundPass(self, context)


@dataclass(eq=False)
class BoundPass(ir.passes.InPlacePass):
    """A pass with its data; `outcome` holds what it did after the call."""

    bound: Pass
    context: Context
    outcome: Outcome = field(default_factory=lambda: Outcome(modified=False))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to `model` in place."""
        self.outcome = self.bound.apply(model, self.context)
        return ir.passes.PassResult(model, self.outcome.modified)


def site_name(node: ir.Node) -> str:
    """The name under which users meet a node: its own, or its first output's."""
    return node.name or node.outputs[0].name or node.op_type
