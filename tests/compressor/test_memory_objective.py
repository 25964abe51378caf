"""`--objective memory`: what it minimises, how that is predicted, and what the allocation makes of it."""

import json
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from clicase import Case, rows
from models import constants, text

from edgepress.compressor.allocate import Descent, Knob, Layer, Weighing
from edgepress.compressor.choice import Candidate, chosen, worth
from edgepress.compressor.cli import host
from edgepress.compressor.finish import make_scale
from edgepress.compressor.job import Job
from edgepress.compressor.layers import unchanged
from edgepress.compressor.passes import Pass, StoreWeights
from edgepress.compressor.passes.base import Context
from edgepress.compressor.predict import predicted_memory_bytes
from edgepress.compressor.report.record import load_report
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.session import look
from edgepress.runtime.engines.ort import OrtEngine

ORIGINAL = Candidate("original", (), data=b"x" * 1000, latency_ns=100.0, memory_bytes=5_000_000)


def made(size: int, ns: float, memory: int) -> Candidate:
    return replace(ORIGINAL, label="made", data=b"y" * size, latency_ns=ns, memory_bytes=memory)


def test_memory_decides_and_its_noise_does_not() -> None:
    lean, small = made(900, 99.0, 2_500_000), made(300, 50.0, 4_000_000)
    assert worth(lean, ORIGINAL, "memory") < worth(small, ORIGINAL, "memory") < 0
    one, other = made(600, 90.0, 2_520_000), made(500, 90.0, 2_540_000)
    assert worth(other, ORIGINAL, "memory") < worth(one, ORIGINAL, "memory")


def test_what_takes_more_memory_is_out_only_where_that_is_asked_for() -> None:
    hungry = made(100, 50.0, 6_000_000)
    assert [c.kept for c in chosen([ORIGINAL, hungry], "memory")] == [True, False]
    assert chosen([ORIGINAL, hungry], "memory")[1].why == "takes more memory than the original"
    assert [c.kept for c in chosen([ORIGINAL, hungry], "size")] == [False, True]
    assert [c.kept for c in chosen([ORIGINAL, made(100, 50.0, 5_050_000)], "memory")] == [False, True]


def predicted(model: ir.Model) -> int:
    engine = OrtEngine()
    return predicted_memory_bytes(model, shapes_in_one_run(model, engine, models.feeds(model, 1)))


def test_predicted_memory_is_weights_and_the_widest_pair_of_activations() -> None:
    weights = constants(0, w1=(6, 50), w2=(50, 30), w3=(30, 2))
    model = text(
        "(float[N, 6] x) => (float[N, 2] y)", "h = MatMul(x, w1) a = Relu(h) g = MatMul(a, w2) y = MatMul(g, w3)",
        weights,
    )  # fmt: skip
    assert predicted(model) == 4 * (6 * 50 + 50 * 30 + 30 * 2) + 4 * (50 + 50)


@pytest.mark.parametrize(
    "step", [StoreWeights(min_elements=1), StoreWeights(min_elements=1, bits=(("w1", 4),))]
)
def test_weights_that_are_unpacked_at_load_take_what_they_took(step: Pass) -> None:
    model = models.mlp(64)
    before = predicted(model)
    assert step.apply(model, Context(None, oracles.Board(), 0, ())).modified
    assert predicted(model) == pytest.approx(before, rel=0.02)


def test_memory_is_weighed_once_and_stored_weights_hold(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(ir.to_proto(models.mlp(32)).SerializeToString())
    asked: list[int] = []

    def measured(data: object, feeds: object) -> int:
        asked.append(1)
        return 70 + len(asked)

    plain = host.make_host("arm", 1, 0, 1.0, lambda *_: None)
    job = Job(path, data=rows(1, 80), test=rows(2, 60), memories={"known": 5})
    found, _ = look(job, replace(plain, memory=measured))
    scale = make_scale(found)
    assert [scale("known", b""), scale("a", b""), scale("a", b""), scale("b", b"")] == [5, 71, 71, 72]
    assert found.memories == {"known": 5, "a": 71, "b": 72}
    alone, _ = look(job, replace(plain, memory=None))
    data = path.read_bytes()
    assert make_scale(alone)("a", data) == predicted(models.mlp(32))


def test_the_path_of_memory_goes_where_activations_are() -> None:
    """One layer has many weights at one position, the other few at many."""
    dense = Layer("dense", 64, 0, 64, -1, 0.0, 1.0, 1, 0, -1)
    wide = Layer("wide", 64, 1, 4, -1, 0.0, 1.0, 400, 0, -1)
    knobs = [Knob("width", name, 64, (32,), (0.1,)) for name in ("dense", "wide")]

    def first(held: float) -> tuple[int, ...]:
        how = Weighing(0.0, 1.0, "float", 4, held)
        return Descent([dense, wide], knobs, oracles.Board(), how, (1.0, 1.0)).path()[1]

    assert first(0.0) == (32, 64)
    assert first(1.0) == (64, 32)


def test_bits_take_no_less_memory_and_integers_a_quarter() -> None:
    layer = Layer("a", 64, -1, 64, -1, 0.0, 0.0, 1, 0, -1, 0)
    bits = Knob("bits", "a", 8, (4,), (0.1,))

    def size(state: int, integer: bool, held: float = 1e-9) -> float:
        how = Weighing(0.0, 1.0, "int8" if integer else "float", 4, held)
        return float(Descent([layer], [bits], oracles.Board(), how, (0.0, 0.0)).costs((state,), [0])[1])

    assert size(8, False) == size(4, False)
    assert size(8, False) - size(8, True) == pytest.approx(3 * 64 * 64)
    assert size(4, False, 0.0) < size(8, False, 0.0)


def test_sites_outputs_stand_for_the_peak() -> None:
    model = models.cnn()
    shapes = shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1))
    (_, weights), held = unchanged(model, shapes, oracles.Board())
    outputs = {"Conv", "Gemm", "MatMul"}
    total = sum(
        4 * int(np.prod(shapes[n.outputs[0].name or ""])) for n in model.graph if n.op_type in outputs
    )
    alive = predicted_memory_bytes(model, shapes) - sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )
    assert held * total == pytest.approx(alive)
    assert weights >= 1000


def test_the_result_takes_less_and_stored_weights_choose_again(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "memory_peak_bytes", lambda model, *_, **__: 1000 * len(model))
    words = ("--objective", "memory", "--timings", "t.json", "--budget", 5)
    assert case.compress(*words).code == 0
    report = load_report(case.out / "report.json")
    (kept,) = [row for row in report.candidates if row.kept]
    assert kept.memory_peak_bytes == 1000 * (case.out / "model.onnx").stat().st_size
    timed = [row for row in report.candidates if row.memory_peak_bytes is not None]
    assert kept.memory_peak_bytes == min(row.memory_peak_bytes or 0 for row in timed)
    first, stored = (case.out / "model.onnx").read_bytes(), json.loads(Path("t.json").read_text())
    monkeypatch.setattr(host, "memory_peak_bytes", lambda *_, **__: 7)
    assert case.compress(*words).code == 0
    assert (case.out / "model.onnx").read_bytes() == first
    assert json.loads(Path("t.json").read_text())["memory_bytes"] == stored["memory_bytes"]
