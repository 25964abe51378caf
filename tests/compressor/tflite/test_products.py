import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, between_pairs, by_tflite, graph, one_op

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.export.tflite.convert import NotConvertibleError


def _example(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SIZES = st.integers(1, 6)


@st.composite
def gemms(draw: st.DrawFn) -> dict:
    m, k, n = draw(SIZES), draw(SIZES), draw(SIZES)
    flips = {name: draw(st.integers(0, 1)) for name in ("transA", "transB")}
    shapes = {
        "a": (k, m) if flips["transA"] else (m, k),
        "b": (n, k) if flips["transB"] else (k, n),
    }
    bias = draw(st.sampled_from([None, (), (1,), (n,), (1, n), (m, 1), (m, n)]))
    if bias is not None:
        shapes["c"] = bias
    numbers = {name: draw(st.sampled_from([1.0, 1.0, 0.5, -2.0])) for name in ("alpha", "beta")}
    return {
        "arrays": {name: _example(at, *shape) for at, (name, shape) in enumerate(shapes.items())},
        "attributes": {**flips, **numbers},
        "fed": {"a"} | {name for name in ("b", "c") if draw(st.booleans()) and name in shapes},
    }


@settings(deadline=None, max_examples=100)
@given(gemms())
def test_a_gemm_of_any_form(form):
    feeds = {name: array for name, array in form["arrays"].items() if name in form["fed"]}
    held = {name: array for name, array in form["arrays"].items() if name not in form["fed"]}
    model = one_op("Gemm", feeds, constants=held, order=list(form["arrays"]), **form["attributes"])
    assert_same(model, feeds, rtol=1e-5, atol=1e-6)


@st.composite
def factors(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes that numpy multiplies: vectors, matrices, and stacks that broadcast."""
    k = draw(SIZES)
    lead = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(0, 3)))]
    both = []
    for last in ((draw(SIZES), k), (k, draw(SIZES))):
        kept = [size if draw(st.booleans()) else 1 for size in lead][draw(st.integers(0, len(lead))) :]
        both.append((*kept, *last))
    left = (k,) if draw(st.integers(0, 4)) == 0 else both[0]
    right = (k,) if draw(st.integers(0, 4)) == 0 else both[1]
    return left, right


@settings(deadline=None, max_examples=100)
@given(factors(), st.sampled_from(["neither", "left", "right"]))
def test_a_product_of_any_shapes(shapes, constant):
    arrays = dict(zip("ab", (_example(1, *shapes[0]), _example(2, *shapes[1])), strict=True))
    held = {"left": ["a"], "right": ["b"], "neither": []}[constant]
    feeds = {name: array for name, array in arrays.items() if name not in held}
    model = one_op("MatMul", feeds, constants={name: arrays[name] for name in held}, order=["a", "b"])
    assert_same(model, feeds, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(factors())
def test_a_product_of_integers_is_at_most_one_step_off(shapes):
    feeds = {"a": _example(1, *shapes[0]), "b": _example(2, *shapes[1])}
    assert_same_integers(one_op("MatMul", feeds), feeds)


@settings(deadline=None, max_examples=60)
@given(st.lists(SIZES, min_size=2, max_size=4), SIZES)
def test_constant_weights_in_integers_are_at_most_one_step_off(lead, outputs):
    feeds = {"x": _example(1, *lead)}
    model = one_op("MatMul", feeds, constants={"w": _example(2, lead[-1], outputs)})
    assert_same_integers(model, feeds, weights={"w": 1})


def test_six_dimensions_that_differ_are_refused_by_rank():
    feeds = {"a": _example(1, 2, 1, 2, 1, 3, 4), "b": _example(2, 1, 2, 1, 2, 4, 3)}
    with pytest.raises(NotConvertibleError, match="rank: a product of 6 dimensions"):
        convert(one_op("MatMul", feeds))


def test_a_stack_of_any_size():
    feeds = {"a": _example(1, 3, 2, 4, 5), "b": _example(2, 3, 2, 5, 4)}
    assert not assert_same(one_op("MatMul", feeds, dynamic=True), feeds, rtol=1e-5, atol=1e-6).notes


def test_products_of_integers_run_as_integers():
    feeds = {"a": _example(1, 3, 4, 5), "b": _example(2, 3, 5, 4)}
    quantized, _ = between_pairs(one_op("MatMul", feeds), feeds)
    assert convert(quantized).operators == {"BATCH_MATMUL": 1, "DEQUANTIZE": 1, "QUANTIZE": 2}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("lead", [(3,), (2, 3)])
@pytest.mark.parametrize("low", [0.0, -1.0, -9.0])
def test_a_large_product_of_integers_with_a_real_result_is_the_same_bits(dynamic, lead, low):
    x = np.random.default_rng(1).uniform(low, 1, (*lead, 96)).astype(np.float32)
    x[0] /= 7  # rows whose ends are not those of the grid
    feeds = {"x": x}
    held = {"w": _example(2, 96, 90), "b": _example(3, 90)}
    model = one_op("MatMul", feeds, constants={"w": held["w"]}, dynamic=dynamic)
    proto = ir.to_proto(between_pairs(model, feeds, weights={"w": 1})[0])
    for node in [node for node in proto.graph.node if node.output[0] in {"y0", "y0_q"}]:
        proto.graph.node.remove(node)
    proto.graph.node.add(op_type="Identity", input=["y0_raw"], output=["y0"])
    converted = assert_same(ir.from_proto(proto), feeds, rtol=0, atol=0)
    assert not converted.notes
    assert converted.operators["PAD"] == 1
    assert "PAD" not in convert(ir.from_proto(proto), hybrid=False).operators


@pytest.mark.parametrize("outputs", [5, 90])
def test_a_real_bias_behind_integers_is_not_rounded_to_their_grid(outputs):
    feeds = {"x": _example(1, 4, 96)}
    model = graph(
        f"g (float[4,96] x) => (float[4,{outputs}] y) <float s = {{0.3}}, uint8 z = {{128}}>"
        "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) p = MatMul(d, v) y = Add(p, b) }"
    )
    w, b = np.round(_example(2, 96, outputs) * 30).astype(np.int8), _example(3, outputs)
    for name, array in (("w", w), ("t", np.float32(0.5)), ("b", b)):
        model.graph.initializers[name] = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )  # fmt: skip
    made = ir.node("DequantizeLinear", [model.graph.initializers[name] for name in ("w", "t")])
    made.outputs[0].name = "v"
    product = next(node for node in model.graph if node.op_type == "MatMul")
    model.graph.insert_before(product, made)
    product.replace_input_with(1, made.outputs[0])
    product.outputs[0].uses()[0].node.replace_input_with(1, model.graph.initializers["b"])
    integers = np.clip(np.round(feeds["x"] / np.float32(0.3)), -128, 127).astype(np.float64)
    expected = integers @ w * np.float32(0.15) + b
    got = by_tflite(convert(model), feeds)["y"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
