"""Products in blocks of few bits, against numpy on the weights that the file holds."""

import math

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.errors import ModelError, UsageError
from edgepress.compressor.export.releases import bound, oldest_runtime
from edgepress.compressor.model import to_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.passes import WeightOnly
from edgepress.compressor.passes.base import Context, Outcome
from edgepress.compressor.protocols import Array
from edgepress.compressor.shapes import infer_shapes
from edgepress.runtime.engines.ort import OrtEngine


def applied(model: ir.Model, step: WeightOnly, context: Context | None = None) -> tuple[ir.Model, Outcome]:
    infer_shapes(model)
    changed = model.clone()
    return changed, step.apply(changed, context or Context())


def run(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    return OrtEngine().load(to_bytes(model))(feeds)


def in_floats(model: ir.Model) -> ir.Model:
    """The same computed in floats, however slowly."""
    exact = model.clone()
    for node in exact.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    return exact


def held(node: ir.Node) -> Array:
    """W [in, out] as the file holds it, code by code."""
    inputs, outputs, bits, size = (node.attributes.get_int(n, 0) for n in ("K", "N", "bits", "block_size"))
    arrays = [v.const_value.numpy() if v is not None and v.const_value else None for v in node.inputs[1:4]]
    packed, scales, zeros = (*arrays, None)[:3]
    assert packed is not None
    assert scales is not None
    w = np.zeros((inputs, outputs))
    for i in range(inputs):
        block, at = i // size, i % size * bits
        for o in range(outputs):
            code = (int(packed[o, block, at // 8]) >> at % 8) % 2**bits
            zero = 2 ** (bits - 1)
            if zeros is not None:
                zero = (int(zeros[o, block * bits // 8]) >> block * bits % 8) % 2**bits
            w[i, o] = (code - zero) * float(scales[o, block])
    return w


@st.composite
def cases(draw: st.DrawFn) -> tuple[ir.Model, Array, Array, Array | None]:
    """A product, its input, W [in, out] with alpha, and what is added, with beta."""
    rank = draw(st.integers(1, 4))
    gemm = rank == 2 and draw(st.booleans())
    lead = tuple(draw(st.integers(1, 4)) for _ in range(rank - 1))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    inputs, outputs = (int(n) for n in rng.integers(1, 70, 2))
    w = rng.standard_normal((inputs, outputs)).astype(np.float32)
    flipped, alpha, beta, bias = gemm and draw(st.booleans()), 1.0, 1.0, ""
    if gemm:
        alpha, beta = draw(st.sampled_from([1.0, -0.5])), draw(st.sampled_from([1.0, 3.0]))
        bias = draw(st.sampled_from(["", "row", "row of one", "one", "column"]))
    c = {"row": (outputs,), "row of one": (1, outputs), "one": (1,), "column": (*lead, 1)}.get(bias)
    weights = {"w": np.ascontiguousarray(w.T) if flipped else w}
    if c is not None:
        weights["c"] = rng.standard_normal(c).astype(np.float32)
    kind = f"Gemm <alpha = {alpha}, beta = {beta}, transB = {int(flipped)}>" if gemm else "MatMul"
    x = rng.standard_normal((*lead, inputs)).astype(np.float32)
    made = ", ".join(map(str, (*lead, outputs)))
    model = models.text(
        f"(float[{', '.join(map(str, x.shape))}] x) => (float[{made}] y)",
        f"y = {kind} (x, w{', c' if bias else ''})",
        weights,
    )
    return model, x, np.float32(alpha) * w, beta * weights["c"] if bias else None


@settings(deadline=None, max_examples=80)
@given(cases(), st.sampled_from([2, 4, 8]), st.sampled_from([32, 64, 128]), st.booleans())
def test_products_are_those_of_the_weights_in_the_file(
    case: tuple[ir.Model, Array, Array, Array | None], bits: int, size: int, symmetric: bool
) -> None:
    model, x, w, added = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgepress.compressor.passes.weight_only.OVERHEAD", -(10**6))
        changed, outcome = applied(model, WeightOnly(bits, size, symmetric=symmetric, min_elements=1))  # type: ignore[arg-type]
    assert outcome.changed == ("y",)
    node = next(node for node in changed.graph if node.op_type == "MatMulNBits")
    kept = held(node)
    step = np.abs(w).max() / (2 ** (bits - 1) - 1 if symmetric else (2**bits - 1) / 2)
    assert math.sqrt(np.square(kept - w).mean()) <= step
    expected = x.astype(np.float64) @ kept + (0 if added is None else added)
    scale = np.abs(x) @ np.abs(kept) + 1 + (0 if added is None else np.abs(added))
    np.testing.assert_array_less(np.abs(run(in_floats(changed), {"x": x})["y"] - expected), 2e-6 * scale)
    np.testing.assert_array_less(np.abs(run(changed, {"x": x})["y"] - expected), 0.02 * scale)


def dense(seed: int, inputs: int, outputs: int) -> tuple[ir.Model, Array]:
    w = np.random.default_rng(seed).standard_normal((inputs, outputs)).astype(np.float32)
    model = models.text(
        f"(float[N, {inputs}] x) => (float[N, {outputs}] y)",
        "y = Gemm (x, w, b)",
        {"w": w, "b": np.zeros(outputs, np.float32)},
    )
    return model, w


@pytest.mark.parametrize(
    ("bits", "symmetric", "most"), [(2, True, 3.1), (4, True, 5.1), (4, False, 5.3), (8, False, 9.4)]
)
def test_file_takes_what_the_packed_form_takes(bits: int, symmetric: bool, most: float) -> None:
    model, w = dense(1, 256, 256)
    changed, _ = applied(model, WeightOnly(bits, 32, symmetric=symmetric))  # type: ignore[arg-type]
    assert len(to_bytes(changed)) < w.size * most / 8 + 256 * 4 + 600


def test_samples_make_outputs_keep_and_the_bias_takes_the_mean() -> None:
    model, w = dense(2, 96, 40)
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((500, 12)) @ rng.standard_normal((12, 96)) + 1).astype(np.float32)
    data = oracles.context(model, 500, feeds={"x": x})
    errors = []
    for step, context in (
        (WeightOnly(2), data),
        (WeightOnly(2), None),
        (WeightOnly(2, compensate=False), data),
    ):
        changed, _ = applied(model, step, context)
        errors.append(run(in_floats(changed), {"x": x})["y"] - x @ w)
    lost = [float(np.square(error).sum()) for error in errors]
    assert lost[0] < lost[1] / 4
    assert lost[1] == lost[2]
    assert np.abs(errors[0].mean(axis=0)).max() < 1e-2 * np.abs(errors[1].mean(axis=0)).max()


def reasons(
    model: ir.Model, step: WeightOnly | None = None, context: Context | None = None
) -> dict[str, str]:
    changed, outcome = applied(model, step or WeightOnly(min_elements=2), context)
    assert outcome.modified == (to_bytes(changed) != to_bytes(model))
    return {skipped.site: skipped.reason for skipped in outcome.skipped}


def test_what_stays_as_it_is_says_why() -> None:
    assert "store" in reasons(models.gru())["s"]
    assert "store" in reasons(models.cnn())["c1"]
    assert "not get smaller" in reasons(models.mlp())["h"]
    model, _ = dense(3, 64, 64)
    old = Context(target=oracles.Board(runtime_version="1.23"))
    assert "no kernel for 2 bits" in reasons(model, WeightOnly(2), old)["y"]
    assert not reasons(model, WeightOnly(4), old)
    assert not reasons(model, WeightOnly(2), Context(target=oracles.Board(runtime_version="1.24.1")))


def test_file_says_which_runtime_reads_it() -> None:
    oldest = {}
    for bits in (2, 4, 8):
        changed, _ = applied(dense(3, 64, 64)[0], WeightOnly(bits))  # type: ignore[arg-type]
        oldest[bits] = oldest_runtime(changed)
    assert oldest[2] == "1.24"
    assert oldest[8] == "1.23"
    assert oldest[4] == oldest_runtime(dense(3, 64, 64)[0])
    with pytest.raises(ModelError, match="2 bits"):
        bound(applied(dense(3, 64, 64)[0], WeightOnly(2))[0], "1.23")


def test_blocks_are_no_wider_than_the_inputs() -> None:
    model, _ = dense(4, 40, 64)
    changed, _ = applied(model, WeightOnly(4, 256))
    sizes = [node.attributes.get_int("block_size", 0) for node in changed.graph]
    assert sizes == [64]


def test_result_is_a_model_for_a_further_run() -> None:
    model, _ = dense(5, 64, 64)
    once, _ = applied(model, WeightOnly())
    again, outcome = applied(normalize(once).model, WeightOnly())
    assert not outcome.modified
    x = {"x": np.ones((2, 64), np.float32)}
    np.testing.assert_array_equal(run(again, x)["y"], run(once, x)["y"])


@pytest.mark.parametrize(
    "field", [{"bits": 8, "accuracy_level": 0}, {"bits": 2, "block_size": 16}, {"sites": ("(",)}]
)
def test_fields_that_make_no_sense_are_refused(field: dict) -> None:
    with pytest.raises(UsageError):
        WeightOnly(**field)
