"""Weights that lie in files beside the model: mapped into memory, where they need not stay once they were looked at."""

import mmap
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgepress.compressor.inline import aligned
from edgepress.compressor.protocols import Array

PAGE = mmap.PAGESIZE

SMALL = 1 << 10
"""Bytes of a tensor below which it is no matter where it lies."""


class Mapped(ir.Tensor[Array]):
    """A tensor that is a view of a file: read from disk when used, dropped when memory is short.

    Attributes:
        folder: of the model file.
        location: the file that it lies in, relative to that.
        offset: its first byte there.
    """

    def __init__(self, tensor: ir.ExternalTensor, folder: Path, mapping: mmap.mmap, owner: object) -> None:
        """View the part of a file that an external tensor names.

        Args:
            tensor: of at least 8 bits an element, and not empty.
            folder: of the model file.
            mapping: of the whole file.
            owner: what the file goes with, where it is a temporary one; it is kept as long as this.
        """
        kind, self.folder, self.offset = tensor.dtype, folder, tensor.offset or 0
        self.location = os.fspath(tensor.location)
        self._mapping, self._owner = mapping, owner
        flat = np.frombuffer(mapping, kind.numpy().newbyteorder("<"), tensor.size, self.offset)
        super().__init__(flat.reshape(tensor.shape.numpy()), dtype=kind, shape=tensor.shape, name=tensor.name)

    def release(self) -> None:
        """Take its pages out of this process, until they are read again."""
        start = self.offset // PAGE * PAGE
        if hasattr(self._mapping, "madvise"):  # not on Windows
            self._mapping.madvise(mmap.MADV_DONTNEED, start, self.offset + self.nbytes - start)


def release(value: ir.Value) -> None:
    """Let a constant's pages go where it is `Mapped`."""
    if isinstance(value.const_value, Mapped):
        value.const_value.release()


def named_by_file(model: ir.Model, folder: Path) -> ir.Model:
    """A copy whose mapped weights are written as names of their files, where these lie in a folder.

    Args:
        model: is not changed.
        folder: the names are relative to it.
    """
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, Mapped) and tensor.nbytes >= SMALL and tensor.folder == folder:
                value.const_value = ir.ExternalTensor(
                    tensor.location,
                    tensor.offset,
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape),
                    name=value.name or "",
                    base_dir=folder,
                )
    return copy


def move_beside(model: ir.Model, path: Path) -> None:
    """Write the weights of some size to a file, and have the model name them there.

    Args:
        model: changed in place.
        path: of the file, in the folder of the model's file.

    Raises:
        OSError: it cannot be written.
    """
    end = 0
    with path.open("wb") as file:
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALL:
                    continue
                start = aligned(end, tensor.nbytes)
                file.write(bytes(start - end))
                if hasattr(tensor, "tofile"):
                    tensor.tofile(file)  # without a copy in memory
                else:
                    file.write(tensor.tobytes())
                value.const_value = ir.ExternalTensor(
                    path.name,
                    start,
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=value.name or "",
                    base_dir=path.parent,
                )
                end = start + tensor.nbytes


def map_external(model: ir.Model, folder: Path, owner: object = None) -> None:
    """Make weights that lie in files `Mapped`.

    One mapping a file serves all its tensors, and any thread; the IR's own would open the file for each of them, and
    must not be first used by two threads at once.

    Args:
        model: changed in place.
        folder: of the model file.
        owner: what the folder goes with, where it is a temporary one.
    """
    maps: dict[Path, mmap.mmap] = {}

    def view(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        file = folder / tensor.location
        if not tensor.size or tensor.dtype.bitwidth < 8:  # nothing to map, or to be unpacked
            tensor.base_dir = folder
            return ir.Tensor(
                np.array(tensor.numpy()), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name
            )
        if file not in maps:
            with file.open("rb") as opened:
                maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return Mapped(tensor, folder, maps[file], owner)

    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = view(value.const_value)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        attribute = node.attributes.get("value")
        if attribute is not None and isinstance(attribute.value, ir.ExternalTensor):
            node.attributes["value"] = ir.AttrTensor("value", view(attribute.value))
