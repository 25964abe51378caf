"""The border of a TFLite file: its inputs and outputs, and how they differ from those of the ONNX model behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgepress.runtime.engines.base import Array, Port
from edgepress.runtime.engines.flatfile import note_in
from edgepress.runtime.record import EngineError

_METADATA = "edgepress"


class Border:
    """The inputs or the outputs of a file, and how they differ from those of the ONNX model.

    Attributes:
        ports: name → the interpreter's description.
        described: as ports.
    """

    def __init__(self, ports: Mapping[str, Any], said: Mapping[str, Any], kind: str) -> None:
        self.ports = ports
        turned, reals = (said.get(what, {}).get(kind) for what in ("channels_last", "quantized"))
        self._turned = turned if isinstance(turned, dict) else {}
        self._reals = frozenset(map(str, reals)) if isinstance(reals, list) else frozenset()
        self.described = tuple(self._described(name, port) for name, port in ports.items())

    def taken(self, name: str, array: Array) -> Array:
        """A feed as the file takes it."""
        port = self.ports[name]
        if name in self._reals and array.dtype.kind == "f":
            scale, zero = port["quantization"]
            limits = np.iinfo(port["dtype"])
            wide = np.rint(array.astype(np.float32) / np.float32(scale)) + zero
            array = np.clip(wide, limits.min, limits.max).astype(port["dtype"])
        return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if self._turns(name, array) else array

    def given_back(self, name: str, array: Array) -> Array:
        """An output as the caller knows it."""
        if name in self._reals:
            scale, zero = self.ports[name]["quantization"]
            array = (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        return np.ascontiguousarray(np.moveaxis(array, -1, 1)) if self._turns(name, array) else array

    def check(self, name: str, array: Array, failing: str) -> None:
        """Refuse what does not fit; `array` is in the file's order.

        Raises:
            EngineError: with what is wanted.
        """
        port = self.ports[name]
        wanted = _sizes(port)
        if array.dtype != port["dtype"]:
            raise EngineError(f"{failing}: {name!r} is {array.dtype}, wanted {np.dtype(port['dtype'])}")
        fits = len(wanted) == array.ndim and all(
            size is None or size == given for size, given in zip(wanted, array.shape)
        )
        if not fits:
            said = ["?" if size is None else size for size in wanted]
            raise EngineError(f"{failing}: {name!r} has shape {list(array.shape)}, wanted {said}")

    def _turns(self, name: str, array: Array) -> bool:
        return bool(self._turned.get(name)) and array.ndim > 2

    def _described(self, name: str, port: Mapping[str, Any]) -> Port:
        sizes = list(_sizes(port))
        if self._turned.get(name):
            sizes.insert(1, sizes.pop())
        kind = "float32" if name in self._reals else np.dtype(port["dtype"]).name
        return Port(name, kind, tuple(sizes))


def said_by(content: bytes) -> dict[str, Any]:
    """What the writer of the file noted of its border; nothing where another tool wrote it."""
    try:
        said = json.loads(note_in(content, _METADATA) or b"{}")
    except ValueError:
        return {}
    kinds = {"channels_last": dict, "quantized": dict}
    return {
        key: said[key]
        for key, kind in kinds.items()
        if isinstance(said, dict) and isinstance(said.get(key), kind)
    }


def _sizes(port: Mapping[str, Any]) -> tuple[int | None, ...]:
    free = [int(size) for size in port.get("shape_signature", port["shape"])]
    fixed = [int(size) for size in port["shape"]]
    return tuple(None if len(free) == len(fixed) and free[at] < 0 else size for at, size in enumerate(fixed))
