"""Counts of work and memory, by hand and by what arithmetic says."""

import itertools
from typing import Any

import models
import models_core
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from models import constants, text

from edgepress.compressor.cost import kernel_ns, node_costs, peak_activation_bytes, positions, total_macs
from edgepress.compressor.model import parameters
from edgepress.compressor.passes import Dynamic, Pass, StoreWeights, WeightOnly
from edgepress.compressor.passes.base import Context
from edgepress.compressor.predict import predicted_ns
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.sites import find_sites
from edgepress.runtime.engines.ort import OrtEngine, OrtRunner


def shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return dict(shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1)))


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("mlp", 6 * 8 + 8 * 4),
        ("matmul", 3 * (6 * 8 + 8 * 4)),
        ("cnn", 64 * 4 * 2 * 9 + 16 * 8 * 4 * 9 + 8 * 3),
        ("depthwise", 36 * (4 * 8 + 8 * 9 + 8 * 4)),
        (
            "conv_transpose",
            16 * 4 * 16 + 16 * 4 * 16,
        ),  # each input of a transposed one meets the whole kernel
        ("conv1d", 10 * 6 * 2 * 3 + 6 * 3),
    ],
)
def test_multiply_accumulates(name: str, macs: int) -> None:
    model = models.ALL[name]()
    assert total_macs(model, shapes(model)) == macs


@pytest.mark.parametrize("name", sorted(models_core.ALL))
def test_sites_cost_positions_times_weights(name: str) -> None:
    model = models_core.ALL[name]()
    known = shapes(model)
    costs = node_costs(model, known, oracles.Board())
    assert len(costs) == len(list(model.graph))
    by_name = {c.name: c for c in costs}
    for site in find_sites(model):
        rows = 6 if name == "column_bias" else 1  # a batch of six that cannot be less
        assert by_name[site.name].macs == positions(site, known) * site.macs_per_position * rows or rows > 1
        assert by_name[site.name].weight_bytes >= site.weight.nbytes
    assert sum(c.macs for c in costs) == total_macs(model, known)
    assert all(c.latency_ns >= 100.0 for c in costs)
    assert all(c.latency_ns == 0 for c in node_costs(model, known, None))


def test_parameters_of_nodes_are_those_of_the_model() -> None:
    for name in ("mlp", "cnn", "residual"):
        model = models.ALL[name]()
        assert sum(c.parameters for c in node_costs(model, shapes(model), None)) == parameters(model)


def test_the_peak_is_what_must_be_held_at_once() -> None:
    model = text(
        "(float[N, 4] x) => (float[N, 2] y)",
        "a = Gemm <transB = 1> (x, w1) b = Relu(a) c = Gemm <transB = 1> (b, w2) y = Add(c, c)",
        constants(1, w1=(10, 4), w2=(2, 10)),
    )
    assert peak_activation_bytes(model, shapes(model)) == 4 * 20  # a and b together


def test_the_peak_of_a_residual_holds_the_skipped_value() -> None:
    model = models.residual()
    known = shapes(model)
    one = 4 * 8 * 36
    assert peak_activation_bytes(model, known) == 3 * one  # r0 while c1 becomes r1


def test_peaks_are_those_of_a_slow_count() -> None:
    for name in ("concat", "two_inputs", "depthwise", "attention"):
        model = models_core.ALL[name]()
        known = shapes(model)
        nodes = list(model.graph)
        peak = 0
        for index in range(len(nodes)):
            before = {*model.graph.inputs, *itertools.chain(*(n.outputs for n in nodes[: index + 1]))}
            later = {v for n in nodes[index:] for v in n.inputs if v is not None} | set(model.graph.outputs)
            held = [v for v in before if v in later or v in nodes[index].outputs]
            peak = max(peak, sum(4 * int(np.prod(known[v.name or ""])) for v in held))
        first = sum(4 * int(np.prod(known[v.name or ""])) for v in model.graph.inputs)
        assert peak_activation_bytes(model, known) == max(peak, first)


def test_integers_are_faster_and_more_is_slower() -> None:
    board = oracles.Board()
    assert kernel_ns(board, 1000, 10, integer=True) < kernel_ns(board, 1000, 10, integer=False)
    assert kernel_ns(board, 2000, 10, integer=True) > kernel_ns(board, 1000, 10, integer=True)
    assert kernel_ns(board, 1000, 20, integer=True) > kernel_ns(board, 1000, 10, integer=True)


def test_quantized_nodes_are_costed_as_integers() -> None:
    from edgepress.compressor.passes import Quantize

    model = models.cnn()
    changed = model.clone()
    Quantize().apply(changed, oracles.context(model))
    before, after = (
        {c.name: c for c in node_costs(m, shapes(m), oracles.Board(bytes_per_ns=1e9))}
        for m in (model, changed)
    )
    assert after["c2"].macs == before["c2"].macs
    assert after["c2"].latency_ns < before["c2"].latency_ns


def test_activations_of_16_bits_are_not_costed_as_fast_integers() -> None:
    from edgepress.compressor.passes import Quantize

    model, board = models.cnn(), oracles.Board(bytes_per_ns=1e9)
    wide, narrow = model.clone(), model.clone()
    Quantize(activation_bits=16).apply(wide, oracles.context(model))
    Quantize().apply(narrow, oracles.context(model))
    plain, slow, fast = (predicted_ns(m, shapes(m), board) for m in (model, wide, narrow))
    assert fast < slow
    assert plain < slow


def test_unpacked_weights_are_not_run_for_their_shape() -> None:
    model, feeds = models.mlp(64), models.feeds(models.mlp(64), 1)
    StoreWeights(min_elements=1).apply(model, Context())
    asked: list[str] = []

    class Spy(OrtEngine):
        def load(self, model: Any, threads: int = 1, *, optimise: bool = True) -> OrtRunner:
            runner = super().load(model, threads, optimise=optimise)
            asked.extend(runner.output_names)
            return runner

    known = shapes_in_one_run(model, Spy(), feeds)
    assert known["w1"] == (64, 6)  # made by a Mul now
    assert known["h"] == known["a"] == (1, 64)
    assert set(asked) == {"h", "a", "y"}


@pytest.mark.parametrize("step", [Dynamic(min_elements=2), WeightOnly(min_elements=2)])
@pytest.mark.parametrize("name", ["mlp", "matmul"])
def test_integer_products_cost_what_float_ones_do(
    name: str, step: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{type(step).__module__}.OVERHEAD", -(10**6))
    model, known = models.ALL[name](), shapes(models.ALL[name]())
    changed = model.clone()
    assert step.apply(changed, Context()).changed == ("h", "y" if name == "mlp" else "g")
    seen = shapes(changed)
    assert total_macs(changed, seen) == total_macs(model, known)
    fast, slow = oracles.Board(macs_per_ns_int8=10.0), oracles.Board(macs_per_ns_int8=0.001)
    for board in (fast, slow):
        costs = {cost.name: cost for cost in node_costs(changed, seen, board)}
        assert (costs["h"].latency_ns > 10_000) == (board is slow)


def test_what_the_kernel_of_a_dynamic_product_does_is_not_predicted_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgepress.compressor.passes.dynamic.OVERHEAD", -(10**6))
    model = models.ALL["matmul"]()
    Dynamic(min_elements=2).apply(model, Context())
    known = shapes(model)
    board = oracles.Board(node_overhead_ns=1e6)
    # DynamicQuantizeLinear and MatMulInteger twice, and Add, Relu, Add
    assert round(predicted_ns(model, known, board) / 1e6) == 2 * 2 + 3
