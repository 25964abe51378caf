"""The certificate finds what differs: outputs row by row, and scales that were changed by hand."""

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import between_pairs, one_op

from edgepress.compressor.data import Batch
from edgepress.compressor.errors import DeviceError
from edgepress.compressor.export.parity import Comparison, one_batch
from edgepress.compressor.export.tflite import convert
from edgepress.compressor.export.tflite.grids import compare_grids, output_steps
from edgepress.compressor.export.tflite.schema import schema
from edgepress.compressor.report.agreement import output_text, share
from edgepress.compressor.report.tflite import GridDifference, OutputParity


def conv(seed: int = 1) -> tuple[ir.Model, dict[str, Any]]:
    """A convolution in 8 bits, its weights with a scale for each of four channels."""
    rng = np.random.default_rng(seed)
    feeds = {"x": rng.standard_normal((1, 3, 6, 6)).astype(np.float32)}
    held = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
    }
    return between_pairs(one_op("Conv", feeds, constants=held), feeds, weights={"w": 0})[0], feeds


def changed(content: bytes, change: Callable[[Any], None], kind: str, channels: int, which: int = 0) -> bytes:
    """A file in which the quantization of one tensor was changed by hand."""
    s = schema()
    model = s.ModelT.InitFromPackedBuf(content)
    tensors = [
        tensor
        for tensor in model.subgraphs[0].tensors
        if tensor.quantization is not None
        and tensor.type == getattr(s.TensorType, kind)
        and len(tensor.quantization.scale) == channels
    ]
    said = tensors[which].quantization
    said.scale, said.zeroPoint = np.array(said.scale), np.array(said.zeroPoint)
    change(said)
    packed = flatbuffers.Builder(1024)
    packed.Finish(model.Pack(packed), file_identifier=b"TFL3")
    return bytes(packed.Output())


def test_scales_that_are_kept_are_all_the_same():
    model, _ = conv()
    found = compare_grids(model, convert(model).data)
    assert (found.count, found.own, found.differing) == (2 + 4 + 4, 0, ())


@pytest.mark.parametrize("io", ["int8", "uint8"])
@pytest.mark.parametrize("keep", [False, True])
def test_so_they_are_with_integers_at_the_border(io, keep):
    model, _ = conv()
    found = compare_grids(model, convert(model, io=io, keep_layout=keep).data)
    assert (found.own, found.differing) == (0, ())


def one_bit_more(quantization: Any) -> None:
    quantization.scale[-1] = np.nextafter(np.float32(quantization.scale[-1]), np.float32(np.inf))


def zero_point(quantization: Any) -> None:
    quantization.zeroPoint[-1] += 1


PLACES = {
    "an input": ("INT8", 1, 0),
    "an output": ("INT8", 1, 1),
    "a channel of the weights": ("INT8", 4, 0),
    "a channel of the bias": ("INT32", 4, 0),
}


@pytest.mark.parametrize("change", [one_bit_more, zero_point])
@pytest.mark.parametrize("place", PLACES)
def test_a_scale_or_zero_point_changed_by_hand_is_found(place, change):
    model, _ = conv()
    content = convert(model).data
    kind, channels, which = PLACES[place]
    found = compare_grids(model, changed(content, change, kind, channels, which))
    place_in = 3 if channels > 1 else None
    own = [each for each in found.differing if each.channel == place_in and expected(each, change)]
    assert len(own) == 1  # beside it, the bias whose steps follow from a changed scale
    assert change is one_bit_more or len(found.differing) == 1


def expected(each: GridDifference, change: Callable[[Any], None]) -> bool:
    if change is zero_point:
        return each.onnx_scale == each.tflite_scale and each.tflite_zero_point == each.onnx_zero_point + 1
    more = np.nextafter(np.float32(each.onnx_scale), np.float32(np.inf))
    # a step of the bias may move by as much: the changed tensor itself comes first in the file
    return each.tflite_zero_point == each.onnx_zero_point and each.tflite_scale == more


def test_a_grid_of_no_value_of_the_graph_is_counted_as_the_writers_own():
    model, _ = conv()
    other, _ = conv(seed=2)
    found = compare_grids(one_op("Relu", {"x": np.ones((1, 3), np.float32)}), convert(other).data)
    assert found.own == found.count - 4  # what the bias follows from is in the file itself
    assert compare_grids(model, convert(other).data).differing


def test_steps_are_told_of_outputs_on_a_grid_only():
    model, _ = conv()
    scale = next(n for n in model.graph if n.outputs[0] is model.graph.outputs[0]).inputs[1]
    assert output_steps(model) == {"y0": float(scale.const_value.numpy())}
    assert output_steps(one_op("Relu", {"x": np.ones((1, 3), np.float32)})) == {}
    integers = one_op("ArgMax", {"x": np.ones((2, 3), np.float32)}, axis=1)
    assert output_steps(integers) == {"y0": 1.0}


ROWS = st.integers(1, 7)
VALUES = st.sampled_from([0.0, -0.5, 0.25, 1.0, 3.0, float("nan"), float("inf")])


@settings(deadline=None, max_examples=80)
@given(st.data(), ROWS, st.integers(1, 4), st.integers(1, 3))
def test_batches_come_to_the_same_as_all_at_once(data, rows, classes, size):
    """Oracle: numbers one by one."""
    draw = st.lists(st.lists(VALUES, min_size=classes, max_size=classes), min_size=rows, max_size=rows)
    one, two = (np.array(data.draw(draw), np.float32) for _ in range(2))
    found = stream(one, two, size, 0.25)
    pairs = [(float(a), float(b)) for a, b in zip(one.reshape(-1), two.reshape(-1), strict=True)]
    same = [a == b or (a != a and b != b) for a, b in pairs]  # noqa: PLR0124
    assert found.elements == len(pairs)
    assert found.identical_percent == pytest.approx(100 * sum(same) / len(same))
    apart = [0.0 if s else abs(a - b) for (a, b), s in zip(pairs, same, strict=True)]
    if all(np.isfinite(apart)):
        assert found.largest_steps == pytest.approx(max(apart) / 0.25)
    else:
        assert found.largest_steps is None  # JSON has no infinity
    if classes > 1:
        agree = [a.argmax() == b.argmax() for a, b in zip(one, two, strict=True)]
        assert found.same_class_percent == pytest.approx(100 * sum(agree) / rows)
    else:
        assert found.same_class_percent is None


def stream(one: np.ndarray, two: np.ndarray, size: int, step: float | None) -> OutputParity:
    comparison = Comparison(lambda feeds: {"y": one[feeds["r"]]}, lambda feeds: {"y": two[feeds["r"]]}, {})
    comparison.steps = {} if step is None else {"y": step}
    parts = np.split(np.arange(len(one)), range(size, len(one), size))
    comparison.run(Batch({"r": part}, None, part) for part in parts)
    assert comparison.rows == len(one)
    return comparison.outputs()[0]


def test_rows_that_only_fill_a_fixed_batch_do_not_count():
    full = np.arange(4)
    comparison = Comparison(
        lambda feeds: {"y": np.zeros((4, 2), np.float32)},
        lambda feeds: {"y": np.eye(4, 2, dtype=np.float32)},
        {},
    )
    comparison.run([Batch({"r": full}, None, np.arange(1))])
    found = comparison.outputs()[0]
    assert (comparison.rows, found.elements, found.identical_percent) == (1, 2, 50.0)


def test_outputs_of_another_shape_are_an_error():
    comparison = Comparison(lambda _: {"y": np.zeros((2, 3))}, lambda _: {"y": np.zeros((3, 2))}, {})
    with pytest.raises(DeviceError, match=r"'y' is float64 \[2, 3\] in ONNX, and float64 \[3, 2\] in TFLite"):
        comparison.run([one_batch({"x": np.zeros((2, 3))})])


@pytest.mark.parametrize(
    ("percent", "text"),
    [
        (100, "100 %"),
        (0, "0 %"),
        (99.96, "99.96 %"),
        (99.99999, "99.99999 %"),
        (50, "50.0 %"),
        (1e-3, "0.001 %"),
    ],
)
def test_a_share_says_all_only_where_all_are_meant(percent, text):
    assert share(float(percent)) == text


def test_an_output_in_words():
    steps = OutputParity(name="y", elements=9, identical_percent=98.76, step=0.1, largest_steps=1.0)
    assert output_text(steps) == "y: 98.8 % bit-identical, at most 1 step apart"
    lost = OutputParity(name="y", elements=9, identical_percent=50, step=0.1, largest_steps=float("inf"))
    assert output_text(lost) == "y: 50.0 % bit-identical, apart beyond measure"
    real = OutputParity(
        name="y", elements=9, identical_percent=0, largest_percent=0.1234, same_class_percent=100
    )
    assert (
        output_text(real)
        == "y: at most 0.12 % of its range apart, 0 % bit-identical, same class in 100 % of rows"
    )
