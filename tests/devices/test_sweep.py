"""The sweep with a clock of its own: what it asks for, what it makes of the answers; and its models in the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest

from edgepress.devices import sweep as module
from edgepress.devices import there
from edgepress.devices.kernels import INPUT, LONG, SHORT, layers, row
from edgepress.devices.profile import load_profile
from edgepress.devices.sweep import GRIDS, Grid, clock_of, measured_spec, sweep
from edgepress.devices.table import KINDS
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.record import Measurement

SESSION, NODE = 4000.0, 100.0
TINY = (
    Grid("node", (1,), (1,), (1,)),
    Grid("add", (1,), (1,), (16, 256)),
    Grid("quantize", (1,), (1,), (16,)),
    Grid("conv", (1, 4), (16,), (16, 64)),
    Grid("depthwise", (1,), (8, 16), (16,)),
    Grid("product", (8, 16), (8,), (1, 4)),
)
OPS = {"Conv": 7.0, "Gemm": 5.0, "Add": 3.0, "QuantizeLinear": 2.0}
"""Nanoseconds of an element that comes out, by operator, on the machine of these tests."""


@dataclass
class Machine:
    """Times models by counting what is in them; `slow` by group."""

    slow: Sequence[float] = (1.0,)
    asked: list[int] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, models: Sequence[bytes], feeds: Any, **options: Any) -> list[Measurement]:
        factor = self.slow[len(self.asked) % len(self.slow)]
        self.asked.append(len(models))
        self.options.append(options)
        assert feeds[INPUT].shape == (1,)
        return [measurement(factor * self.time(onnx.load_from_string(model))) for model in models]

    def time(self, model: onnx.ModelProto) -> float:
        shapes = sizes_of(model)
        total = SESSION
        for node in model.graph.node:
            if node.op_type in ("Conv", "Gemm", "Add", "Neg", "MaxPool", "Slice", "QuantizeLinear"):
                total += NODE + OPS.get(node.op_type, 0.0) * shapes[node.output[0]]
        return total


def sizes_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    return {
        value.name: int(np.prod([d.dim_value for d in value.type.tensor_type.shape.dim])) for value in values
    }


def measurement(ns: float) -> Measurement:
    return Measurement(ns, (ns, ns), (int(ns),), ns, False, 0, 1)


X86 = load_profile("x86")


def test_a_sweep_finds_what_each_layer_takes_and_nothing_else() -> None:
    """Neither the session, nor the cut behind a layer, nor the pairs around it are in its time."""
    machine = Machine()
    table = sweep(X86, grids=TINY, timer=machine)
    assert table.ns("node", "fp32") == pytest.approx(NODE)
    assert table.ns("run", "fp32") == pytest.approx(SESSION)
    assert table.ns("add", "fp32", 1, 1, 256) == pytest.approx(NODE + 3 * 256)
    assert table.ns("quantize", "fp32", 1, 1, 16) == pytest.approx(NODE + 2 * 16)
    assert table.ns("conv", "fp32", 36, 16, 64) == pytest.approx(NODE + 7 * 16 * 64)
    assert table.ns("conv", "int8", 36, 16, 64) == pytest.approx(2 * NODE + 9 * 16 * 64)
    assert table.ns("depthwise", "fp32", 9, 8, 16) == pytest.approx(NODE + 7 * 8 * 16)
    assert table.ns("product", "fp32", 16, 8, 4) == pytest.approx(NODE + 5 * 8 * 4)
    assert table.ns("sigmoid", "fp32") is None


def test_a_sweep_on_this_machine_makes_a_profile() -> None:
    """With the engine, in next to no time: figures are rough, but all there."""
    table = sweep(X86, grids=TINY, time_limit_s=0.05)
    kinds = {(kernel.kind, kernel.precision) for kernel in table.kernels}
    assert {
        ("conv", "fp32"),
        ("conv", "int8"),
        ("product", "int8"),
        ("quantize", "fp32"),
        ("run", "fp32"),
    } <= kinds
    assert measured_spec(X86, table).macs_per_ns_int8 > 0


def test_what_is_timed_while_the_machine_is_slow_is_set_right() -> None:
    quiet, busy = (sweep(X86, grids=TINY, timer=Machine(slow)) for slow in ((1.0,), (1.0, 3.0, 1.0, 1.0)))
    for one, two in zip(quiet.kernels, busy.kernels, strict=True):
        np.testing.assert_allclose(one.ns, two.ns, rtol=1e-3)


def test_layers_that_would_take_too_long_get_the_throughput_of_smaller_ones() -> None:
    slow, machine = replace(X86, macs_per_ns_fp32=9 * 16 * 16 / module.DEAREST_NS), Machine()
    kernel = next(k for k in sweep(slow, grids=TINY, timer=machine).kernels if k.kind == "conv")
    assert kernel.ns[0][0][1] == pytest.approx(4 * kernel.ns[0][0][0])
    assert kernel.ns[1][0][0] > 0, "the least positions are timed whatever they cost"
    all_of_it = Machine()
    sweep(X86, grids=TINY, timer=all_of_it)
    assert sum(machine.asked) < sum(all_of_it.asked)


def test_time_is_parted_and_the_rounds_are_told_how_to_run() -> None:
    machine, told = Machine(), []
    sweep(X86, grids=TINY, timer=machine, time_limit_s=60, threads=2, progress=lambda *w: told.append(w))
    shares = [share for share, _ in told]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] < 1
    assert {what for _, what in told} == {grid.kind for grid in TINY} - {"quantize"}
    limits = [options["time_limit_s"] for options in machine.options]
    assert limits[0] == pytest.approx(60 / len(limits), rel=0.1)
    assert all(options["threads"] == 2 and options["clock"] is clock_of(2) for options in machine.options)


def test_rates_follow_from_the_table() -> None:
    table = sweep(X86, grids=TINY, timer=Machine())
    spec = measured_spec(X86, table)
    assert spec.macs_per_ns_fp32 == pytest.approx(36 * 16 * 64 / (NODE + 7 * 16 * 64), rel=1e-3)
    assert spec.macs_per_ns_int8 < spec.macs_per_ns_fp32
    assert spec.bytes_per_ns == pytest.approx(4 * 16 * 8 / (NODE + 5 * 8), rel=1e-3)
    assert (spec.node_overhead_ns, spec.table, spec.cpu) == (NODE, table, X86.cpu)


@pytest.mark.parametrize("activation", ["uint8", "int8"])
@pytest.mark.parametrize("integer", [False, True])
def test_all_models_run_and_grow_by_equal_layers(activation: str, integer: bool) -> None:
    feeds, engine = {INPUT: np.ones(1, np.float32)}, OrtEngine()
    for kind in ("conv", "pointwise", "depthwise", "product"):
        outputs = 4 if kind == "depthwise" else 8
        one, three = (layers(kind, activation, 4, outputs, 9, n, integer=integer) for n in (1, 3))
        added = len(onnx.load_from_string(three).graph.node) - len(onnx.load_from_string(one).graph.node)
        assert added % 2 == 0, kind
        (y,) = engine.load(three)(feeds).values()
        assert y.shape[1] == 3 * outputs
    for kind in ("add", "sigmoid", "pool", "quantize", "node"):
        for values in (1, 16, 64):
            for count in (SHORT, LONG):
                (y,) = engine.load(row(kind, activation, values, count, integer=integer))(feeds).values()
                assert y.size == values


def test_what_is_swept_are_kinds_of_the_table_and_squares() -> None:
    assert {grid.kind for grid in GRIDS} == set(KINDS) - {"run"}
    for grid in GRIDS:
        if grid.kind in ("conv", "pointwise", "depthwise"):
            assert all(round(p**0.5) ** 2 == p for p in grid.positions)
        if grid.kind in ("add", "sigmoid", "quantize", "pool"):
            assert all(16 * round((p / 16) ** 0.5) ** 2 == p for p in grid.positions)


@dataclass
class There:
    """An open device that counts a hundred instructions a byte, or times a nanosecond a byte."""

    timed: bool
    name: str = "there"
    python: tuple[str, ...] = ("python3",)


@pytest.mark.parametrize("timed", [True, False])
def test_models_of_a_sweep_go_to_another_device(monkeypatch: pytest.MonkeyPatch, timed: bool) -> None:
    spec = load_profile("cortex-a72")

    class Worker:
        def __init__(self, device: There) -> None:
            assert device.timed == timed

        def time(self, files: Sequence[Any], feeds: Any, **options: Any) -> Any:
            assert len(feeds) == len(files)
            return [measurement(float(file.stat().st_size)) for file in files], None

        def ask(self, task: str, files: Sequence[Any], feeds: Any, **options: Any) -> Any:
            assert task == "count"
            rows = [{"instructions_total": 100 * file.stat().st_size} for file in files]
            return type("Answer", (), {"result": rows})

    monkeypatch.setattr(there, "RemoteWorker", Worker)
    measure = there.timer_there(There(timed), spec)  # type: ignore[arg-type]
    found = measure(
        [b"abc", b"d"], {}, threads=1, time_limit_s=1.0, precision=0.01, min_rounds=1, clock=lambda: 0
    )
    wanted = [3.0, 1.0] if timed else [spec.ns_of(300), spec.ns_of(100)]
    assert [each.median_ns for each in found] == pytest.approx(wanted)


def test_larger_layers_are_run_where_that_is_asked_for() -> None:
    grids = (TINY[0], Grid("conv", (64,), (64,), (16, 196)))
    few, many = Machine(), Machine()
    sweep(X86, grids=grids, timer=few, dearest_ns=1.0)
    sweep(X86, grids=grids, timer=many, dearest_ns=1e9)
    assert len(many.asked) == len(few.asked) + 1
