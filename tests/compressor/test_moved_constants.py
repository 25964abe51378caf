"""Constants that are computed once or move out of bodies, and those that must stay where and what they are."""

import models
import models_control
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import constants
from models_exports import proto
from normalizing import kinds, normalized

from edgepress.compressor.export.onnx import save
from edgepress.compressor.model import to_bytes
from edgepress.compressor.normalize import normalize

BRANCHES = """
    s = ReduceSum <keepdims = 0> (x) yes = Greater(s, zero)
    y = If (yes) < then_branch = one () => ({t} t) {{ {then} }}, else_branch = two () => ({t} e) {{ {other} }} >
"""


def loaded(model: onnx.ModelProto) -> ir.Model:
    return ir.serde.deserialize_model(model)


def branching(then: str, other: str, weights: models.Weights, kind: str = "float[N, 96]") -> ir.Model:
    body = BRANCHES.format(then=then, other=other, t=kind)
    more = weights | {"zero": np.array(0, np.float32)}
    return loaded(proto(f"(float[N, 64] x) => ({kind} y)", body, more, opset=21))


def test_weights_rounded_in_front_of_a_layer_still_say_so() -> None:
    weights = constants(3, w=(80, 80)) | {"scale": np.array(0.01, np.float32), "zero": np.array(0, np.int8)}
    body = "q = QuantizeLinear(w, scale, zero) d = DequantizeLinear(q, scale, zero) y = MatMul(x, d)"
    model = models.text("(float[N, 80] x) => (float[N, 80] y)", body, weights)
    assert kinds(normalized(model).model) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "MatMul": 1}


def test_a_weight_worked_out_from_weights_is_computed() -> None:
    weights = constants(4, v=(96, 80), g=(96, 1))
    body = "n = ReduceL2 <axes = [1]> (v) u = Div(v, n) w = Mul(u, g) t = Transpose(w) y = MatMul(x, t)"
    model = models.text("(float[N, 80] x) => (float[N, 96] y)", body, weights, opset=17)
    result = normalized(model).model
    assert kinds(result) == {"MatMul": 1}
    assert len(save(result)) < 1.05 * len(to_bytes(model))


def test_integers_in_bodies_stay_there_and_packed() -> None:
    def branch(out: str) -> str:
        return f"{out}d = DequantizeLinear <axis = 0, block_size = 32> ({out}q, {out}s) {out} = MatMul(x, {out}d)"

    rng = np.random.default_rng(5)
    weights = {f"{out}q": rng.integers(-9, 9, (64, 96)).astype(np.int8) for out in "te"}
    weights |= constants(6, ts=(2, 96), es=(2, 96))
    model = branching(branch("t"), branch("e"), weights)
    result = normalized(model).model
    assert kinds(result) == {"ReduceSum": 1, "Greater": 1, "If": 1}
    assert len(save(result)) < 1.02 * len(to_bytes(model))


def test_equal_models_give_equal_bytes_however_often() -> None:
    held: list[object] = []
    files = set()
    for count in range(8):
        model = loaded(models_control.joined_gates())
        files.add(bytes(save(normalize(model).model)))  # type: ignore[arg-type]
        held.append([object() for _ in range(1000 * count)])  # so that what is made next lies elsewhere
    assert len(files) == 1


@pytest.mark.parametrize("positive", [True, False])
def test_branches_may_know_one_name_as_numbers_of_two_kinds(positive: bool) -> None:
    model = models_control.one_name_twice()
    feeds = {"x": np.full((2, 64), 1 if positive else -1, np.float32)}
    source = loaded(model)
    want, got = models.run(source, feeds), models.run(normalize(source).model, feeds)
    np.testing.assert_array_equal(got["y"], want["y"])


def test_every_turn_of_a_loop_draws_anew() -> None:
    body = """
        h = Loop (three, go, x) <body = step (int64 i, bool on, float[96, 96] s) => (bool keep, float[96, 96] t)
            { keep = Identity(on) r = RandomNormalLike(w) t = Add(s, r) }>
        y = Identity(h)
    """
    more = constants(8, w=(96, 96)) | {"three": np.array(3, np.int64), "go": np.array(True)}
    result = normalize(loaded(proto("(float[96, 96] x) => (float[96, 96] y)", body, more))).model
    assert "RandomNormalLike" not in kinds(result)
