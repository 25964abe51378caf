import numpy as np
import onnx
import pytest

from edgepress.runtime.engines.ort import OrtEngine, shorten
from edgepress.runtime.record import EngineError

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3] x) => (float[N, 3] doubled, float[N, 3] positive)
<float[1] two = {2.0}>
{
    doubled = Mul(x, two)
    positive = Relu(doubled)
}
"""


@pytest.fixture
def model() -> bytes:
    return onnx.parser.parse_model(MODEL).SerializeToString()


X = np.array([[-1.0, 0.0, 1.5]], np.float32)


@pytest.mark.parametrize("optimise", [True, False])
def test_outputs_come_by_name(model, optimise):
    run = OrtEngine().load(model, optimise=optimise)
    found = run({"x": X})
    assert list(found) == ["doubled", "positive"]
    np.testing.assert_array_equal(found["doubled"], 2 * X)
    np.testing.assert_array_equal(found["positive"], [[0.0, 0.0, 3.0]])


def test_only_the_outputs_asked_for_come(model):
    run = OrtEngine().load(model)
    assert list(run({"x": X}, outputs=["positive"])) == ["positive"]
    assert run({"x": X}, outputs=[]) == {}


def test_inputs_and_outputs_are_described_with_dynamic_dimensions(model):
    run = OrtEngine().load(model)
    assert run.inputs == (("x", "tensor(float)", ("N", 3)),)
    assert run.output_names == ("doubled", "positive")
    assert run.outputs[1].name == "positive"


def test_a_file_loads_like_its_bytes(model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    found = OrtEngine().load(path, threads=2)({"x": X})
    np.testing.assert_array_equal(found["positive"], [[0.0, 0.0, 3.0]])


def test_bound_inference_gives_the_same_values(model):
    run = OrtEngine().load(model)
    values = run.bind({"x": X})()
    np.testing.assert_array_equal(values[1], run({"x": X})["positive"])


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "x"),
        ({"y": X}, "x"),
        ({"x": X.astype(np.float64)}, "double"),
        ({"x": np.zeros((1, 4), np.float32)}, "Got: 4 Expected: 3"),
    ],
)
def test_feeds_that_do_not_fit_are_one_clear_line(model, feeds, said, capfd):
    with pytest.raises(EngineError) as caught:
        OrtEngine().load(model)(feeds)
    message = str(caught.value)
    assert message.startswith("onnxruntime cannot run the model: ")
    assert said in message
    assert "ONNXRuntimeError" not in message
    assert "\n" not in message
    assert capfd.readouterr().err == ""


def test_a_failing_node_is_named_without_source_lines(capfd):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] x) => (float[2, 2] y) <int64[2] shape = {2, 2}> { [fold] y = Reshape(x, shape) }
    """
    run = OrtEngine().load(onnx.parser.parse_model(text).SerializeToString())
    with pytest.raises(EngineError) as caught:
        run({"x": X})
    message = str(caught.value)
    assert "Reshape" in message
    assert "cannot be reshaped" in message
    assert ".h:" not in message
    assert "onnxruntime::" not in message
    assert capfd.readouterr().err == ""  # the engine's own log would double the message


def test_what_is_no_model_is_refused_with_its_path(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"cannot load .*broken\.onnx: .*Protobuf parsing failed"):
        OrtEngine().load(path)
    with pytest.raises(EngineError, match="doesn't exist"):
        OrtEngine().load(tmp_path / "missing.onnx")


def test_long_messages_are_cut():
    assert len(shorten("[ONNXRuntimeError] : 1 : FAIL : " + "x" * 5000)) == 300
    assert shorten("[ONNXRuntimeError] : 1 : FAIL : /src/a.cc:12 no signature here") == "no signature here"
