import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import assert_same, by_onnxruntime, by_tflite, one_op

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.export.tflite.convert import NotConvertibleError
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.store import StoreWeights

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OUTPUTS = {"LSTM": 3, "GRU": 2, "RNN": 2}


def _example(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.7


@st.composite
def nets(draw: st.DrawFn) -> dict:
    """A recurrent layer with any of its operands and attributes."""
    op = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    steps, batch, size, hidden = (draw(st.integers(1, 4)) for _ in range(4))
    dirs, rows = (2 if direction == "bidirectional" else 1), GATES[op] * hidden
    arrays = {
        "X": _example(1, steps, batch, size),
        "W": _example(2, dirs, rows, size),
        "R": _example(3, dirs, rows, hidden),
    }
    order = ["X", "W", "R", "", "", ""]
    if draw(st.booleans()):
        arrays["B"], order[3] = _example(4, dirs, 2 * rows), "B"
    if draw(st.booleans()):
        arrays["h"], order[5] = _example(5, dirs, batch, hidden), "h"
    attributes = {"direction": direction, "hidden_size": hidden}
    if op == "LSTM":
        order += ["", ""]
        if draw(st.booleans()):
            arrays["c"], order[6] = _example(6, dirs, batch, hidden), "c"
        if draw(st.booleans()):
            arrays["P"], order[7] = _example(7, dirs, 3 * hidden), "P"
    if op == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if draw(st.integers(0, 3)) == 0:
        attributes["clip"] = 0.5
    if draw(st.integers(0, 2)) == 0:
        count = len({"LSTM": "fgh", "GRU": "fg", "RNN": "f"}[op])
        known = st.sampled_from(["Sigmoid", "Tanh", "Relu", "HardSigmoid", "LeakyRelu", "Softsign"])
        attributes["activations"] = [draw(known) for _ in range(count * dirs)]
    fed = {"X"} | {name for name in ("h", "c") if draw(st.booleans()) and name in arrays}
    if draw(st.integers(0, 3)) == 0:
        fed = set(arrays)
    return {"op": op, "arrays": arrays, "order": order, "fed": fed, "attributes": attributes}


@settings(deadline=None, max_examples=100)
@given(nets())
def test_a_recurrent_layer_of_any_form(form):
    arrays, fed, op = form["arrays"], form["fed"], form["op"]
    model = one_op(
        op,
        {name: arrays[name] for name in arrays if name in fed},
        constants={name: arrays[name] for name in arrays if name not in fed},
        order=form["order"],
        outputs=OUTPUTS[op],
        **form["attributes"],
    )
    assert_same(model, {n: arrays[n] for n in fed}, rtol=1e-5, atol=1e-6, keep_layout=True)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_the_batch_first(op):
    """onnxruntime has no kernel for `layout` 1: it is asked for `layout` 0, with the dimensions turned as ONNX says."""
    rows = GATES[op] * 3
    held = {"W": _example(2, 1, rows, 2), "R": _example(3, 1, rows, 3), "B": _example(4, 1, 2 * rows)}
    feeds = {"X": _example(1, 4, 5, 2)}
    turned = {"X": feeds["X"].transpose(1, 0, 2)}
    first = one_op(op, turned, constants=held, outputs=OUTPUTS[op], hidden_size=3)
    expected = list(by_onnxruntime(first, turned).values())
    model = one_op(op, feeds, constants=held, outputs=OUTPUTS[op], hidden_size=3, layout=1)
    got = list(by_tflite(convert(model, keep_layout=True), feeds).values())
    np.testing.assert_allclose(got[0], expected[0].transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
    for mine, last in zip(got[1:], expected[1:], strict=True):  # states, which follow Y
        np.testing.assert_allclose(mine, last.transpose(1, 0, 2), rtol=1e-5, atol=1e-6)


def _gru(steps: int, dtype: str = "lens", **constants: np.ndarray) -> ir.Model:
    held = {"W": _example(2, 1, 9, 2), "R": _example(3, 1, 9, 3), "B": _example(4, 1, 18)} | constants
    order = ["X", "W", "R", "B", *([dtype] if constants else [])]
    return one_op(
        "GRU", {"X": _example(1, steps, 2, 2)}, constants=held, order=order, outputs=2, hidden_size=3
    )


def test_sequences_of_full_length_are_written():
    assert_same(_gru(5, lens=np.full(2, 5, np.int32)), {"X": _example(1, 5, 2, 2)}, rtol=1e-5, atol=1e-6)


def test_sequences_of_other_lengths_are_refused():
    with pytest.raises(NotConvertibleError, match="dynamic shape: sequences of different lengths"):
        convert(_gru(5, lens=np.array([5, 3], np.int32)))


def test_too_many_steps_are_refused():
    with pytest.raises(NotConvertibleError, match="form: 2001 steps"):
        convert(_gru(2001))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_stored_weights_stay_in_eight_bits(op):
    rows = GATES[op] * 16
    feeds = {"X": _example(1, 3, 2, 24)}
    held = {"W": _example(2, 2, rows, 24), "R": _example(3, 2, rows, 16), "B": _example(4, 2, 2 * rows)}
    model = one_op(op, feeds, constants=held, outputs=OUTPUTS[op], hidden_size=16, direction="bidirectional")
    wide = convert(model, keep_layout=True)
    assert StoreWeights().apply(model, Context()).modified
    narrow = assert_same(model, feeds, rtol=1e-5, atol=1e-6, keep_layout=True)
    weights = held["W"].size + held["R"].size
    assert len(wide.data) - len(narrow.data) > 2 * weights
