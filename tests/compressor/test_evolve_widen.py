"""Perceptrons whose weights are stored narrow, read as the floats that they compute with."""

from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest

from edgepress.compressor.errors import ModelError
from edgepress.compressor.evolve.start import read_start
from edgepress.compressor.evolve.widen import widened
from edgepress.compressor.model import to_bytes
from edgepress.compressor.recipe import parse
from edgepress.compressor.shapes import infer_shapes

RECIPES = {
    "store": "kind = 'store'\nmin_elements = 1",
    "3 bits in words": "kind = 'store'\nweight_bits = 3\nmin_elements = 1",
    "blocks": "kind = 'store'\nweight_bits = 4\ngranularity = 'block'\nblock = 16\nmin_elements = 1",
    "stored in half": "kind = 'store'\nweight_bits = 16\nmin_elements = 1",
    "codebooks": "kind = 'cluster'\nbits = 5\nmin_elements = 1",
    "half": "kind = 'half'\nmin_elements = 1",
    "half in part": "kind = 'half'\nmin_elements = 1900",
    "weight_only": "kind = 'weight_only'\nmin_elements = 1",
    "weight_only, 8 bits": "kind = 'weight_only'\nbits = 8\nblock_size = 16\nmin_elements = 1",
    "2 bits, symmetric": "kind = 'weight_only'\nbits = 2\nblock_size = 64\nsymmetric = true\nmin_elements = 1",
}
ROUNDED = ("half", "half in part")
"""Those that round activations, and so does onnxruntime; a kernel for packed blocks does at `accuracy_level` 4."""


def perceptron() -> ir.Model:
    return models.text(
        "(float[N, 40] x) => (float[N, 4] y)",
        "h = Gemm(x, w1, b1) a = Relu(h) m = MatMul(a, w2) n = Add(m, b2) r = Relu(n) "
        "y = Gemm <transB = 1> (r, w3, b3)",
        models.constants(3, w1=(40, 48), b1=(48,), w2=(48, 36), b2=(36,), w3=(4, 36), b3=(4,)),
    )


def compressed(recipe: str) -> ir.Model:
    model = perceptron()
    infer_shapes(model)
    (step,) = parse(f"[[pass]]\n{recipe}")
    outcome = step.apply(changed := model.clone(), oracles.context(model, 50))
    assert outcome.changed
    return changed


@pytest.mark.parametrize("name", RECIPES)
def test_weights_are_those_that_the_runtime_computes_with(name: str, tmp_path: Path) -> None:
    model = compressed(RECIPES[name])
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    (tmp_path / "narrow.onnx").write_bytes(before := to_bytes(model))
    found = read_start(tmp_path / "narrow.onnx")
    assert found.widths == (40, 48, 36, 4)
    assert {array.dtype for layer in found.layers for array in layer} == {np.dtype(np.float32)}
    feeds = models.feeds(model, 30)
    h = feeds["x"]
    for place, (weights, bias) in enumerate(found.layers):
        h = h @ weights + bias
        h = h if place == 2 else np.maximum(h, 0)
    expected = models.run(before, feeds)["y"]
    assert expected.dtype == np.float32
    tolerance = 2e-3 if name in ROUNDED else 1e-5
    np.testing.assert_allclose(h, expected, rtol=0, atol=tolerance * float(np.abs(expected).max()))
    wide = models.run(widened(model), feeds)["y"]
    np.testing.assert_allclose(wide, h, rtol=0, atol=1e-5 * float(np.abs(expected).max()))
    exact = models.run(perceptron(), feeds)["y"]
    assert not np.allclose(h, exact, rtol=0, atol=1e-6)  # it is not the model from before
    assert to_bytes(model) == before


def test_layers_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    model = perceptron()
    model.graph.initializers["w2"].const_value = ir.tensor(np.zeros((47, 36), np.float32))
    (tmp_path / "odd.onnx").write_bytes(to_bytes(model))
    with pytest.raises(ModelError, match="47 inputs"):
        read_start(tmp_path / "odd.onnx")


def test_a_model_in_floats_stays_as_it_is() -> None:
    model = perceptron()
    infer_shapes(model)
    wide = widened(model)
    assert [node.op_type for node in wide.graph] == [node.op_type for node in model.graph]
    feeds = models.feeds(model)
    assert np.array_equal(models.run(wide, feeds)["y"], models.run(model, feeds)["y"])


@pytest.mark.parametrize("recipe", ["kind = 'dynamic'", "kind = 'quantize'"])
def test_activations_in_integers_are_refused_in_one_line(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "integers.onnx").write_bytes(to_bytes(compressed(recipe)))
    with pytest.raises(ModelError, match="QuantizeLinear") as refused:
        read_start(tmp_path / "integers.onnx")
    assert "integers.onnx" in str(refused.value)
    assert "floats" in refused.value.hint


def test_packed_weights_that_are_worked_out_or_reordered_are_refused() -> None:
    for place in (1, 2, 4):
        model = compressed(RECIPES["weight_only"])
        node = next(node for node in model.graph if node.op_type == "MatMulNBits")
        node.resize_inputs(max(len(node.inputs), 5))
        node.replace_input_with(place, model.graph.inputs[0])
        with pytest.raises(ModelError, match="not constant"):
            widened(model)


@pytest.mark.parametrize(("attribute", "value"), [("bits", 5), ("bits", 8), ("K", 65), ("N", 47)])
def test_packed_weights_that_do_not_fit_their_node_are_refused(attribute: str, value: int) -> None:
    model = compressed(RECIPES["weight_only"])
    node = next(node for node in model.graph if node.op_type == "MatMulNBits")
    node.attributes[attribute] = ir.AttrInt64(attribute, value)
    with pytest.raises(ModelError, match="not packed"):
        widened(model)
