"""What QuantizeLinear and DequantizeLinear say of values.

Unsigned 8-bit integers with zero point z are the signed ones with z − 128: the same levels, the same rounding.
"""

import onnx_ir as ir

from edgepress.compressor.export.tflite.constants import Constants
from edgepress.compressor.export.tflite.tensors import Grid

LOW, HIGH = -128, 127


def grid_of(node: ir.Node, constants: Constants) -> Grid | None:
    """The signed 8-bit grid of a QuantizeLinear or DequantizeLinear of a whole tensor, or None."""
    scale = constants.array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if scale is None or scale.size != 1 or scale.dtype.name != "float32":
        return None
    if given is None:
        if node.attributes.get_int("output_dtype", 0) not in {0, ir.DataType.UINT8, ir.DataType.INT8}:
            return None
        unsigned, zero = node.attributes.get_int("output_dtype", 2) in {0, 2}, 0
        if node.op_type == "DequantizeLinear":
            kind = node.inputs[0].dtype if node.inputs[0] is not None else None
            if kind not in {ir.DataType.UINT8, ir.DataType.INT8}:
                return None
            unsigned = kind == ir.DataType.UINT8
    else:
        array = constants.array(given)
        if array is None or given.dtype not in {ir.DataType.UINT8, ir.DataType.INT8}:
            return None
        unsigned, zero = given.dtype == ir.DataType.UINT8, int(array.reshape(-1)[0])
    return Grid.of(float(scale.reshape(-1)[0]), zero - 128 if unsigned else zero)


def common_grid(value: ir.Value, constants: Constants) -> Grid | None:
    """The grid onto which every reader of a value puts it; None where they differ, or one reads it as it is."""
    return _grid_of_readers(value, "QuantizeLinear", constants)


def held_grid(value: ir.Value, constants: Constants) -> Grid | None:
    """The grid of an input in 8-bit integers, where every reader dequantizes it alike; else None."""
    return _grid_of_readers(value, "DequantizeLinear", constants)


def _grid_of_readers(value: ir.Value, kind: str, constants: Constants) -> Grid | None:
    if value.is_graph_output():
        return None
    uses = list(value.uses())
    if any(use.node.op_type != kind or use.idx != 0 for use in uses):
        return None
    grids = {grid_of(use.node, constants) for use in uses}
    return grids.pop() if len(grids) == 1 else None


def covers(bounds: tuple[float, float], grid: Grid) -> bool:
    """Whether every level of a grid lies within bounds, so that clipping to them before rounding changes nothing.

    A level beyond by less than half a step is rounded to from inside as well.
    """
    low, high = ((edge - grid.zero_point[0]) * grid.scale[0] for edge in (LOW, HIGH))
    slack = 1e-6 * grid.scale[0]
    return bounds[0] <= low + slack and bounds[1] >= high - slack


def ends(grid: Grid) -> tuple[float, float]:
    """The lowest and the highest number of a grid."""
    low, high = ((edge - grid.zero_point[0]) * grid.scale[0] for edge in (LOW, HIGH))
    return low, high
