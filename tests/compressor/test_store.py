from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import oracles
import pytest
from formats import Samples, distance, kernels
from models import constants, text

from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import to_bytes
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped
from edgepress.compressor.passes.cluster import Cluster
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.passes.store import StoreWeights


def stored(
    model: ir.Model, recipe: StoreWeights | None = None, samples: bool = False
) -> tuple[ir.Model, Outcome]:
    changed = model.clone()
    context = Context(stream=Samples(models.feeds(model, 32)) if samples else None)
    return changed, (recipe or StoreWeights()).apply(changed, context)


def one(
    body: str, header: str = "(float[N, 16] x) => (float[N, K] y)", **shapes: tuple[int, ...]
) -> ir.Model:
    return text(header, body, constants(6, **shapes))


CASES = {
    "conv": lambda: one(
        "y = Conv (x, w, b)", "(float[N, 8, 6, 6] x) => (float[N, 16, h, k] y)", w=(16, 8, 3, 3), b=(16,)
    ),
    "transposed": lambda: one(
        "y = ConvTranspose <group = 2> (x, w, b)", "(float[N, 8, 6, 6] x) => (float[N, 16, h, k] y)",
        w=(8, 8, 3, 3), b=(16,),
    ),
    "gemm": lambda: one("y = Gemm <transB = 1> (x, w, b)", w=(32, 16), b=(32,)),
    "gemm_plain": lambda: one("y = Gemm (x, w, b)", w=(16, 32), b=(32,)),
    "matmul": lambda: one("y = MatMul (x, w)", w=(16, 32)),
    "matmul_left": lambda: one("t = Transpose <perm = [1, 0]> (x) y = MatMul (w, t)", w=(32, 16)),
    "gru": lambda: one(
        "y, h = GRU <hidden_size = 12> (x, w, r, b)", "(float[5, N, 16] x) => (float[5, 1, N, 12] y)",
        w=(1, 36, 16), r=(1, 36, 12), b=(1, 72),
    ),
    "lstm": lambda: one(
        'y, h = LSTM <hidden_size = 12, direction = "bidirectional"> (x, w, r)',
        "(float[5, N, 16] x) => (float[5, 2, N, 12] y)", w=(2, 48, 16), r=(2, 48, 12),
    ),
    "gather": lambda: one("y = Gather (w, x)", "(int64[N] x) => (float[N, K] y)", w=(32, 16)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_runtime_sees_the_same_kernels_and_the_file_shrinks(name: str, tmp_path: Path) -> None:
    model = CASES[name]()
    changed, outcome = stored(model)
    assert outcome.modified
    assert not outcome.skipped
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    assert kernels(changed, tmp_path) == kernels(model, tmp_path)
    assert len(to_bytes(changed)) < len(to_bytes(model))
    feeds = {"x": np.arange(32)} if name == "gather" else models.feeds(model, 32)
    assert 0 < distance(model, changed, feeds) < 0.01


@pytest.mark.parametrize("name", sorted(models.ALL))
@pytest.mark.parametrize("samples", [True, False])
def test_every_tiny_model_stays_right(name: str, samples: bool) -> None:
    model = models.ALL[name]()
    before = to_bytes(model)
    changed, outcome = stored(model, samples=samples)
    assert to_bytes(model) == before
    assert outcome.modified == (to_bytes(changed) != before)
    assert len(to_bytes(changed)) <= len(before)
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    assert distance(model, changed, models.feeds(model, 32)) < 0.02


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("name", sorted(CASES))
def test_few_bits_are_packed_and_nothing_of_that_is_left_at_run_time(
    name: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepress.compressor.numerics.packing.UNPACKING_BYTES", -(10**6))
    model = CASES[name]()
    changed, outcome = stored(
        model, StoreWeights(weight_bits=bits), samples=name in ("conv", "gemm", "matmul")
    )
    assert outcome.modified
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    assert kernels(changed, tmp_path) == kernels(model, tmp_path)
    whole = [v for v in changed.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert all(v.const_value is not None and v.const_value.size < 64 for v in whole)
    feeds = {"x": np.arange(32)} if name == "gather" else models.feeds(model, 32)
    assert 0 < distance(model, changed, feeds) < 3 / 2**bits


def test_bits_of_a_site_overrule_those_of_all_and_pay_only_where_the_file_gets_smaller() -> None:
    model = one("m = MatMul (x, w) y = MatMul (m, v)", w=(16, 512), v=(512, 4))
    sizes = [
        len(to_bytes(stored(model, StoreWeights(bits=bits))[0])) for bits in ((), (("m", 4),), (("y", 4),))
    ]
    assert sizes[1] < sizes[0] - 16 * 512 // 2 + 500
    assert sizes[2] < sizes[0] - 512 * 4 // 2 + 500
    few = one("y = MatMul (x, w)", w=(16, 24))
    assert to_bytes(stored(few, StoreWeights(weight_bits=3))[0]) == to_bytes(stored(few)[0])


def test_large_models_are_a_quarter_of_their_size() -> None:
    model = one("y = MatMul (x, w)", w=(16, 4096))
    changed, _ = stored(model)
    assert len(to_bytes(changed)) < 0.33 * len(to_bytes(model))  # 16 weights share a scale
    tall = one("y = MatMul (x, w)", "(float[N, 4096] x) => (float[N, K] y)", w=(4096, 16))
    assert len(to_bytes(stored(tall)[0])) < 0.26 * len(to_bytes(tall))


def test_half_precision_stays_half_and_is_folded(tmp_path: Path) -> None:
    model = text(
        "(float16[N, 16] x) => (float16[N, 64] y)", "y = MatMul (x, w)", constants(2, np.float16, w=(16, 64))
    )
    changed, outcome = stored(model)
    assert outcome.modified
    assert "Mul" not in kernels(changed, tmp_path)
    assert changed.graph.outputs[0].dtype == ir.DataType.FLOAT16
    assert distance(model, changed, models.feeds(model, 8)) < 0.02


def test_small_weights_and_those_read_otherwise_stay() -> None:
    small = one("y = MatMul (x, w)", w=(16, 3))
    assert stored(small)[1].skipped == (Skipped("y", "it has fewer than 64 weights"),)
    little = one("y = MatMul (x, quite_a_long_name)", quite_a_long_name=(16, 4))
    assert stored(little)[1].skipped == (Skipped("y", "the file would not get smaller"),)
    other = one("m = MatMul (x, w) y = Add (m, w)", "(float[16, 16] x) => (float[16, 16] y)", w=(16, 16))
    assert not stored(other)[1].modified


def test_a_shared_table_is_stored_once() -> None:
    model = one(
        "e = Gather (w, x) y = MatMul (e, v) z = Gather (w, x)",
        "(int64[N] x) => (float[N, 32] y, float[N, 16] z)", w=(32, 16), v=(16, 32),
    )  # fmt: skip
    changed, outcome = stored(model)
    assert set(outcome.changed) == {"e", "y", "z"}
    assert sum(n.op_type == "Cast" for n in changed.graph) == 2
    assert distance(model, changed, {"x": np.arange(32)}) < 0.02


def test_the_user_and_the_recipe_can_leave_sites_out() -> None:
    model = CASES["gemm"]()
    for recipe in (StoreWeights(leave=("y",)), StoreWeights(sites=("^other$",))):
        changed, outcome = stored(model, recipe)
        assert outcome.skipped == (Skipped("y", "the recipe leaves it as it is"),)
        assert to_bytes(changed) == to_bytes(model)
    outcome = StoreWeights().apply(model.clone(), Context(leave=("y",)))
    assert outcome.skipped == (Skipped("y", "--leave names it"),)


def test_what_is_stored_is_not_stored_again() -> None:
    once, _ = stored(CASES["conv"]())
    again, outcome = stored(once)
    assert not outcome.modified
    assert to_bytes(again) == to_bytes(once)


def test_the_bias_takes_the_mean_error_up() -> None:
    model = CASES["conv"]()
    feeds = {"x": np.abs(models.feeds(model, 64)["x"]) + 3}
    reference = models.run(model, feeds)["y"].mean(axis=(0, 2, 3))
    plain, corrected = model.clone(), model.clone()
    StoreWeights().apply(plain, Context())
    StoreWeights().apply(corrected, Context(stream=Samples(feeds)))
    moved = [
        np.abs(models.run(m, feeds)["y"].mean(axis=(0, 2, 3)) - reference).max() for m in (plain, corrected)
    ]
    assert moved[1] < 0.05 * moved[0]


def test_clipped_scales_round_better_or_alike() -> None:
    model = CASES["matmul"]()
    weights = model.graph.initializers["w"].const_value.numpy()

    def error(recipe: StoreWeights) -> float:
        changed, _ = stored(model, recipe)
        q, scale = (changed.graph.initializers[n].const_value.numpy() for n in ("w_q", "w_scale"))
        return float(np.square(q * scale - weights).sum())

    assert error(StoreWeights(weight_ranges="mse")) <= error(StoreWeights())


def test_after_quantizing_only_float_weights_are_left_to_store(tmp_path: Path) -> None:
    model = one(
        "t, h = GRU <hidden_size = 16> (x, w, r) s = Squeeze (h, zero) y = MatMul (s, v)",
        "(float[5, N, 16] x) => (float[N, 32] y)", w=(1, 48, 16), r=(1, 48, 16), v=(16, 32),
    )  # fmt: skip
    zero = next(v for n in model.graph for v in n.inputs if v is not None and v.name == "zero")
    zero.const_value, zero.type, zero.shape = (
        ir.tensor(np.array([0]), name="zero"), ir.TensorType(ir.DataType.INT64), ir.Shape([1]),
    )  # fmt: skip
    model.graph.register_initializer(zero)
    changed = model.clone()
    samples = Context(
        stream=Samples({"x": np.random.default_rng(0).standard_normal((5, 8, 16)).astype(np.float32)})
    )
    assert Quantize().apply(changed, samples).changed == ("y",)
    outcome = StoreWeights().apply(changed, samples)
    assert len(outcome.changed) == 1
    found = kernels(changed, tmp_path)
    assert found["GRU"] == 1
    assert not {"Cast", "Mul"} & set(found)


@pytest.mark.parametrize("fields", [{"weight_bits": 9}, {"bits": (("y", 1),)}, {"sites": ("(",)}])
def test_impossible_parameters_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="store"):
        StoreWeights(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["w", "weights_of_the_first_layer"])
@pytest.mark.parametrize("half", [True, False])
def test_no_weight_is_stored_at_a_loss(name: str, half: bool) -> None:
    kind = "float16" if half else "float"
    for width in range(1, 12):
        model = text(
            f"({kind}[N, 16] x) => ({kind}[N, K] y)",
            f"y = MatMul (x, {name})",
            constants(1, np.float16 if half else np.float32, **{name: (16, width)}),
        )
        changed, outcome = stored(model, StoreWeights(min_elements=1))
        assert len(to_bytes(changed)) < len(to_bytes(model)) or not outcome.modified


@pytest.mark.parametrize(
    "step", [StoreWeights(min_elements=2), StoreWeights(4, min_elements=2), Cluster(8, min_elements=2)]
)
def test_models_from_before_broadcasting_are_raised_to_it(step: Pass) -> None:
    """Runtimes have no Mul of opset 6."""
    model = models.text(
        "(float[1, 32, 5, 5] x) => (float[1, 32, 7, 7] y)",
        "y = ConvTranspose(x, w)",
        models.constants(5, w=(32, 32, 3, 3)),
        opset=6,
        ir_version=4,
    )
    changed = model.clone()
    assert step.apply(changed, Context()).changed == ("y",)
    assert changed.opset_imports[""] >= 7
    feeds = models.feeds(model)
    assert oracles.close(models.run(model, feeds), models.run(changed, feeds), 0.2)
