"""`compress selftest` as a user runs it: on this machine, on devices that are broken, and on an emulated core."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from clicase import Case
from emulated import emulation
from onnx import numpy_helper

from edgepress.compressor.cli import selftest as command
from edgepress.compressor.cli.selftest_run import Reached
from edgepress.compressor.exact.suite import Ran, Refusal
from edgepress.compressor.report import selftest as record
from edgepress.compressor.report.selftest import Selftest
from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.local import LocalDevice
from edgepress.devices.remote import RemoteWorker
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.record import EngineDiedError, EngineError

__all__ = ["emulation"]


def quick(case: Case, *words: object, code: int = 0) -> Selftest:
    found = case.run("selftest", "--quick", *words, "--json", "found.json", "--quiet")
    assert found.code == code, found.err
    return Selftest.model_validate_json(Path("found.json").read_bytes())


@contextmanager
def scripted(monkeypatch: pytest.MonkeyPatch, run: Any, formats: Sequence[str] = ("onnx",)) -> Iterator[None]:
    @contextmanager
    def open_it(*_: Any) -> Iterator[Reached]:
        yield Reached(run, "local", "toy", {"onnxruntime": "1"}, tuple(formats))

    with monkeypatch.context() as patch:
        patch.setattr(command, "reached", open_it)
        yield


def test_this_machine_computes_exactly_in_every_precision_and_format(case: Case) -> None:
    found = quick(case)
    assert found.verdict == "right"
    kinds = {(check.format, check.precision) for check in found.checks if check.verdict == "right"}
    names = {"fp32", "fp32 subnormal", "fp16", "fp16 subnormal", "int8", "int4"}
    dense = {(kind, name) for kind in ("onnx", "tflite") for name in names}
    assert kinds == dense | {("sparse", "fp32"), ("sparse", "fp32 subnormal"), ("onnx", "int4 blocks")}
    assert {check.operators for check in found.checks} == {"gemm", "matmul", "conv", "sparse"}
    for check in found.checks:
        assert check.precision == "fp32 subnormal" or check.wrong_rows == check.false_alarms == 0
        if check.kind == "changed":
            assert check.threshold_error is not None
            assert check.step is not None
            assert check.threshold_error < check.step
    words = [each for each in found.checks if each.precision == "fp32" and each.kind == "changed"]
    assert max(each.threshold_error or 0 for each in words if "words" in each.network) <= 1e-6


def test_it_tells_what_each_precision_was_computed_in(case: Case) -> None:
    found = quick(case, *(word for name in ("fp32", "fp16", "int8") for word in ("--precision", name)))
    computed = {(each.format, each.precision): each.computed_in for each in found.arithmetic}
    assert (
        computed[("onnx", "fp32")]
        == computed[("tflite", "fp32")]
        == computed[("sparse", "fp32")]
        == ("fp32",)
    )
    assert computed[("onnx", "int8")] == computed[("tflite", "int8")] == ("int8",)
    halves = next(each for each in found.arithmetic if (each.format, each.precision) == ("onnx", "fp16"))
    assert halves.computed_in == (("fp32",) if "Cast" in halves.casts else ("fp16",))
    assert all(each.known == each.models for each in found.arithmetic)


def test_the_short_test_asks_the_device_twice(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is, and then everything at once: each time a process starts there, and loads its engines."""
    ask, asked = RemoteWorker.ask, []

    def counted(self: RemoteWorker, task: str, models: Sequence[Path], *rest: Any, **how: Any) -> Any:
        asked.append((task, len(models)))
        return ask(self, task, models, *rest, **how)

    monkeypatch.setattr(RemoteWorker, "ask", counted)
    found = quick(case)
    assert asked == [("environment", 0), ("try", len(found.checks))]


def test_the_search_and_its_statistics_are_not_loaded() -> None:
    """They take longer to load than the short test does."""
    code = "import sys, edgepress.compressor.cli.selftest; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "edgepress.compressor.exact.suite" in done.stdout.split()
    assert {"scipy.stats", "edgepress.compressor.search", "edgepress.compressor.cli.host"}.isdisjoint(
        done.stdout.split()
    )


def test_the_table_tells_the_verdict(case: Case) -> None:
    found = case.run("selftest", "--quick", "--precision", "int8", "--format", "onnx")
    assert found.code == 0
    assert found.out.startswith("RIGHT: local (local, ")
    assert "exact" in found.out
    said = case.run("selftest", "--quick", "--precision", "int8", "--format", "onnx", "--json", "-")
    assert json.loads(said.out)["verdict"] == "right"


def test_a_planted_fault_ends_with_1_and_is_located(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that reads one weight of every second layer a step too low."""

    def run(files: Sequence[bytes], feeds: Sequence[Any]) -> list[Any]:
        return [Ran(OrtEngine().load(planted(file))(each)) for file, each in zip(files, feeds, strict=True)]

    def planted(file: bytes) -> bytes:
        proto = onnx.load_from_string(file)
        for constant in proto.graph.initializer:
            if constant.name == "layer2_codes":
                codes = numpy_helper.to_array(constant).copy()
                codes.ravel()[np.flatnonzero(codes)[0]] -= 1
                constant.CopyFrom(numpy_helper.from_array(codes, constant.name))
        data: bytes = proto.SerializeToString()
        return data

    with scripted(monkeypatch, run):
        found = case.run("selftest", "--quick", "--precision", "int8")
    assert found.code == 1
    assert "WRONG: local" in found.out
    faults = [line for line in found.out.splitlines() if line.startswith("✗")]
    assert faults
    assert all("local, onnx, int8, " in line and "layer 2 of 3: " in line for line in faults)
    assert any("-1 step of its grid" in line for line in faults)


def test_a_device_that_runs_nothing_ends_with_3(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(monkeypatch, lambda files, feeds: [Refusal("no kernel for that")] * len(files)):
        found = case.run("selftest", "--quick")
    assert found.code == 3
    assert "NOT RUN" in found.out
    assert "onnx, int8 is not offered: no kernel for that" in found.out


def test_what_is_refused_is_told_and_not_wrong(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(files: Sequence[bytes], feeds: Sequence[Any]) -> list[Any]:
        return [
            Refusal("no halves") if each["x"].dtype == np.float16 else Ran(OrtEngine().load(file)(each))
            for file, each in zip(files, feeds, strict=True)
        ]

    with scripted(monkeypatch, run):
        found = case.run("selftest", "--quick")
    assert found.code == 0
    assert "onnx, fp16 is not offered: no halves" in found.out


def test_the_model_that_kills_the_engine_is_found_among_all(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RemoteWorker.attempt
    asked = []

    def dies(self: RemoteWorker, models: Sequence[Path], feeds: Any, **how: Any) -> Any:
        asked.append(len(models))
        if any(b"layer3_codes" in path.read_bytes() for path in models):
            raise EngineDiedError("the worker was ended by signal 4")
        if any(b"layer2" in path.read_bytes() for path in models):
            raise EngineError("not offered")
        return run(self, models, feeds, **how)

    monkeypatch.setattr(RemoteWorker, "attempt", dies)
    found = quick(case, "--precision", "int8", "--format", "onnx", code=1)
    assert len(asked) > 1
    by_depth = {(check.layers, check.verdict) for check in found.checks}
    assert by_depth == {(1, "right"), (3, "wrong")}


def test_a_device_that_is_lost_ends_with_3(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any, **__: Any) -> Any:
        raise DeviceTroubleError("the board does not answer", "Is it on?")

    monkeypatch.setattr(LocalDevice, "run", lost)
    found = case.run("selftest", "--quick")
    assert found.code == 3
    assert found.err == "compress: the board does not answer.\n  Is it on?\n"


def test_images_of_the_user_make_a_network(case: Case) -> None:
    rng = np.random.default_rng(0)
    case.samples("images.npz", x=rng.integers(0, 256, (12, 1, 28, 28)).astype(np.uint8), y=np.arange(12))
    found = quick(case, "--precision", "int8", "--format", "onnx", "--images", "images.npz")
    assert any("images" in check.network for check in found.checks)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--precision", "int7"), 2, "'int7' is no precision"),
        (("--format", "coreml"), 2, "'coreml' is no format"),
        (("--target", "nowhere"), 2, "nowhere"),
        (("--images", "none.npz"), 2, "none.npz"),
        (("--images", "flat.npz"), 2, "has no images"),
        (("--images", "small.npz"), 2, "26"),
        (("--target", "cortex-m4", "--format", "onnx"), 3, "Nothing there runs onnx files"),
    ],
)
def test_mistakes_are_one_message(case: Case, words: Sequence[str], code: int, said: str) -> None:
    case.samples("flat.npz", x=np.zeros((3, 784)))
    case.samples("small.npz", x=np.zeros((3, 8, 8)))
    found = case.run("selftest", "--quick", *words)
    assert found.code == code
    assert said in found.err
    assert "Traceback" not in found.err


def test_the_schema_is_the_committed_one() -> None:
    path = Path(record.__file__).with_name("selftest.schema.json")
    assert path.read_text("utf-8") == record.schema_text()


def test_a_microcontroller_is_tested_by_its_interpreter(case: Case) -> None:
    pytest.importorskip("tflite_micro", reason="the interpreter of microcontrollers is not installed")
    found = quick(case, "--target", "cortex-m4", "--precision", "int8")
    assert {check.verdict for check in found.checks} == {"right"}
    assert {check.format for check in found.checks} == {"tflite"}


@pytest.mark.usefixtures("emulation")
def test_an_emulated_core_computes_exactly(case: Case) -> None:
    found = quick(case, "--target", "cortex-a72", "--precision", "int8", "--precision", "fp32")
    assert found.transport == "emulated"
    assert found.verdict == "right"
    assert {check.format for check in found.checks} == {"onnx", "tflite", "sparse"}
