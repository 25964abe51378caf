import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.grids import (
    BIAS_GRID,
    Grid,
    affine,
    bias_floor,
    bias_scale,
    dequantize,
    integer_grid,
    quantize,
)
from edgepress.compressor.numerics.steps import best_steps

UINT8 = integer_grid(8, signed=False)
INT8 = integer_grid(8, signed=True)
WEIGHTS = integer_grid(8, signed=True, symmetric=True)
REALS = st.floats(-1e6, 1e6, width=32)
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=REALS)

Floats = npt.NDArray[np.float32]


@pytest.mark.parametrize(
    ("grid", "limits", "dtype"),
    [
        (integer_grid(8, signed=False), (0, 255), "uint8"),
        (integer_grid(8, signed=True), (-128, 127), "int8"),
        (integer_grid(8, signed=True, symmetric=True), (-127, 127), "int8"),
        (integer_grid(4, signed=True, symmetric=True), (-7, 7), "int8"),
        (integer_grid(2, signed=False), (0, 3), "uint8"),
        (integer_grid(16, signed=True), (-32768, 32767), "int16"),
    ],
)
def test_a_grid_knows_its_integers(grid: Grid, limits: tuple[int, int], dtype: str) -> None:
    assert ((grid.qmin, grid.qmax), str(grid.dtype)) == (limits, dtype)
    assert grid.levels == limits[1] - limits[0]


@pytest.mark.parametrize("bits", [0, 1, 33])
def test_an_impossible_width_is_refused(bits: int) -> None:
    with pytest.raises(UsageError, match=f"{bits} bits"):
        integer_grid(bits, signed=True)


@given(low=REALS, high=REALS, share=st.floats(0, 1), grid=st.sampled_from([UINT8, INT8]))
def test_what_lies_in_range_moves_by_at_most_half_a_step(
    low: float, high: float, share: float, grid: Grid
) -> None:
    low, high = min(low, high, 0.0), max(low, high, 0.0)
    params = affine(low, high, grid)
    x = np.array([low + share * (high - low)], np.float32)
    q = quantize(x, params.scale, grid, params.zero_point)
    back = dequantize(q, params.scale, params.zero_point)
    # rounding the zero point shifts the range by up to half a step, so that an end may be cut by that much
    slack = 0.5 if share not in (0.0, 1.0) and grid.qmin < q[0] < grid.qmax else 1.0
    assert abs(float(back[0]) - float(x[0])) <= slack * params.scale * (1 + 1e-4) + 1e-7 * abs(float(x[0]))


@given(low=REALS, high=REALS, grid=st.sampled_from([UINT8, INT8]))
def test_zero_is_exact(low: float, high: float, grid: Grid) -> None:
    params = affine(min(low, high), max(low, high), grid)
    zero = quantize(np.zeros(1, np.float32), params.scale, grid, params.zero_point)
    assert params.scale > 0
    assert dequantize(zero, params.scale, params.zero_point)[0] == 0.0


def test_a_range_from_zero_has_its_zero_point_at_the_end() -> None:
    assert affine(0.0, 5.1, UINT8).zero_point == 0
    assert affine(0.0, 5.1, INT8).zero_point == -128
    assert affine(0.5, 5.1, UINT8) == affine(0.0, 5.1, UINT8)


@given(
    low=st.floats(-10, 0), high=st.floats(0, 10), bounds=st.tuples(st.floats(-10, -0.01), st.floats(0.01, 10))
)
def test_no_integer_passes_the_bounds(low: float, high: float, bounds: tuple[float, float]) -> None:
    low, high = max(low, bounds[0]), min(high, bounds[1])
    for grid in (UINT8, INT8):
        params = affine(low, high, grid, inside=bounds)
        ends = dequantize(np.array([grid.qmin, grid.qmax]), params.scale, params.zero_point)
        assert ends[0] >= bounds[0] - 1e-6 * abs(bounds[0])
        assert ends[1] <= bounds[1] + 1e-6 * bounds[1]


def test_relu6_uses_the_whole_grid() -> None:
    params = affine(0.0, 6.0, UINT8, inside=(0.0, 6.0))
    assert params.zero_point == 0
    assert params.scale == pytest.approx(6 / 255, rel=1e-6)


@given(
    bias=hnp.arrays(np.float32, 4, elements=st.floats(-1e4, 1e4, width=32)),
    weight=st.floats(1e-12, 1.0),
    scale=st.floats(1e-5, 10.0),
)
def test_a_bias_always_fits_its_integers(bias: Floats, weight: float, scale: float) -> None:
    x = np.full((4, 3), weight, np.float32)
    steps = best_steps(x, WEIGHTS, 3, floor=bias_floor(bias, scale), ratios=(1.0,))
    w_scale = steps.scales[:, 0]
    step = bias_scale(scale, w_scale)
    q = quantize(bias, step, BIAS_GRID, axis=0)
    assert (np.abs(q.astype(np.int64)) < 2**31 - 1).all()
    np.testing.assert_allclose(dequantize(q, step, axis=0), bias, rtol=1e-5, atol=float(step.max()))
