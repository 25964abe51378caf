"""`compress` for a core that is emulated: the whole way, from the search's counts to the verdict there."""

from pathlib import Path

import numpy as np
import pytest
from emulated import emulation

from edgepress.compressor import compress
from edgepress.compressor.cli import away, host
from edgepress.compressor.protocols import ModelFile
from edgepress.compressor.recipe import parse
from edgepress.devices.profile import load_profile
from edgepress.devices.remote import RemoteWorker
from edgepress.runtime.engines.ort import OrtEngine

__all__ = ["emulation"]
pytestmark = pytest.mark.usefixtures("emulation")
ZOO = Path(__file__).parents[2] / "benchmarks/zoo/digits_cnn"


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(host.NO_DEVICE)


def test_the_core_decides_and_judges(tmp_path: Path) -> None:
    result = compress(
        ZOO / "model.onnx", ZOO / "calib.npz", test=ZOO / "test.npz", target="cortex-a76", device_rows=120,
        recipe=parse('[[pass]]\nkind = "quantize"\n'), formats=("onnx",),
    )  # fmt: skip
    report = result.report
    before, after = report.baseline.instructions, report.compressed.instructions
    assert before is not None
    assert after is not None
    assert (report.cost_kind, report.compressed.latency_ns_median) == ("instructions", None)
    assert after.total < before.total
    assert before.fma > 0 == before.dot
    assert after.dot > 0
    assert report.device is not None
    assert (report.device.how, report.device.rows) == ("emulated", 120)
    assert report.device.engine.startswith("onnxruntime ")
    assert report.device.compressed.identical, "8-bit arithmetic is the same everywhere"
    assert report.device.baseline.rows_changed == 0
    assert report.verdict == "kept"
    assert report.n_test == 120


def test_a_search_goes_by_instructions(tmp_path: Path) -> None:
    with np.load(ZOO / "calib.npz") as stored:
        data = {"x": stored["x"][:64], "y": stored["y"][:64]}
    result = compress(
        ZOO / "model.onnx", data, test=ZOO / "test.npz", target="cortex-a72", device_rows=100,
        formats=("onnx",), time_limit_minutes=0.1,
    )  # fmt: skip
    kept = next(c for c in result.report.candidates if c.kept)
    counts = [c.instructions_total for c in result.report.candidates if c.instructions_total]
    assert kept.instructions_total is not None
    assert len(counts) > 1
    assert kept.instructions_total < max(counts)


def test_what_was_counted_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: ModelFile = (ZOO / "model.onnx").read_bytes()
    port = OrtEngine().load(ZOO / "model.onnx").inputs[0]
    feeds = {port.name: np.zeros((1, *map(int, port.shape[1:])), np.float32)}
    spec = load_profile("cortex-a72")
    (first,) = away.Away(spec, 1, 1, tmp_path, lambda line: None).count([model], feeds)
    assert first.total > 0
    assert first.predicted_ns == spec.ns_of(first.total)

    def never(*given: object, **more: object) -> None:
        raise AssertionError("it was counted, and the core is known")

    monkeypatch.setattr(RemoteWorker, "ask", never)
    again = away.Away(spec, 1, 1, tmp_path, lambda line: None)
    assert again.count([model], feeds) == [first]
    with pytest.raises(AssertionError):
        again.count([model + b"\0"], feeds)
