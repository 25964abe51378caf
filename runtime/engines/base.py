"""What an engine is to the runtime: it loads a model, and the loaded model runs feeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


class InPlace(NamedTuple):
    """A model whose weights lie in a folder without its file.

    Attributes:
        graph: the model file, without the weights.
        weights_folder: names of files in it are relative to this.
    """

    graph: bytes
    weights_folder: str


class Port(NamedTuple):
    """An input or output of a loaded model.

    Attributes:
        name: as in the model.
        dtype: the engine's name for it, such as `tensor(float)`.
        shape: a number for a fixed dimension, a name or None for a dynamic one.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class Kernel(NamedTuple):
    """A kind of kernel that ran.

    Attributes:
        op: the engine's name for it.
        reads: types of what it reads, as numpy calls them.
    """

    op: str
    reads: tuple[str, ...]


class Runner(Protocol):
    """A loaded model."""

    def __call__(self, feeds: Feeds, *, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; `outputs` names those wanted, None means all. Raises `EngineError`."""

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """The bare inference on these feeds, with nothing of ours in the time it takes."""


class Engine(Protocol):
    """A runtime that loads models."""

    name: str
    version: str

    def load(self, model: bytes | PathLike[str], threads: int = 1) -> Runner:
        """Load a model, serialized or a file, which may go once this is done; raises `EngineError` where refused."""
