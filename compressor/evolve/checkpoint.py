"""The state of a training as one npz file: plain arrays and JSON, nothing that runs when it is read.

Written under another name and renamed, so that a kill at any moment leaves the one before. Random numbers go on where
they were: a training that was interrupted ends with the same bytes.
"""

import json
import os
import tokenize
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepress.compressor.errors import OutputError, UsageError
from edgepress.compressor.evolve.layers import DenseLayer, Layer, SparseLayer
from edgepress.compressor.evolve.topology import Topology

FORMAT = 1
_FRESH = "Train from the start: leave out --resume."
Arrays = dict[str, npt.NDArray[Any]]


def save(path: Path, layers: Sequence[Layer], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: of the file.
        layers: of the net.
        facts: what else there is to know, as JSON.

    Raises:
        OutputError: it cannot be written.
    """
    arrays: Arrays = {"facts": np.frombuffer(json.dumps({"format": FORMAT, **facts}).encode(), np.uint8)}
    for at, layer in enumerate(layers):
        for name in ("weights", "velocity", "bias", "bias_velocity"):
            arrays[f"{name}{at}"] = getattr(layer, name)
        if isinstance(layer, SparseLayer):
            arrays[f"starts{at}"], arrays[f"targets{at}"] = layer.topology.starts, layer.topology.targets
    fresh = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # no name is `allow_pickle`
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    except OSError as error:
        raise OutputError(
            f"Cannot write the checkpoint {path}: {error.strerror}.", "Choose another --out."
        ) from error
    finally:
        fresh.unlink(missing_ok=True)


def facts_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    return _read(path)[0]


def restore(path: Path, layers: Sequence[Layer]) -> None:
    """Put a checkpoint's state into layers of the same shapes.

    Args:
        path: of the file.
        layers: of the net as it began; change.

    Raises:
        UsageError: it is damaged, or of another net.
    """
    _, arrays = _read(path)
    for at, layer in enumerate(layers):
        try:
            _restore(layer, arrays, at)
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"The checkpoint {path} does not fit layer {at + 1} of the net: {error}.", _FRESH
            ) from error


def _restore(layer: Layer, arrays: Arrays, at: int) -> None:
    inputs, outputs = layer.shape
    weights: tuple[int, ...] = (inputs, outputs)
    if isinstance(layer, SparseLayer):
        starts, targets = _typed(arrays, f"starts{at}", np.int32), _typed(arrays, f"targets{at}", np.int32)
        layer.topology = _checked(inputs, outputs, starts, targets)
        weights = (len(targets),)
    shapes = {"weights": weights, "velocity": weights, "bias": (outputs,), "bias_velocity": (outputs,)}
    for name, shape in shapes.items():
        array = _typed(arrays, f"{name}{at}", np.float32)
        if array.shape != shape:
            raise ValueError(f"{name} have shape {array.shape}, not {shape}")
        setattr(layer, name, array)
    if isinstance(layer, DenseLayer):
        layer.gradient = np.empty(weights, np.float32)


def _checked(
    inputs: int, outputs: int, starts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]
) -> Topology:
    """Kernels trust connections blindly, so that a file may not make them read beyond their arrays."""
    whole = (
        starts.shape == (inputs + 1,) and targets.ndim == 1 and starts[0] == 0 and starts[-1] == len(targets)
    )
    if whole and (np.diff(starts) >= 0).all() and ((targets >= 0) & (targets < outputs)).all():
        topology = Topology(inputs, outputs, starts, targets)
        if (np.diff(topology.keys) > 0).all():
            return topology
    raise ValueError("its connections are none of this layer")


def _typed(arrays: Arrays, name: str, dtype: type[Any]) -> npt.NDArray[Any]:
    array = arrays[name]
    if array.dtype != dtype:
        raise ValueError(f"{name} is of type {array.dtype}")
    return array


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    if not path.exists():
        raise UsageError(f"There is no checkpoint {path} to resume.", _FRESH)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(arrays.pop("facts").tobytes())
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RecursionError,
        zipfile.BadZipFile,
        tokenize.TokenError,
        MemoryError,
    ) as error:
        why = str(error) or type(error).__name__
        raise UsageError(f"The checkpoint {path} is damaged: {why}.", _FRESH) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UsageError(f"The checkpoint {path} is of another version.", _FRESH)
    return facts, arrays
