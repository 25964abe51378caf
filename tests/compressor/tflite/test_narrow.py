"""Floats of few bits, held in float32: rounded as ml_dtypes does, and refused where they would be computed with."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tflite import by_tflite, graph

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.export.tflite.convert import NotConvertibleError

KINDS: dict[str, Any] = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8e5m2": ml_dtypes.float8_e5m2,
    "float8e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float4e2m1": ml_dtypes.float4_e2m1fn,
}
# XNNPACK takes numbers below 2^-126 for 0, onnxruntime does not: no certificate can hold there.
_FLOATS = hnp.arrays(
    np.float32,
    24,
    elements=st.floats(width=32, allow_subnormal=False)
    | st.floats(-600, 600, width=32, allow_subnormal=False),
)


def _rounded(x: np.ndarray[Any, np.dtype[np.float32]], kind: Any, saturate: bool) -> Any:
    cut = np.clip(x, ml_dtypes.finfo(kind).min, ml_dtypes.finfo(kind).max) if saturate else x
    made = cut.astype(kind).astype(np.float32)
    return np.where(np.isnan(x), 0.0, made) if kind is ml_dtypes.float4_e2m1fn else made


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=25)
@given(x=_FLOATS)
def test_a_cast_rounds_to_the_nearest_number_of_the_type(name: str, saturate: bool, x: Any) -> None:
    kind = KINDS[name]
    model = graph(
        f"g (float[24] x) => ({name}[24] y) "
        f"{{ y = Cast<to: int = {_number(name)}, saturate: int = {int(saturate)}>(x) }}"
    )
    converted = convert(model)
    assert any("float32" in note for note in converted.notes)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = _rounded(x, kind, saturate and name != "bfloat16")
    np.testing.assert_array_equal(by_tflite(converted, {"x": x})["y"], wanted)


def _number(name: str) -> int:
    return int(getattr(onnx.TensorProto, name.upper()))


@pytest.mark.parametrize("name", KINDS)
def test_every_number_of_a_type_comes_back_through_its_pair(name: str) -> None:
    kind = KINDS[name]
    bits = 4 if name.startswith("float4") else 8
    every = np.arange(2**bits, dtype=np.uint8).view(kind).astype(np.float32) if name != "bfloat16" else None
    x = np.linspace(-3, 3, 24, dtype=np.float32).astype(kind).astype(np.float32) if every is None else every
    x = x[np.isfinite(x)]
    model = graph(
        f"g (float[{x.size}] x) => (float[{x.size}] y) "
        f"{{ q = Cast<to: int = {_number(name)}>(x) r = Identity(q) y = Cast<to: int = 1>(r) }}"
    )
    np.testing.assert_array_equal(by_tflite(convert(model), {"x": x})["y"], x)


def test_constants_in_a_narrow_float_are_worked_out() -> None:
    weight = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.float8_e4m3fn)
    model = graph("g (float[2,3] x) => (float[2,4] y) { v = Cast<to: int = 1>(w) y = MatMul(x, v) }")
    held = ir.Value(name="w", shape=ir.Shape((3, 4)), type=ir.TensorType(ir.DataType.FLOAT8E4M3FN))
    held.const_value = ir.tensor(weight, dtype=ir.DataType.FLOAT8E4M3FN)
    model.graph.initializers["w"] = held
    next(node for node in model.graph if node.op_type == "Cast").replace_input_with(0, held)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(
        by_tflite(convert(model), {"x": x})["y"], x @ weight.astype(np.float32), rtol=1e-6
    )


def test_arithmetic_on_narrow_floats_is_refused() -> None:
    model = graph("g (bfloat16[4] x) => (bfloat16[4] y) { y = Add(x, x) }")
    with pytest.raises(NotConvertibleError, match="dtype"):
        convert(model)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_in_training_drops_what_its_seed_draws(training: bool) -> None:
    model = graph(
        "g (float[6,7] x, float r, bool t) => (float[6,7] y, bool[6,7] m) { y, m = Dropout<seed = 3>(x, r, t) }"
    )
    x = np.arange(1, 43, dtype=np.float32).reshape(6, 7)
    got = by_tflite(convert(model), {"x": x, "r": np.array(0.25, np.float32), "t": np.array(training)})
    kept = np.random.RandomState(3).uniform(0, 1, x.shape) >= (0.25 if training else 0)
    np.testing.assert_array_equal(got["m"], kept)
    np.testing.assert_allclose(got["y"], x * kept / (0.75 if training else 1), rtol=1e-6)
