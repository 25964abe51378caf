"""What a pass may look at, and how it says what it left alone; shared with the modules below the passes."""

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import onnx_ir as ir

from edgepress.compressor.protocols import Array, Target


def exactly(site: str) -> str:
    """The regular expression of one site's name alone, as `sites` and `--leave` take it."""
    return f"^{re.escape(site)}$"


@dataclass(frozen=True)
class Skipped:
    """A site that was left alone.

    Attributes:
        site: the site's name (its node's, or its output value's where the node has none).
        reason: why, in words for the report.
    """

    site: str
    reason: str


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
        left_behind: what one pass worked out on the way and the next of the same recipe may want.
    """

    stream: Stream | None = None
    target: Target | None = None
    seed: int = 0
    leave: tuple[str, ...] = ()
    rows: int = 0
    memo: dict[Hashable, object] = field(default_factory=dict, compare=False, repr=False)
    left_behind: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    def apart(self) -> "Context":
        """The same for another recipe: what was left behind hangs, in the last bits, on what was done before it.

        What is shipped must not hang on what was tried before, nor what is tried side by side on which came first.
        """
        return replace(self, left_behind={})

    def rng(self) -> np.random.Generator:
        """A fresh generator: equal seeds give equal streams."""
        return np.random.default_rng(self.seed)

    def left_by_user(self, site: str) -> bool:
        """Whether `--leave` names this site."""
        return any(re.search(pattern, site) for pattern in self.leave)
