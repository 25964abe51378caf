"""Scales and zero points of a TFLite file, read back from it and held one by one against those of the ONNX graph.

Integers are signed here: unsigned ones are moved to the middle with their zero points. A tensor of the file is known
by the name of the value that it stands for. An int32 bias has no grid of its own: its step is that of the products,
scale(input) · scale(weights).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.constants import UNSIGNED, Constants
from edgepress.compressor.export.tflite.schema import schema
from edgepress.compressor.report.tflite import GridDifference

_SUMMING = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
MOST_SAID = 100
"""Differences that are listed at most."""

Grid = tuple[tuple[float, ...], tuple[int, ...]]
"""Scales, and as many zero points."""


@dataclass(frozen=True)
class Compared:
    """What came of it.

    Attributes:
        count: scales with their zero points that were compared.
        own: those of the file that no value of the graph has.
        differing: those that are not the same.
    """

    count: int
    own: int
    differing: tuple[GridDifference, ...]


def compare_grids(model: ir.Model, content: bytes) -> Compared:
    """Hold the scales of a file against those of the graph that it was made from.

    Args:
        model: the graph.
        content: the file.
    """
    known = grids_of(model)
    anywhere = {grid for grids in known.values() for grid in grids}
    count = own = 0
    differing: list[GridDifference] = []
    for name, kind, found, sums in _file_grids(content):
        count += len(found[0])
        expected = (sums,) if sums is not None else known.get(name, ())
        if expected:
            fitting = [_spread(grid, len(found[0])) for grid in expected]
            if found not in fitting:
                differing += _differences(name, fitting[0], found)
        elif kind == "INT32" or found not in anywhere:
            own += len(found[0])
    return Compared(count, own, tuple(differing[:MOST_SAID]))


def grids_of(model: ir.Model) -> dict[str, tuple[Grid, ...]]:
    """The grids that each value's integers may lie on: what a pair says first, then those that came in."""
    constants = Constants()
    said: dict[ir.Value, tuple[Grid, ...]] = {}
    carried: dict[ir.Value, tuple[Grid, ...]] = {}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and source is not None:
            if (grid := _grid(node, constants)) is not None:
                for value in (source, node.outputs[0]):
                    said[value] = (*said.get(value, ()), grid)
            continue
        come = {
            grid: None
            for value in node.inputs
            if value is not None
            for grid in (*said.get(value, ()), *carried.get(value, ()))
            if len(grid[0]) == 1
        }
        carried |= dict.fromkeys(node.outputs, tuple(come))
    return {
        value.name: tuple(dict.fromkeys((*said.get(value, ()), *carried.get(value, ()))))
        for value in (*said, *carried)
        if value.name and (value in said or carried[value])
    }


def output_steps(model: ir.Model) -> dict[str, float]:
    """Outputs whose numbers all lie on one grid → its step; 1 for integers."""
    constants, steps = Constants(), {}
    for value in model.graph.outputs:
        if value.dtype is not None and value.dtype.numpy().kind in "iub":
            steps[value.name or ""] = 1.0
            continue
        node = value.producer()
        while node is not None and node.op_type in _MOVING and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if node is not None and node.op_type == "DequantizeLinear":
            grid = _grid(node, constants)
            if grid is not None and len(grid[0]) == 1:
                steps[value.name or ""] = grid[0][0]
    return steps


_MOVING = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Slice"}
)


def _grid(node: ir.Node, constants: Constants) -> Grid | None:
    """What a QuantizeLinear or DequantizeLinear says, or None where that is worked out while the model runs."""
    scale = constants.array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    kind = given.dtype if given is not None else None
    if kind is None:
        side = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
        # a constant worked out at load has no type in a stripped file; `Constants` takes it for signed as well
        unsaid = ir.DataType.INT8 if node.op_type == "DequantizeLinear" else ir.DataType.UINT8
        kind = (side.dtype if side is not None else None) or unsaid
    zero = np.zeros((), np.int64) if given is None else constants.array(given)
    if scale is None or zero is None:
        return None
    scales = scale.reshape(-1).astype(np.float32)
    zeros = np.broadcast_to(zero.reshape(-1).astype(np.int64), scales.shape) - UNSIGNED.get(kind, 0)
    return tuple(scales.tolist()), tuple(zeros.tolist())


def _file_grids(content: bytes) -> Iterator[tuple[str, str, Grid, Grid | None]]:
    """(name, type, grid, grid of the products where it is a bias) of each tensor that has a grid."""
    s = schema()
    model = s.ModelT.InitFromPackedBuf(content)
    kinds = {number: name for name, number in vars(s.TensorType).items() if isinstance(number, int)}
    codes = {number: name for name, number in vars(s.BuiltinOperator).items() if isinstance(number, int)}
    for graph in model.subgraphs:
        grids = [_read_grid(tensor, kinds) for tensor in graph.tensors]
        sums: dict[int, Grid] = {}
        for operator in graph.operators:
            if codes.get(model.operatorCodes[operator.opcodeIndex].builtinCode) in _SUMMING:
                sums |= _sums([int(at) for at in operator.inputs if at >= 0], graph.tensors, grids, kinds)
        for index, (tensor, grid) in enumerate(zip(graph.tensors, grids, strict=True)):
            if grid is not None:
                name = (tensor.name or b"").decode(errors="replace")
                yield name, kinds[tensor.type], grid, sums.get(index)


def _read_grid(tensor: Any, kinds: dict[int, str]) -> Grid | None:
    said = tensor.quantization
    if said is None or said.scale is None or not len(said.scale):
        return None
    scales = np.asarray(said.scale, np.float32)
    zeros = (
        np.zeros(len(scales), np.int64) if said.zeroPoint is None else np.asarray(said.zeroPoint, np.int64)
    )
    zeros = np.broadcast_to(zeros, scales.shape) - (128 if kinds[tensor.type] == "UINT8" else 0)
    return tuple(scales.tolist()), tuple(zeros.tolist())


def _sums(
    inputs: list[int], tensors: Any, grids: list[Grid | None], kinds: dict[int, str]
) -> dict[int, Grid]:
    """The bias of an operator → the grid of its products."""
    read = [(at, grid) for at in inputs if (grid := grids[at]) is not None]
    factors = [grid for at, grid in read if kinds[tensors[at].type] != "INT32"]
    if len(factors) != 2:
        return {}
    one, other = (np.array(grid[0], np.float32) for grid in factors)
    steps = (one * other).astype(np.float32)
    grid = tuple(steps.tolist()), (0,) * steps.size
    return {at: grid for at, _ in read if kinds[tensors[at].type] == "INT32"}


def _spread(grid: Grid, count: int) -> Grid:
    """A grid of a whole tensor as that of each of its channels."""
    return (grid[0] * count, grid[1] * count) if len(grid[0]) == 1 else grid


def _differences(name: str, expected: Grid, found: Grid) -> Iterator[GridDifference]:
    if len(expected[0]) != len(found[0]):
        expected = (tuple([float("nan")] * len(found[0])), expected[1][:1] * len(found[0]))
    for channel, pair in enumerate(zip(*expected, *found, strict=True)):
        if pair[:2] != pair[2:]:
            yield GridDifference(
                tensor=name,
                channel=channel if len(found[0]) > 1 else None,
                onnx_scale=pair[0],
                onnx_zero_point=pair[1],
                tflite_scale=pair[2],
                tflite_zero_point=pair[3],
            )
