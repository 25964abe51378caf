"""What the handlers of operators work with: values of the ONNX graph as tensors of the file.

A value may exist in several forms at once: as reals or as 8-bit integers, its channels second (as ONNX has them)
or last (as TFLite's kernels want them). A handler reads the form that its kernel takes, and the form is made where
it is not there yet, once. So a Q/DQ pair costs nothing between two integer kernels, a float kernel amid integers
becomes an island (DEQUANTIZE, kernel, QUANTIZE), and a TRANSPOSE stands only where the maths needs one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.builder import Builder
from edgepress.compressor.export.tflite.constants import Constants
from edgepress.compressor.export.tflite.layout import channels_first, channels_last, to_first
from edgepress.compressor.export.tflite.maths import Maths
from edgepress.compressor.export.tflite.quantization import common_grid, covers
from edgepress.compressor.export.tflite.schema import DTYPES
from edgepress.compressor.export.tflite.tensors import SHORTEST, Array, Codes, Factors, Grid, Shape, Tensor
from edgepress.compressor.passes.integer_forms import clip_bounds
from edgepress.compressor.sites import site_name

FUSED = {(0.0, float("inf")): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
"""Bounds that kernels apply to their own results."""


class UnsupportedError(Exception):
    """Why a node cannot be expressed; collected, so that a user sees all of them at once.

    Args:
        why: `dtype`, `rank`, `dynamic shape`, `empty` (no elements), `random` or `form`, a colon, and what exactly.
        hint: what to do about it.
    """

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.hint = hint


class FollowsError(UnsupportedError):
    """A value is missing because of what cannot be expressed before it, which is told by itself."""


NARROW_FLOATS = frozenset({
    ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ, ir.DataType.FLOAT4E2M1,
})  # fmt: skip
"""Floats whose numbers are held in float32; see `ops.narrow`."""
CONTAINERS = {
    **dict.fromkeys(NARROW_FLOATS, ir.DataType.FLOAT),
    ir.DataType.INT4: ir.DataType.INT8,
    ir.DataType.INT2: ir.DataType.INT8,
    ir.DataType.UINT4: ir.DataType.UINT8,
    ir.DataType.UINT2: ir.DataType.UINT8,
}
"""What holds the same numbers, of types whose values kernels do not take."""


@dataclass
class Place:
    """Where a value stands in the file.

    Attributes:
        last: whether its channels came last when it was made.
        grid: of its integers, where all its numbers lie on one.
        tensors: (as integers, channels last) → tensor.
    """

    last: bool
    grid: Grid | None = None
    tensors: dict[tuple[bool, bool], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """What the result of a kernel stands for, once what follows is taken in.

    Attributes:
        value: the node's output, or that of the activation that the kernel applies itself.
        activation: the schema's name of it.
        grid: where every reader puts the result on the same grid.
    """

    value: ir.Value
    activation: str = "NONE"
    grid: Grid | None = None


class Emitter:
    """Reads values of the graph in the form that a kernel wants and writes results.

    Attributes:
        builder: the file.
        maths: appends arithmetic.
        constants: what is known before the model runs.
        hybrid: whether products of float operands and int8 weights may stand in the file.
        done: nodes that an earlier handler took in.
    """

    def __init__(self, builder: Builder, *, hybrid: bool = True) -> None:
        self.builder, self.maths, self.hybrid = builder, Maths(builder), hybrid
        self.done: set[ir.Node] = set()
        self._places: dict[ir.Value, Place] = {}
        self.constants = Constants()

    # -- facts ---------------------------------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> Shape:
        """A value's shape in ONNX's order; the batch is the builder's stand-in.

        Raises:
            UnsupportedError: it is not known before the model runs.
        """
        sizes = value.shape if value is not None else None
        if value is None or sizes is None or not all(isinstance(size, int) for size in sizes):
            name = value.name if value is not None else ""
            raise UnsupportedError(
                f"dynamic shape: the shape of {name!r} is not known before the model runs",
                "Fix the inputs' sizes with --shape, or export the model with fixed sizes.",
            )
        return tuple(int(size) for size in sizes)  # type: ignore[arg-type]

    def dtype(self, value: ir.Value) -> str:
        """The schema's name of a value's type, or of its container; `UnsupportedError` where there is neither."""
        kind = CONTAINERS.get(value.dtype, value.dtype) if value.dtype is not None else None
        name = DTYPES.get(kind.numpy().name) if kind is not None and kind not in _UNKNOWN else None
        if name is None:
            raise UnsupportedError(
                f"dtype: {value.name!r} is of type {kind}, which TFLite's kernels do not take"
            )
        return name

    def constant(self, value: ir.Value | None) -> Array | None:
        """The numbers of a value that is known now (dequantized where it was quantized), or None."""
        return self.constants.array(value)

    def codes(self, value: ir.Value | None) -> Codes | None:
        """A constant's integers and their grid, where a DequantizeLinear makes it, or None."""
        return self.constants.codes(value)

    def last(self, *values: ir.Value | None) -> bool:
        """Whether any of these was made with its channels last."""
        return any(
            value in self._places and self._places[value].last for value in values if value is not None
        )

    def grid(self, value: ir.Value | None) -> Grid | None:
        """The grid that all numbers of a value lie on, where there is one."""
        place = self._places.get(value) if value is not None else None
        return place.grid if place else None

    # -- reading -------------------------------------------------------------------------------------------

    def read(self, value: ir.Value | None, *, integer: bool = False, last: bool = False) -> Tensor:
        """A value as a tensor.

        Args:
            value: of the graph.
            integer: as 8-bit integers, on `grid(value)`; else as reals (or what else its own type is).
            last: channels last; means nothing below rank 3.
        """
        if value is None:
            raise UnsupportedError("form: an operand is missing")
        if value not in self._places:
            return self._read_constant(value, integer, last)
        place = self._places[value]
        last = last and len(self.shape(value)) > 2
        if (integer, last) in place.tensors:
            return place.tensors[integer, last]
        if (integer, not last) in place.tensors:
            turn = channels_last if last else channels_first
            made = turn(self.builder, place.tensors[integer, not last])
        else:
            source = self.read(value, integer=not integer, last=last)
            made = self.quantized(source, place.grid) if integer else self.dequantized(source)
            self.builder.call(made, value.name or "" if integer else "")
        place.tensors[integer, last] = made
        return made

    def _read_constant(self, value: ir.Value, integer: bool, last: bool) -> Tensor:
        codes, array = self.codes(value), self.constant(value)
        if array is None:
            raise FollowsError(f"form: {value.name!r} comes from a node that cannot be expressed")
        if integer and codes is not None:
            grid = Grid.of(float(codes.scale.reshape(-1)[0]), int(codes.zero_point.reshape(-1)[0]))
            tensor = self.builder.constant(codes.integers.astype(np.int8), grid, name=value.name or "")
        else:
            tensor = self.builder.constant(_known(value, array), name=value.name or "")
        return channels_last(self.builder, tensor) if last and array.ndim > 2 else tensor

    def operand(
        self, value: ir.Value | None, rank: int, *, integer: bool = False, last: bool = False
    ) -> Tensor:
        """An operand of an elementwise kernel: of lower rank, it gets dimensions of 1 in front, as numpy has it.

        Args:
            value: of the graph.
            rank: of the result.
            integer: as 8-bit integers.
            last: channels (of the result) last.
        """
        own = self.shape(value)
        if len(own) == rank or not last or rank < 3:
            return self.read(value, integer=integer, last=last and len(own) == rank)
        tensor = self.read(value, integer=integer)
        if not own or own == (1,):
            return tensor
        return channels_last(self.builder, self.builder.reshaped(tensor, (1,) * (rank - len(own)) + own))

    def stored(self, value: ir.Value, arrange: Callable[[Array], Array], axis: int) -> Tensor:
        """A constant weight for a float kernel, in the file as narrow as the graph has it.

        Args:
            value: constant.
            arrange: from ONNX's order of dimensions to the kernel's.
            axis: of the output channels, in the kernel's order.

        Returns:
            float32: a constant, or the result of a DEQUANTIZE of one in int8 or float16.
        """
        array, factors = self.constant(value), self.constants.factors(value)
        if array is None:
            raise UnsupportedError(f"form: the weight {value.name!r} is not a constant")
        if factors is not None:
            narrow = self._narrow(factors.moved(lambda part: np.ascontiguousarray(arrange(part))), axis)
            if narrow is not None:
                return narrow
        arranged = np.ascontiguousarray(arrange(array))
        if self.constants.half(value):
            return self.dequantized(self.builder.constant(arranged.astype(np.float16), name=value.name or ""))
        return self.builder.constant(arranged.astype(np.float32), name=value.name or "")

    def _narrow(self, factors: Factors, axis: int) -> Tensor | None:
        """DEQUANTIZE of int8, by output where scales are so, else by rows that share one; None where that costs."""
        integers = factors.integers
        codes = factors.codes()
        if codes is not None and codes.scale.size in {1, integers.shape[axis]} and codes.axis in {0, axis}:
            scale, zero = codes.scale.reshape(-1), codes.zero_point.reshape(-1)
            grid = Grid(tuple(scale.tolist()), tuple(int(each) for each in zero), codes.axis)
            return self.dequantized(self.builder.constant(integers, grid))
        width = factors.run()
        if width < SHORTEST:
            return None
        rows = integers.reshape(-1, width)
        scale, zero = (part.reshape(-1, width)[:, 0] for part in (factors.scale, factors.zero_point))
        grid = Grid(tuple(scale.tolist()), tuple(int(each) for each in zero))
        return self.builder.reshaped(self.dequantized(self.builder.constant(rows, grid)), integers.shape)

    # -- deciding ------------------------------------------------------------------------------------------

    def ending(self, value: ir.Value, *, fuse: bool = False) -> Ending:
        """Take in what directly follows a kernel.

        A Relu or Clip goes into the kernel where kernels have it (`FUSED`), or where the grid behind it ends at
        its bounds anyway: rounding saturates there.

        Args:
            value: the node's output.
            fuse: whether the kernel can apply an activation.
        """
        reader = only_reader(value)
        bounds = clip_bounds(reader) if fuse and reader is not None else None
        if reader is not None and bounds is not None and reader.inputs[0] is value:
            after = common_grid(reader.outputs[0], self.constants)
            known = FUSED.get((float(bounds[0]), float(bounds[1])))
            implied = after is not None and covers(bounds, after)
            if known or implied:
                self.done.add(reader)
                return Ending(reader.outputs[0], known or "NONE", after)
        return Ending(value, "NONE", common_grid(value, self.constants))

    def integral(self, ending: Ending, *values: ir.Value | None) -> bool:
        """Whether an integer kernel can do it: operands on grids, and a grid for the result."""
        return ending.grid is not None and self.on_grids(*values)

    def on_grids(self, *values: ir.Value | None) -> bool:
        """Whether all operands have 8-bit integers: what was quantized, and constants with one scale."""
        for value in values:
            codes = self.codes(value)
            if codes is not None:
                if codes.scale.size > 1 or codes.bits > 8:
                    return False
            elif self.grid(value) is None:
                return False
        return True

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, value: ir.Value, tensor: Tensor, *, last: bool = False) -> None:
        """Say which tensor a value is.

        Args:
            value: an output of a node, or a graph input.
            tensor: as integers where it has a grid.
            last: whether its channels come last.
        """
        place = Place(last and len(tensor.shape) > 2, tensor.grid)
        place.tensors[tensor.grid is not None, place.last] = tensor
        self.builder.call(tensor, value.name or "")
        self._places[value] = place
        if value.shape is None:  # inference did not tell, the handler does
            order = to_first(len(tensor.shape)) if place.last else range(len(tensor.shape))
            value.shape = ir.Shape([tensor.shape[axis] for axis in order])

    def alias(self, value: ir.Value, source: ir.Value) -> None:
        """Let a value be another one, in all its forms."""
        value.shape = value.shape if value.shape is not None else source.shape
        if source in self._places:
            self._places[value] = self._places[source]
        else:
            self.constants.alias(value, source)

    def quantized(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        """QUANTIZE: reals or integers of another grid onto a grid."""
        if tensor.grid == grid and tensor.dtype == "INT8":
            return tensor
        return self.builder.op("QUANTIZE", [tensor], tensor.shape, "INT8", grid)

    def dequantized(self, tensor: Tensor) -> Tensor:
        """DEQUANTIZE: integers or float16 to float32."""
        return self.builder.op("DEQUANTIZE", [tensor], tensor.shape, "FLOAT32")


_UNKNOWN = frozenset(
    {
        ir.DataType.FLOAT8E8M0,
        *(kind for kind in ir.DataType if kind.name.startswith("FLOAT6")),
        ir.DataType.STRING,
        ir.DataType.COMPLEX64,
        ir.DataType.COMPLEX128,
        ir.DataType.UNDEFINED,
    }
)


def _known(value: ir.Value, array: Array) -> Array:
    if array.dtype.name not in DTYPES:
        raise UnsupportedError(f"dtype: the constant {value.name!r} is of type {array.dtype}")
    return array


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one operator of ONNX that reads a value, which nothing else needs; else None."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.domain not in {"", "ai.onnx"}:
        return None
    return uses[0].node


def operand_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node, or None where it is left out or an empty list."""
    value = node.inputs[index] if index < len(node.inputs) else None
    empty = index > 0 and value is not None and value.shape is not None and tuple(value.shape) == (0,)
    return None if empty else value


def where(node: ir.Node) -> str:
    """How a message names a node."""
    return f"{site_name(node)} ({node.op_type})"


def axes_of(emit: Emitter, node: ir.Node, index: int, rank: int) -> list[int] | None:
    """Axes from the attribute or the constant input `index`, none negative; None where they are not given.

    Raises:
        UnsupportedError: they are worked out while the model runs.
    """
    value = operand_of(node, index)
    given: Sequence[int] | None
    if value is not None:
        array = emit.constant(value)
        if array is None:
            raise UnsupportedError("dynamic shape: the axes are worked out while the model runs")
        given = [int(axis) for axis in array.reshape(-1)]
    else:
        found = node.attributes.get("axes")
        given = None if found is None else [int(axis) for axis in found.as_ints()]
    return None if given is None else [axis % rank if rank else 0 for axis in given]
