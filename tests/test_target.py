"""A target that is not this machine: what counts then, where the verdict is made, and what is done without it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from clicase import Case
from onnx_ir.serde import to_proto

from edgepress.compressor.cli import away, host
from edgepress.compressor.errors import DeviceError
from edgepress.compressor.job import Host, Job
from edgepress.compressor.ondevice import FEWEST_ROWS, drawn, row_seconds
from edgepress.compressor.protocols import Array, Count, Feeds, Latency, ModelFile
from edgepress.compressor.report.build import build_report
from edgepress.compressor.report.html import render
from edgepress.compressor.report.record import Report, dump_report, load_report
from edgepress.compressor.report.words import device_text, headline
from edgepress.compressor.session import run
from edgepress.devices.base import DeviceTroubleError
from edgepress.runtime.engines.choose import is_tflite

ENGINE = host.CheckedEngine()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(to_proto(models.mlp(64)), path)
    return path


@dataclass
class Board:
    """Runs models here; what it gives is off by `error`, and upside down for models below `limit` bytes."""

    error: float = 0.0
    limit: int = 0
    how: str = "emulated"
    engine: str = "onnxruntime 1.0"
    cpu: str = "cortex-a72"
    runs_tflite: bool = False

    def run(self, given: Sequence[ModelFile], batches: Sequence[Feeds]) -> list[list[dict[str, Array]]]:
        return [[self.outputs(data, feeds) for feeds in batches] for data in given]

    def outputs(self, data: Any, feeds: Feeds) -> dict[str, Array]:
        sign = -1 if len(data) < self.limit else 1
        return {name: sign * values + self.error for name, values in ENGINE.load(data)(feeds).items()}


def counter(datas: Sequence[ModelFile], feeds: Feeds) -> list[Count]:
    """A byte an instruction, half of them multiply-adds."""
    sizes = [len(data) for data in datas if isinstance(data, bytes)]
    return [Count(size, size // 2, 0, 7, 3 * size, size / 2) for size in sizes]


def on(board: Board, **changed: Any) -> Host:
    plain = host.make_host("arm", 1, 0, 1.0, lambda *_: None)
    return replace(plain, board=board, counter=counter, memory=None, **changed)


def ran(model: Path, given: Host, **job: Any) -> Report:
    found = run(Job(model, data=rows64(1, 80), test=rows64(2, 60), formats=("onnx",), **job), given)
    return build_report(found)


def rows64(seed: int, count: int) -> dict[str, Any]:
    x = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    return {"x": x, "y": models.run(models.mlp(64), {"x": x})["y"].argmax(1)}


def test_instructions_are_the_cost_and_no_latency_is_told(model: Path) -> None:
    report = ran(model, on(Board()))
    size = report.compressed.size_bytes
    assert report.cost_kind == "instructions"
    assert size < report.baseline.size_bytes
    assert report.compressed.instructions is not None
    assert report.compressed.instructions.total == size
    assert report.compressed.instructions.heap_bytes == 3 * size
    chosen = next(c for c in report.candidates if c.kept)
    assert chosen.instructions_total == size
    assert all(c.instructions_total is None or c.latency_ns is None for c in report.candidates)
    assert all(p.instructions_total == p.size_bytes or p.number == 0 for p in report.front)
    document = json.loads(dump_report(report))
    for part in (document["baseline"], document["compressed"], *document["front"]):
        assert [value for name, value in part.items() if name.startswith("latency") and value] == []
    assert "fewer instructions on arm" in headline(report)
    page = render(report)
    assert "instructions, emulated" in page
    assert "its instructions are counted" in page


def test_what_executes_more_is_not_handed_over(model: Path) -> None:
    def dear(datas: Sequence[ModelFile], feeds: Feeds) -> list[Count]:
        return [
            replace(c, total=9 * 10**6 // c.total, predicted_ns=1e9 / c.total) for c in counter(datas, feeds)
        ]

    found = run(
        Job(model, data=rows64(1, 80), test=rows64(2, 60), formats=("onnx",)),
        replace(on(Board()), counter=dear),
    )
    assert found.best is not None
    assert found.best.recipe == ()


def test_each_model_is_counted_once(model: Path) -> None:
    asked: list[bytes] = []

    def counting(datas: Sequence[ModelFile], feeds: Feeds) -> list[Count]:
        asked.extend(data for data in datas if isinstance(data, bytes))
        return counter(datas, feeds)

    found = run(Job(model, data=rows64(1, 80), formats=("onnx",)), replace(on(Board()), counter=counting))
    names = {name for name in found.counts if not name.startswith(("input", "output", "fold"))}
    assert len(asked) == len(found.counts)
    assert len(names) > 2


def test_a_site_whose_float_kernel_executes_less_stays_in_float(model: Path) -> None:
    """One that 8 bits make dearer, among others that they make cheaper."""

    def counting(datas: Sequence[ModelFile], feeds: Feeds) -> list[Count]:
        totals = [sum(cost(place, integer) for place, integer in products(data)) for data in datas]
        return [Count(total, 0, 0, 0, None, float(total)) for total in totals]

    def cost(place: int, integer: bool) -> int:
        return (6000 if place == 0 else 1000) if integer else 5000

    job = Job(model, data=rows64(1, 80), test=rows64(2, 60), formats=("onnx",), budget=20.0)
    found = run(job, replace(on(Board()), counter=counting))
    assert found.best is not None
    assert isinstance(found.exported, bytes)
    assert "some sites in float" in found.best.label
    assert products(found.exported) == [(0, False), (1, True)]


def products(data: Any) -> list[tuple[int, bool]]:
    """Number of each product, and whether it reads 8-bit activations."""
    graph = onnx.load_from_string(data).graph
    weights = {tensor.name for tensor in graph.initializer}
    restored = {
        n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] not in weights
    }
    found = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    return [(place, node.input[0] in restored) for place, node in enumerate(found)]


def test_the_tflite_file_is_counted_and_judged_there_as_well(model: Path) -> None:
    """Off by so much there that all its answers are wrong; the verdict is the ONNX file's."""

    class Both(Board):
        def outputs(self, data: Any, feeds: Feeds) -> dict[str, Array]:
            if not is_tflite(data):
                return super().outputs(data, feeds)
            onnx_like = ENGINE.load(model.read_bytes())(feeds)
            return {name: -values for name, values in onnx_like.items()}

    found = run(
        Job(model, data=rows64(1, 80), test=rows64(2, 60), device_rows=30), on(Both(runs_tflite=True))
    )
    report = build_report(found)
    assert report.tflite is not None
    assert report.tflite.instructions is not None
    assert report.tflite.instructions.total == report.tflite.size_bytes
    assert report.tflite.score_on_device is not None
    assert report.compressed.score is not None
    assert report.tflite.score_on_device < 50 < report.compressed.score
    assert report.tflite.certificate is not None
    assert report.tflite.certificate.rows == 30, "on the rows that the device judged"
    assert not [w for w in report.warnings if "scores" in w], "here both files score alike"


def test_an_engine_there_that_refuses_the_tflite_file_costs_no_result(model: Path) -> None:
    class Refusing(Board):
        def outputs(self, data: Any, feeds: Feeds) -> dict[str, Array]:
            if is_tflite(data):
                raise DeviceError("it has another opinion")
            return super().outputs(data, feeds)

    found = run(Job(model, data=rows64(1, 80), test=rows64(2, 60)), on(Refusing(runs_tflite=True)))
    assert found.tflite_file is not None
    assert found.tflite is not None
    assert found.tflite.score_on_device is None
    assert "model.tflite does not run on arm: it has another opinion" in found.warnings


def test_the_verdict_is_the_devices(model: Path) -> None:
    """The result's answers are all wrong there, and right here."""
    report = ran(model, on(Board(limit=len(model.read_bytes()))))
    assert report.verdict == "broken"
    assert report.baseline.score == 100
    assert report.device is not None
    assert report.device.rows == report.device.rows_unseen == report.n_test == 60
    assert report.device.baseline.identical
    assert report.device.baseline.rows_changed == 0
    assert not report.device.compressed.identical
    assert report.device.compressed.score_here is not None
    assert report.compressed.score is not None
    assert report.device.compressed.score_here > 95 > report.compressed.score
    changed = report.device.compressed.rows_changed
    assert changed == round((report.device.compressed.score_here - report.compressed.score) * 0.6)
    assert "bit for bit" in device_text(report)
    assert f"{changed} rows count otherwise" in device_text(report)


def test_a_difference_that_changes_no_answer_is_told_all_the_same(model: Path) -> None:
    report = ran(model, on(Board(error=0.01)))
    assert report.verdict == "kept"
    assert report.device is not None
    for found in (report.device.baseline, report.device.compressed):
        assert not found.identical
        assert found.rows_changed == 0
        assert found.largest_percent is not None
        assert 0.01 < found.largest_percent < 1
    assert "no rows count otherwise" in device_text(report)


def test_a_metric_of_outputs_alone_is_scored_there(model: Path) -> None:
    found = run(
        Job(model, data=rows64(1, 80)["x"], test=rows64(2, 60)["x"], metric="fidelity", formats=("onnx",)),
        on(Board(error=0.5)),
    )
    report = build_report(found)
    assert report.baseline.score == 1, "the original there agrees with itself there"


def test_few_rows_are_drawn_where_each_takes_long(model: Path) -> None:
    job = Job(model, data=rows64(1, 80), test=rows64(2, 60), formats=("onnx",), device_rows=25)
    found = run(job, on(Board()))
    report = build_report(found)
    assert found.test is not None
    assert report.device is not None
    assert (report.n_test, report.device.rows, report.device.rows_unseen) == (25, 25, 60)
    assert "25 of 60 unseen rows" in device_text(report)
    assert drawn(found.test, None, 0.0, 0).rows == 60
    assert drawn(found.test, None, 100.0, 0).rows == min(FEWEST_ROWS, 60)
    one, two, other = (drawn(found.test, 30, 1.0, seed).index.tolist() for seed in (0, 0, 1))
    assert one == two != other


def test_float_arithmetic_takes_longest_to_emulate() -> None:
    count = Count(1000, 0, 100, 0, None, 1.0)
    assert row_seconds((count, None), (None, None)) < row_seconds(
        (replace(count, fma=500), None), (None, None)
    )
    assert row_seconds((None, None), (Latency(2e9, (2e9, 2e9), ()), None)) == 2.0


def test_a_core_that_cannot_be_emulated_is_predicted_and_that_is_said(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(host.NO_DEVICE)
    monkeypatch.setattr(away, "device_of", refusing("no emulator", "apt-get install qemu-user"))
    told = case.compress("--quiet", "--json")
    assert told.code == 0, told.err
    report = load_report(case.out / "report.json")
    assert (report.cost_kind, report.device) == ("predicted", None)
    said = [w for w in report.warnings if "cannot be emulated" in w]
    assert len(said) == 1
    assert "apt-get install qemu-user" in said[0]


def test_without_the_device_nobody_asks_for_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(host.NO_DEVICE)
    monkeypatch.setattr(away, "device_of", refusing("must not be asked", ""))
    assert case.compress("--no-device").code == 0
    report = load_report(case.out / "report.json")
    assert report.cost_kind == "predicted"
    assert not [w for w in report.warnings if "emulated" in w]


@pytest.mark.parametrize("way", ['address = "board"', 'transport = "qemu"'])
def test_a_device_that_the_user_set_up_must_answer(
    case: Case, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    Path("shelf.toml").write_text(f'base = "arm"\n{way}\n', encoding="utf-8")
    monkeypatch.delenv(host.NO_DEVICE)
    monkeypatch.setattr(away, "device_of", refusing("shelf does not answer", "is it on?"))
    told = case.compress(target="shelf.toml")
    assert told.code == 3
    assert "shelf does not answer" in told.err
    assert not case.out.exists()
    assert case.compress("--no-device", target="shelf.toml").code == 0


def refusing(message: str, hint: str) -> Any:
    def device_of(*given: Any) -> Any:
        raise DeviceTroubleError(message, hint)

    return device_of
