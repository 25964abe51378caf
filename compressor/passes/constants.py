"""Constants that a pass puts into a graph: equal ones once, those of a few bits side by side in words.

No runtime computes with 2 to 6 bits, and files have no type for most of these widths. So codes are packed, and
nodes that every runtime works out once, at load, take them apart:

    words → BitShift → Mod 2^bits → (Slice, where the last word is not full) → Reshape → Cast → Gather(levels)

What is left at run time is the weight as the kernel wants it: no slower, and nothing newer than opset 11 needed.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgepress.compressor.numerics.grids import Array, Grid
from edgepress.compressor.numerics.packing import pack, packing, stored_bytes
from edgepress.compressor.sites import constant, taken, unique

UNPACKING_OPSET = 11
"""First opset with everything that takes words apart."""


@dataclass
class Constants:
    """Adds initializers to the main graph of a model.

    Attributes:
        model: changed in place.
        names: names in use.
        pool: initializers by content.
        unpacked: what takes words apart, by words, bits, shape and type.
    """

    model: ir.Model
    names: set[str] = field(default_factory=set)
    pool: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)
    unpacked: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = self.names or taken(self.model)

    def fresh(self, name: str) -> str:
        """A free name derived from `name`, now in use."""
        return unique(name, self.names)

    def value(self, name: str) -> ir.Value:
        """A new value for a node to give."""
        return ir.Value(name=self.fresh(name))

    def add(self, name: str, array: Array) -> ir.Value:
        """An initializer, shared with all others of equal type, shape and content."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (str(array.dtype), array.shape, hashlib.blake2b(array.tobytes()).digest())
        if key not in self.pool:
            free = self.fresh(name)
            tensor = ir.Tensor(array, name=free)
            value = ir.Value(
                name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.model.graph.register_initializer(value)
            self.pool[key] = value
        return self.pool[key]

    def integers(
        self, name: str, q: Array, grid: Grid, reader: ir.Node, dtype: npt.DTypeLike | None = None
    ) -> ir.Value:
        """Integers of a grid as a value, in as few bytes as the grid needs.

        Args:
            name: for the new values.
            q: integers within the grid, of its dtype.
            grid: signed, at most 8 bits.
            reader: the nodes come before this one.
            dtype: of the value; the grid's where None.
        """
        if stored_bytes(q.size, grid.bits) >= q.size:
            stored = self.add(name, q)
            if dtype is None or np.dtype(dtype) == q.dtype:
                return stored
            kind = ir.DataType.from_numpy(np.dtype(dtype))
            return self._node(reader, "Cast", name, [stored], ir.AttrInt64("to", int(kind)))
        how = packing(grid.bits)
        found = self.add(name, pack(q - grid.qmin, grid.bits))
        key = (found, grid.bits, q.shape, np.dtype(dtype or grid.dtype))
        if key in self.unpacked:
            return self.unpacked[key]
        name = "q"  # what only passes through: names are in the file twice
        modulus = np.array(1 << grid.bits, how.dtype)
        found = self._node(reader, "BitShift", name, [found, self.add("shifts", how.shifts)], RIGHT)
        found = self._node(reader, "Mod", name, [found, self.add("modulus", modulus)])
        if q.size % how.per_word:
            found = self._node(reader, "Reshape", name, [found, self.add("flat", np.array([-1]))])
            ends = [self.add("start", np.array([0])), self.add("end", np.array([q.size]))]
            found = self._node(reader, "Slice", name, [found, *ends])
        found = self._node(reader, "Reshape", name, [found, self.add("shape", np.array(q.shape))])
        found = self._node(reader, "Cast", name, [found], INDICES)
        levels = self.add("levels", np.arange(grid.qmin, grid.qmax + 1).astype(dtype or grid.dtype))
        found = self._node(reader, "Gather", name, [levels, found])
        found.type, found.shape = levels.type, ir.Shape(q.shape)
        self.unpacked[key] = found
        return found

    def _node(
        self, reader: ir.Node, kind: str, name: str, inputs: list[ir.Value], *attributes: ir.Attr
    ) -> ir.Value:
        """A node before `reader`, and what it gives."""
        node = ir.Node("", kind, inputs, attributes, outputs=[self.value(name)])
        if not isinstance(reader.graph, ir.Graph):
            raise ValueError("constants are added to the main graph alone")
        reader.graph.insert_before(reader, node)
        return node.outputs[0]


RIGHT = ir.AttrString("direction", "RIGHT")
INDICES = ir.AttrInt64("to", int(ir.DataType.INT32))

UNPACKING = frozenset({"BitShift", "Mod", "Slice", "Reshape", "Cast", "Gather"})


def packed(node: ir.Node) -> tuple[int, int, set[ir.Value]] | None:
    """What a Gather takes words apart to, and from: how many weights, of what bits, all constants; else None."""
    indices = node.inputs[1].producer() if node.op_type == "Gather" and node.inputs[1] is not None else None
    shaped = indices.inputs[0].producer() if indices is not None and indices.inputs[0] is not None else None
    shape = constant(shaped.inputs[1]) if shaped is not None and shaped.op_type == "Reshape" else None
    if shape is None:
        return None
    constants: set[ir.Value] = set()
    stack = [value for value in node.inputs if value is not None]
    while stack:
        value = stack.pop()
        maker = value.producer()
        if maker is None and constant(value) is not None:
            constants.add(value)
        elif maker is not None and maker.op_type in UNPACKING:
            stack += [each for each in maker.inputs if each is not None]
        else:
            return None
    levels = node.inputs[0].const_value if node.inputs[0] is not None else None
    return int(np.prod(shape)), max(levels.size - 1, 0).bit_length() if levels is not None else 0, constants
