"""Values that are moved and not computed with keep their grid, in integers."""

from pathlib import Path

import models
import pytest
from formats import distance, kernels
from test_quantize import CHAIN, net, quantized


def test_pools_and_reshapes_keep_the_grid() -> None:
    changed, _ = quantized(CHAIN)
    pairs = {n.outputs[0].name: n for n in changed.graph if n.op_type == "QuantizeLinear"}
    assert pairs["r1_q"].inputs[1:] == pairs["p1_q"].inputs[1:]
    assert pairs["g_q"].inputs[1:] == pairs["f_q"].inputs[1:]
    assert pairs["r1_q"].inputs[1] is not pairs["x_q"].inputs[1]


@pytest.mark.parametrize("behind", ["Relu(p)", "Clip(p)"])
def test_a_relu_behind_the_pool_is_no_float_island(behind: str, tmp_path: Path) -> None:
    model = net(
        "c = Conv (x, w, b) p = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (c)"
        f" r = {behind} y = Conv (r, v)",
        "float[N, 4, h, k]",
        w=(8, 4, 3, 3),
        b=(8,),
        v=(4, 8, 1, 1),
    )
    changed, outcome = quantized(model)
    assert outcome.changed == ("c", "y")
    found = kernels(changed, tmp_path)
    assert found["QLinearConv"] == 2
    assert found["DequantizeLinear"] == 1
    assert not {"Relu", "Clip"} & set(found)
    assert distance(model, changed, models.feeds(model, 32)) < 0.05


@pytest.mark.parametrize(
    "move", ["MaxPool <kernel_shape = [1, 1], strides = [2, 2]> (c)", "Transpose <perm = [0, 1, 3, 2]> (c)"]
)
def test_moved_values_keep_their_grid_even_where_the_extremes_are_lost(move: str, tmp_path: Path) -> None:
    model = net(
        f"c = Conv (x, w) m = {move} y = Conv (m, v)", "float[N, 4, h, k]", w=(8, 4, 3, 3), v=(4, 8, 1, 1)
    )
    changed, _ = quantized(model)
    pairs = {n.outputs[0].name: n.inputs[1:] for n in changed.graph if n.op_type == "QuantizeLinear"}
    assert pairs["c_q"] == pairs["m_q"]
    assert kernels(changed, tmp_path)["DequantizeLinear"] == 1
