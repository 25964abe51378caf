"""`compress bench`, and `compress devices show|check|add`: here, over a real sshd, and on scripted devices."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import models
import onnx
import pytest
import sshd
from clicase import Case
from onnx import external_data_helper

from edgepress.compressor.cli import bench as module
from edgepress.compressor.cli import boards, targets
from edgepress.compressor.cli import devices as listing
from edgepress.compressor.export.sparse import from_model, write_sparse
from edgepress.compressor.model import to_proto
from edgepress.compressor.report import bench as record
from edgepress.compressor.report.bench import Bench, verdict_on
from edgepress.devices.base import Completed, DeviceTroubleError
from edgepress.devices.profile import load_profile
from edgepress.runtime.environment import describe


@pytest.fixture
def own(case: Case, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's profiles."""
    folder = case.folder / "settings" / "devices"
    for each in (targets, listing, boards):
        monkeypatch.setattr(each, "user_profiles", lambda: [folder])
    return folder


@pytest.fixture
def board(case: Case, own: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sshd.Server]:
    """A board by the name of `board`, over a real sshd."""
    path = case.folder / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path), prepend=":")
    server = sshd.make_server(case.folder, path)
    server.start()
    try:
        yield server
        assert server.left() == []
    finally:
        server.stop()


def timed(case: Case, *words: object) -> Bench:
    found = case.run("bench", *words, "--seconds", 0.2, "--json", "times.json")
    assert found.code == 0, found.err
    return Bench.model_validate_json(Path("times.json").read_bytes())


def wide(folder: Path, width: int) -> Path:
    path = folder / f"wide{width}.onnx"
    onnx.save(to_proto(models.mlp(width)), path)
    return path


def test_models_here_are_timed_against_the_first(case: Case) -> None:
    large = wide(case.folder, 4096)
    found = timed(case, large, case.model, "--data", "calib.npz")
    first, second = found.models
    assert (found.device, found.transport, found.cpu) == ("local", "local", describe().cpu)
    assert (first.verdict, first.ratio, second.verdict) == ("first", 1.0, "faster")
    assert second.ratio is not None
    assert second.ratio_ci95 is not None
    assert second.ratio_ci95[0] <= second.ratio <= second.ratio_ci95[1] < 1
    assert len(first.samples_ns) == len(second.samples_ns) >= 3
    assert second.latency_ns_median is not None
    assert second.latency_ns_p90 is not None
    assert 0 < second.latency_ns_median <= second.latency_ns_p90
    assert (first.engine, first.instructions_total) == ("onnxruntime", None)
    assert first.size_bytes == large.stat().st_size


def test_two_copies_are_no_different_whatever_the_form(case: Case) -> None:
    (case.folder / "copy.onnx").write_bytes(case.model.read_bytes())
    assert case.run("export", "model.onnx").code == 0
    found = case.run("bench", "model.onnx", "copy.onnx", "model.tflite", "--seconds", 2, "--json", "-")
    assert found.code == 0, found.err
    rows = Bench.model_validate_json(found.out).models
    assert rows[1].verdict in ("no difference", "too noisy to tell")
    assert [row.engine for row in rows] == ["onnxruntime", "onnxruntime", "litert"]
    assert rows[2].latency_ns_median is not None


def test_a_sparse_file_is_timed_beside_its_model(case: Case) -> None:
    model = models.mlp(64)
    onnx.save(to_proto(model), case.folder / "mlp.onnx")
    write_sparse(from_model(model), case.folder / "mlp-sparse.npz")
    first, second = timed(case, "mlp.onnx", "mlp-sparse.npz").models
    assert (first.engine, second.engine) == ("onnxruntime", "sparse")
    assert second.size_bytes == Path("mlp-sparse.npz").stat().st_size
    assert second.latency_ns_median is not None
    assert second.ratio is not None
    (split,) = timed(case, "mlp-sparse.npz", "--per-layer").models
    assert (split.layers, "no profiler" in split.layers_reason) == (None, True)


def test_the_table_says_what_was_found(case: Case) -> None:
    found = case.run("bench", wide(case.folder, 4096).name, "model.onnx", "--seconds", 0.2)
    assert found.code == 0, found.err
    assert "wide4096.onnx" in found.out
    assert "faster" in found.out
    assert any(bar in found.out for bar in "▁▂▃▄▅▆▇█#@*")
    assert case.run("bench", "model.onnx", "--seconds", 0.1, "--quiet").out == ""


def test_external_data_travel_with_their_model(case: Case) -> None:
    proto = to_proto(models.mlp(64))
    external_data_helper.convert_model_to_external_data(proto, location="weights.bin", size_threshold=0)
    onnx.save(proto, case.folder / "outside.onnx")
    found = timed(case, "outside.onnx")
    assert found.models[0].size_bytes > Path("weights.bin").stat().st_size


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ((0.5, 0.6), "faster"),
        ((1.02, 1.4), "slower"),
        ((0.995, 1.004), "no difference"),
        ((0.98, 0.995), "no difference"),
        ((0.9, 1.05), "too noisy to tell"),
    ],
)
def test_verdicts(interval: tuple[float, float], says: str) -> None:
    assert verdict_on(interval) == says


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("missing.onnx",), 2, "missing.onnx"),
        (("missing.tflite",), 2, "no such file"),
        (("model.onnx", "--device", "no-such"), 2, "unknown device profile"),
        (("model.onnx", "--data", "missing.npz"), 2, "missing.npz"),
        (("broken.tflite",), 3, "cannot load"),
        (("missing.npz",), 2, "no such file"),
        (("calib.npz",), 3, "no sparse model"),
        (("model.onnx", "--device", "./far.toml"), 3, "nothing can run on far"),
        ((), 2, "MODELS"),
    ],
)
def test_what_cannot_be_timed(case: Case, words: tuple[str, ...], code: int, says: str) -> None:
    Path("broken.tflite").write_bytes(b"    TFL3 nonsense")
    Path("far.toml").write_text('base = "arm"\ncpu = "cortex-x9"\n', encoding="utf-8")
    found = case.run("bench", *words)
    assert (found.code, found.out) == (code, "")
    assert says in found.err
    assert "Traceback" not in found.err


@sshd.needs_sshd
def test_a_board_is_added_checked_and_timed_on(case: Case, own: Path, board: sshd.Server) -> None:
    python = sshd.PYTHON[0]
    added = case.run("devices", "add", "shelf", "--address", "board", "--python", python)
    assert added.code == 0, added.err
    assert "--device shelf" in added.out
    spec = load_profile("shelf", [own])
    machine = describe()
    assert (spec.transport, spec.address, spec.python) == ("ssh", "board", python)
    assert (spec.arch, spec.cpu) == (machine.arch, machine.cpu.lower())
    checked = case.run("devices", "check", "shelf")
    assert checked.code == 0, checked.err
    assert "shelf (ssh board) answers" in checked.out
    assert machine.cpu in checked.out
    assert f"onnxruntime {machine.engines['onnxruntime']}" in checked.out
    shown = case.run("devices", "show", "shelf")
    (case.folder / "again.toml").write_text(shown.out, encoding="utf-8")
    assert load_profile(str(case.folder / "again.toml")).address == "board"
    found = timed(case, "model.onnx", "model.onnx", "--device", "shelf")
    assert (found.device, found.transport, len(found.models)) == ("shelf", "ssh", 2)
    assert found.models[0].layers is None
    write_sparse(from_model(models.mlp()), case.folder / "mlp-sparse.npz")
    assert timed(case, "mlp-sparse.npz", "--device", "shelf").models[0].engine == "sparse"
    (split,) = timed(case, "model.onnx", "--device", "shelf", "--per-layer").models
    assert split.layers
    again = case.run("devices", "add", "shelf", "--address", "board", "--python", python)
    assert (again.code, "--force" in again.err) == (2, True)


@sshd.needs_sshd
def test_a_board_that_does_not_answer_is_exit_code_3(case: Case, own: Path, board: sshd.Server) -> None:
    own.mkdir(parents=True)
    (own / "shelf.toml").write_text('base = "arm"\naddress = "board"\n', encoding="utf-8")
    sshd.known(board, "stranger")
    for words in (("bench", "model.onnx", "--device", "shelf"), ("devices", "check", "shelf")):
        found = case.run(*words)
        assert (found.code, found.out) == (3, "")
        assert "another host key" in found.err
        assert "ssh-keygen -R" in found.err
    board.stop()
    found = case.run("devices", "add", "other", "--address", "board")
    assert found.code == 3
    assert "no ssh server answers" in found.err
    assert not (own / "other.toml").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("../up", "--address", "board"), "no name of a board"),
        (("shelf",), "Where is the board?"),
        (("shelf", "--address", "-oProxyCommand=x"), "no option"),
        (("shelf", "--address", "board", "--base", "nothing"), "unknown device profile"),
        (("shelf", "--address", "board", "--python", "'"), "is no command"),
    ],
)
def test_a_board_that_makes_no_sense(case: Case, own: Path, words: Sequence[str], says: str) -> None:
    found = case.run("devices", "add", *words)
    assert found.code == 2
    assert says in found.err
    assert not own.exists()


class Emulated:
    """A device whose time is no time; its worker counts."""

    name, timed, python = "cortex-a72", False, ("python3",)

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __enter__(self) -> "Emulated":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def put(self, source: Path, name: str, *, limit_s: float = 0) -> None:
        assert source.is_file()

    def get(self, name: str, target: Path, *, limit_s: float = 0) -> None:
        raise DeviceTroubleError("not asked for here")

    def run(self, command: Sequence[str], *, given: bytes = b"", limit_s: float = 0) -> Completed:
        request = json.loads(given)
        self.asked.append(request)
        machine = {**describe().__dict__, "cpu": "Cortex-A72"}
        fact = {"engine": "onnxruntime", "version": "1", "delegate": "none", "inputs": [], "load_ns": 5}
        count = {f"instructions_{name}": 7 for name in ("total", "fma", "dot", "load_store")}
        results = {
            "environment": machine,
            "look": [fact] * len(request["models"]),
            "count": [{**count, "heap_bytes": 9}],
        }
        now = dict.fromkeys(("frequency_mhz", "top_frequency_mhz", "temperature_c", "load_1min"))
        answer = {"result": results[request["task"]], "before": now, "after": now}
        return Completed(0, json.dumps(answer).encode(), "")


def test_an_emulated_device_tells_instructions_and_no_time(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Emulated()
    monkeypatch.setattr(module, "device_of", lambda spec, tell: device)
    found = timed(case, "model.onnx", "model.onnx", "--device", "cortex-a72")
    for row in found.models:
        assert (row.instructions_total, row.heap_bytes) == (7, 9)
        assert (row.latency_ns_median, row.load_ns, row.samples_ns, row.verdict) == (None, None, (), None)
    assert "time" not in {request["task"] for request in device.asked}
    shown = case.run("bench", "model.onnx", "--device", "cortex-a72").out
    split = timed(case, "model.onnx", "--device", "cortex-a72", "--per-layer").models[0]
    assert (split.layers, "instructions" in split.layers_reason) == (None, True)
    assert "instructions" in shown
    assert "µs" not in shown


def test_a_phone_with_a_program_of_its_own(case: Case, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for adb runs a shell here."""
    (case.folder / "bin").mkdir()
    (case.folder / "there").mkdir()
    stub = case.folder / "bin" / "adb"
    stub.write_text(
        '#!/bin/sh\nshift 2\ncase $1 in get-state) echo device ;; shell) shift; exec sh -c "$*" ;;\n'
        'push) cp "$2" "$3" ;; esac\n'
    )
    program = case.folder / "onnxruntime_perf_test"
    program.write_text("#!/bin/sh\necho 'P50 Latency: 0.002 s'\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(stub.parent), prepend=":")
    monkeypatch.setattr("edgepress.devices.adb.AdbDevice.base", str(case.folder / "there"))
    words = ("--transport", "adb", "--address", "abc", "--benchmark", program)
    added = case.run("devices", "add", "phone", *words)
    assert added.code == 0, added.err
    assert "Linux" in case.run("devices", "check", "phone").out
    found = timed(case, "model.onnx", "--device", "phone")
    assert (found.transport, found.models[0].latency_ns_median) == ("adb", 2e6)
    assert found.models[0].engine == "onnxruntime_perf_test"
    assert list((case.folder / "there").iterdir()) == []


def test_the_committed_schema_is_current() -> None:
    committed = Path(sys.modules[record.__name__].__file__ or "").with_name("bench.schema.json")
    assert json.loads(committed.read_text(encoding="utf-8")) == json.loads(record.schema_text())


def test_layers_by_share(case: Case) -> None:
    case.change_model(lambda proto: [node.ClearField("name") for node in proto.graph.node])
    found = timed(case, case.model, "--per-layer").models[0]
    assert found.layers is not None
    shares = [row.share_percent for row in found.layers]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 102
    assert {"h", "y"} & {row.name.split("_")[0] for row in found.layers} or len(found.layers) == 1
    assert all(row.ns >= 0 and row.op for row in found.layers)
    shown = case.run("bench", case.model, "--per-layer", "--seconds", 0.2).out
    assert "share" in shown
    assert found.layers[0].name in shown


def test_litert_tells_no_layers(case: Case) -> None:
    file = case.folder / "model.tflite"
    assert case.run("export", case.model, "--out", file).code == 0
    row = timed(case, file, "--per-layer").models[0]
    assert (row.layers, "benchmark_model" in row.layers_reason) == (None, True)
    assert "no profiler" in case.run("bench", file, "--per-layer", "--seconds", 0.2).out
