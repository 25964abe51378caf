"""Half precision against numpy's."""

from collections import Counter

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import to_bytes
from edgepress.compressor.passes import Half
from edgepress.compressor.passes.base import Context, Outcome
from edgepress.compressor.protocols import Array
from edgepress.compressor.shapes import infer_shapes
from edgepress.runtime.engines.ort import OrtEngine


def applied(model: ir.Model, step: Half, feeds: dict[str, Array] | None = None) -> tuple[ir.Model, Outcome]:
    """On these rows as samples."""
    infer_shapes(model)
    rows = 24 if feeds is None else len(next(iter(feeds.values())))
    changed = model.clone()
    return changed, step.apply(changed, oracles.context(model, rows, feeds=feeds))


def run(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    return OrtEngine().load(to_bytes(model))(feeds)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def rounded(array: Array) -> Array:
    return array.astype(np.float16).astype(np.float64)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(2, 4),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 0.5]),
    st.booleans(),
    st.integers(0, 99),
)
def test_products_are_those_of_half_weights(
    rank: int, gemm: bool, flipped: bool, alpha: float, bias: bool, seed: int
) -> None:
    gemm = gemm and rank == 2
    flipped = flipped and gemm
    rng = np.random.default_rng(seed)
    lead, (inputs, outputs) = tuple(rng.integers(1, 5, rank - 1)), rng.integers(1, 30, 2)
    w, c, x = (
        rng.standard_normal(s).astype(np.float32) for s in ((inputs, outputs), (outputs,), (*lead, inputs))
    )
    kind = f"Gemm <alpha = {alpha}, beta = {alpha}, transB = {int(flipped)}>" if gemm else "MatMul"
    model = models.text(
        f"(float[{', '.join(map(str, x.shape))}] x) => (float[{', '.join(map(str, (*lead, outputs)))}] y)",
        f"y = {kind} (x, w{', c' if gemm and bias else ''})",
        {"w": np.ascontiguousarray(w.T) if flipped else w} | ({"c": c} if gemm and bias else {}),
    )
    changed, outcome = applied(model, Half(min_elements=1), {"x": x})
    assert outcome.changed == ("y",)
    expected = rounded(x) @ rounded(w)
    if gemm:
        expected = alpha * expected + (alpha * rounded(c) if bias else 0)
    found = run(changed, {"x": x})["y"]
    scale = np.abs(x) @ np.abs(w) + 3
    assert found.dtype == np.float32
    np.testing.assert_array_less(np.abs(found - expected), 2.0**-10 * scale)
    np.testing.assert_array_less(np.abs(found - expected).mean(), 2.0**-11 * scale.mean())


def test_casts_stand_at_the_border_of_a_region_alone() -> None:
    model = models.residual()
    changed, outcome = applied(model, Half(min_elements=2))
    assert outcome.changed == ("c0", "c1", "c2", "y")
    # one at the input, two around the mean over the pixels, whose sum float16 might not hold, and one at the output
    assert operators(changed)["Cast"] == 4
    halves = {v.name for v in changed.graph.initializers.values() if v.dtype == ir.DataType.FLOAT16}
    assert len(halves) == 8
    assert all(
        v.dtype == ir.DataType.FLOAT16
        for node in changed.graph
        if node.op_type == "Relu"
        for v in node.outputs
    )


def test_weights_take_half_the_bytes() -> None:
    model = models.mlp(256, 256)
    changed, _ = applied(model, Half())
    assert len(to_bytes(changed)) < 0.52 * len(to_bytes(model))
    x = models.feeds(model, 16, 3)
    expected, found = run(model, x)["y"], run(changed, x)["y"]
    assert np.abs(found - expected).max() < 4e-3 * np.abs(expected).max()


def test_values_that_half_precision_does_not_hold_stay_in_float32() -> None:
    model = models.text(
        "(float[N, 4] x) => (float[N, 4] y)",
        "h = MatMul(x, w1) a = Relu(h) g = MatMul(a, w2) b = Relu(g) y = MatMul(b, w3)",
        {"w1": np.eye(4, dtype=np.float32), "w2": 9e3 * np.eye(4, dtype=np.float32),
         "w3": 1e-4 * np.eye(4, dtype=np.float32)},
    )  # fmt: skip
    x = np.random.default_rng(0).random((30, 4)).astype(np.float32) + 1
    changed, outcome = applied(model, Half(min_elements=1), {"x": x})
    assert outcome.changed == ("h",)
    assert {s.site for s in outcome.skipped if "largest half" in s.reason} == {"g", "y"}
    np.testing.assert_allclose(run(changed, {"x": x})["y"], run(model, {"x": x})["y"], rtol=2e-3)
    large = models.text(
        "(float[N, 2] x) => (float[N, 2] y)", "y = MatMul(x, w)", {"w": np.full((2, 2), 7e4, np.float32)}
    )
    assert not applied(large, Half(min_elements=1), {"x": np.zeros((4, 2), np.float32)})[1].changed


def test_outputs_keep_names_and_are_read_by_others_in_float32() -> None:
    model = models.two_inputs()
    changed, outcome = applied(model, Half(min_elements=2))
    assert outcome.changed == ("middle", "y")
    assert [(v.name, v.dtype) for v in changed.graph.outputs] == [
        ("y", ir.DataType.FLOAT),
        ("middle", ir.DataType.FLOAT),
    ]
    feeds = models.feeds(model, 6)
    assert oracles.close(run(model, feeds), run(changed, feeds), 4e-3)


def reasons(model: ir.Model, step: Half | None = None) -> dict[str, str]:
    return {s.site: s.reason for s in applied(model, step or Half(min_elements=2))[1].skipped}


def test_what_stays_as_it_is_says_why() -> None:
    assert "output of the model" in reasons(models.weight_as_output())["y"]
    assert "float16" in reasons(models.half())["h"]
    assert "control flow" in reasons(models.control_flow())["t"]
    assert "read by" in reasons(models.control_flow())["h"]
    assert "fewer than" in reasons(models.mlp(), Half())["h"]
    both = models.shared_weight()
    assert "read by" in reasons(both, Half(min_elements=2, leave=("h",)))["g"]
    assert applied(both, Half(min_elements=2))[1].changed == ("h", "g")
    model = models.mlp()
    assert "samples" in Half(min_elements=2).apply(model, Context()).skipped[0].reason


def test_bounds_of_a_clip_may_be_infinite() -> None:
    model = models.text(
        "(float[N, 4] x) => (float[N, 4] y)",
        "h = MatMul(x, w) a = Clip(h, low, high) y = MatMul(a, w)",
        models.constants(1, w=(4, 4))
        | {"low": np.array(0, np.float32), "high": np.array(np.inf, np.float32)},
    )
    changed, outcome = applied(model, Half(min_elements=2))
    assert outcome.changed == ("h", "y")
    assert operators(changed)["Cast"] == 2
    feeds = models.feeds(model, 6)
    assert oracles.close(run(model, feeds), run(changed, feeds), 4e-3)


def test_fields_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError):
        Half(sites=("(",))
