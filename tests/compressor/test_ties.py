"""Every one of the 256 × 256 sums, in both runtimes."""

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from tflite import by_onnxruntime, by_tflite

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.numerics.grids import Affine, integer_grid
from edgepress.compressor.numerics.ties import by_multipliers, untied

GRID = integer_grid(8, signed=False)
A, B = (index.astype(np.int64) for index in np.indices((256, 256)))
grids = st.builds(
    Affine, st.floats(0.05, 2.0).map(lambda scale: float(np.float32(scale))), st.integers(0, 255)
)


def _exact(a: Affine, b: Affine, result: Affine) -> np.ndarray:
    wide = ((A - a.zero_point) * a.scale + (B - b.zero_point) * b.scale) / result.scale
    return np.clip(np.rint(wide) + result.zero_point, 0, 255)


def _sum_model(a: Affine, b: Affine, result: Affine) -> ir.Model:
    nodes, held = [], []
    for name, source, target, grid in (("a", "a", "ad", a), ("b", "b", "bd", b), ("c", "s", "y", result)):
        held.append(numpy_helper.from_array(np.float32(grid.scale), f"{name}_s"))
        held.append(numpy_helper.from_array(np.uint8(grid.zero_point), f"{name}_z"))
        pair = [f"{name}_s", f"{name}_z"]
        if name == "c":
            nodes.append(helper.make_node("Add", ["ad", "bd"], ["s"]))
        nodes.append(helper.make_node("QuantizeLinear", [source, *pair], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *pair], [target]))
    port = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [256, 256]) for name in ("a", "b", "y")
    ]
    graph = helper.make_graph(nodes, "sum", port[:2], port[2:], held)
    opset = [helper.make_opsetid("", 18)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=9))


@settings(deadline=None, max_examples=20)
@given(grids, grids, grids)
def test_both_runtimes_give_every_sum_exactly(a, b, result):
    found = untied(a, b, result, GRID)
    assert found.zero_point == result.zero_point
    assert result.scale * 0.995 < found.scale <= result.scale
    feeds = {
        "a": ((A - a.zero_point) * a.scale).astype(np.float32),
        "b": ((B - b.zero_point) * b.scale).astype(np.float32),
    }
    model = _sum_model(a, b, found)
    expected = ((_exact(a, b, found) - found.zero_point) * np.float32(found.scale)).astype(np.float32)
    np.testing.assert_array_equal(by_onnxruntime(model, feeds)["y"], expected)
    np.testing.assert_array_equal(by_tflite(convert(model), feeds)["y"], expected)


def test_a_scale_with_ties_is_moved():
    a = b = Affine(0.5, 128)
    tied = Affine(1.0, 128)
    assert (by_multipliers(a, b, tied, GRID) != _exact(a, b, tied) - 128).any()
    assert untied(a, b, tied, GRID).scale < 1.0
