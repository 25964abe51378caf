"""What a Loop carries unchanged is read from outside, and becomes a weight like others."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import constants
from models_exports import proto

from edgepress.compressor.hoist import hoist_constants
from edgepress.compressor.normalize import normalize
from edgepress.compressor.passes import StoreWeights
from edgepress.compressor.passes.base import Context
from edgepress.compressor.recurrent import always_zero
from edgepress.compressor.serialize import serialize
from edgepress.runtime.engines.ort import OrtEngine

WEIGHTS = constants(90, w=(24, 24), b=(24,))


def turning(last: str = "Identity(wi)", outputs: str = "float[N, 24] y") -> onnx.ModelProto:
    """h ← tanh(h W + b), four times: W and b go round and round, as TensorFlow's loops write them.

    Args:
        last: what the body hands on in the place of W.
        outputs: of the model.
    """
    body = f"""
        turns = Constant <value_int = 4> () go = Constant <value = bool {{1}}> ()
        wn, y, bn, states = Loop (turns, go, w, x, b) <body = turn (int64 i, bool c, float[24, 24] wi, float[N, 24] h,
            float[24] bi) => (bool more, float[24, 24] wo, float[N, 24] ho, float[24] bi, float[N, 24] each) {{
            more = Identity(c) m = MatMul(h, wi) a = Add(m, bi) ho = Tanh(a) wo = {last} each = Neg(ho)
        }}>
    """
    model = proto(f"(float[N, 24] x) => ({outputs})", body, WEIGHTS)

    onnx.checker.check_model(model)
    return model


def outputs_of(model: ir.Model | onnx.ModelProto) -> dict[str, np.ndarray]:
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else serialize(model)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)}
    return dict(OrtEngine().load(data)(feeds))


@pytest.mark.parametrize(
    ("last", "outputs", "gone"),
    [
        ("Identity(wi)", "float[N, 24] y, float[4, N, 24] states", 2),
        ("Neg(wi)", "float[N, 24] y, float[4, N, 24] states", 1),
        ("Identity(wi)", "float[N, 24] y, float[24, 24] wn, float[4, N, 24] states", 1),
    ],
)
def test_what_a_loop_carries_unchanged_is_read_from_outside(last: str, outputs: str, gone: int) -> None:
    made = turning(last, outputs)
    model = ir.from_proto(made)
    assert hoist_constants(model)
    loop = next(node for node in model.graph if node.op_type == "Loop")
    assert len(loop.inputs) == 5 - gone
    assert len(loop.outputs) == 4 - gone
    assert [v.name for v in model.graph.outputs] == [v.name for v in made.graph.output]
    expected, got = outputs_of(made), outputs_of(model)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)


def test_such_weights_are_stored_in_few_bits() -> None:
    made = turning()
    model = normalize(ir.from_proto(made)).model
    outcome = StoreWeights().apply(model, Context(None, None, 0, ()))
    assert outcome.modified
    data = serialize(model)
    assert isinstance(data, bytes)
    assert len(data) < 0.6 * len(made.SerializeToString())
    np.testing.assert_allclose(outputs_of(model)["y"], outputs_of(made)["y"], atol=0.05)


@pytest.mark.parametrize(("second", "zero"), [("o", True), ("x", False)])
def test_zeros_of_both_directions_are_zero(second: str, zero: bool) -> None:
    body = f"n = Expand(z, s) o = Identity(n) y = Concat <axis = 0> (n, {second})"
    weights = {"z": np.zeros(1, np.float32), "s": np.array([1, 3], np.int64)}
    model = ir.from_proto(proto("(float[1, 3] x) => (float[2, 3] y)", body, weights))
    assert always_zero(model.graph.outputs[0]) is zero
