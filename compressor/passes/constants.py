"""Constants that a pass puts into a graph: equal ones once, those of a few bits side by side in words.

No runtime computes with 2 to 6 bits, and files have no type for most of these widths. So codes are packed, and
nodes that every runtime works out once, at load, take them apart:

    words → BitShift → Mod 2^bits → (Slice, where the last word is not full) → Reshape → Cast → Gather(levels)

Levels are integers, or the floats of a codebook; with a codebook for each part of a weight they lie one behind another,
and an Add moves the codes of each part to where its own begin. Codes of a byte need no more than Cast and Gather.
What is left at run time is the weight as the kernel wants it: no slower, and nothing newer than opset 11 needed.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgepress.compressor.numerics.grids import Array, Grid
from edgepress.compressor.numerics.packing import pack, packing, stored_bytes
from edgepress.compressor.sites import constant, taken, unique

UNPACKING_OPSET = 11
"""First opset with everything that takes words apart."""

BROADCAST_OPSET = 7
"""First opset whose Mul and Add broadcast without being told how; runtimes have no older ones."""


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

    @cached_property
    def first(self) -> ir.Node:
        """The node that was the first before anything was put in front of it."""
        return self.model.graph[0]

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
        levels = np.arange(grid.qmin, grid.qmax + 1).astype(dtype or grid.dtype)
        return self.looked_up(name, q - grid.qmin, grid.bits, levels, reader)

    def looked_up(
        self,
        name: str,
        codes: Array,
        bits: int,
        levels: Array,
        reader: ir.Node,
        starts: Array | None = None,
    ) -> ir.Value:
        """Levels by codes, which lie in words where that makes the file smaller, else in bytes.

        Args:
            name: for the new values.
            codes: 0 … 2^bits − 1, of any shape.
            bits: 1 to 8.
            levels: what the codes stand for [count]; equal ones are stored once.
            reader: the nodes come before this one.
            starts: where in `levels` the codes of some part begin, so shaped that it broadcasts over the codes.

        Returns:
            A value of the shape of the codes and the type of the levels.
        """
        packs = stored_bytes(codes.size, bits) < codes.size
        found = self.add(name, pack(codes, bits) if packs else codes.astype(np.uint8))
        numbers = [a.tobytes() for a in (levels, starts) if a is not None]
        key = (found, bits, codes.shape, levels.dtype, *numbers)
        if key in self.unpacked:
            return self.unpacked[key]
        if packs:
            found = self._taken_apart(found, codes, bits, reader)
        found = self._node(reader, "Cast", PASSING, [found], INDICES)
        if starts is not None:
            each = self.add("starts", starts.astype(np.int32))
            found = self._node(reader, "Add", PASSING, [found, each])
        table = self.add("levels", levels)
        found = self._node(reader, "Gather", PASSING, [table, found])
        found.type, found.shape = table.type, ir.Shape(codes.shape)
        self.unpacked[key] = found
        return found

    def _taken_apart(self, words: ir.Value, codes: Array, bits: int, reader: ir.Node) -> ir.Value:
        """Codes in their shape, of the type of the words that they lie in."""
        how = packing(bits)
        modulus = np.array(1 << bits, how.dtype)
        found = self._node(reader, "BitShift", PASSING, [words, self.add("shifts", how.shifts)], RIGHT)
        found = self._node(reader, "Mod", PASSING, [found, self.add("modulus", modulus)])
        if codes.size % how.per_word:
            found = self._node(reader, "Reshape", PASSING, [found, self.add("flat", np.array([-1]))])
            ends = [self.add("start", np.array([0])), self.add("end", np.array([codes.size]))]
            found = self._node(reader, "Slice", PASSING, [found, *ends])
        return self._node(reader, "Reshape", PASSING, [found, self.add("shape", np.array(codes.shape))])

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

PASSING = "q"
"""Name of what only passes through: names are in the file twice."""

UNPACKING = frozenset({"BitShift", "Mod", "Slice", "Reshape", "Cast", "Add", "Gather"})


def packed(node: ir.Node) -> tuple[int, int, set[ir.Value]] | None:
    """How many weights a Gather looks up for constant codes, of what bits, and all constants in it; else None."""
    if node.op_type != "Gather" or node.inputs[0] is None:
        return None
    levels, parts = constant(node.inputs[0]), 1
    cast = _maker(node.inputs[1])
    if cast is not None and cast.op_type == "Add":
        starts = constant(cast.inputs[1])
        parts, cast = 0 if starts is None else starts.size, _maker(cast.inputs[0])
    if levels is None or not parts or cast is None or cast.op_type != "Cast" or cast.inputs[0] is None:
        return None
    codes, shaped = constant(cast.inputs[0]), _maker(cast.inputs[0])
    if shaped is not None and shaped.op_type == "Reshape":
        shape = constant(shaped.inputs[1])
        count = None if shape is None else int(np.prod(shape))
    else:
        count = None if codes is None or codes.dtype != np.uint8 else codes.size
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
    return None if count is None else (count, max(levels.size // parts - 1, 1).bit_length(), constants)


def _maker(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()
