"""This machine as a device, and the worker on it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import models
import numpy as np
import onnx
import pytest

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.model import to_proto
from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.local import LocalDevice
from edgepress.devices.remote import Ran, RemoteWorker
from edgepress.runtime.environment import describe
from edgepress.runtime.record import EngineError

FEEDS = {"x": np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made; nothing may stay there."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(made))
    yield made
    assert list(made.iterdir()) == []


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """One net in both forms."""
    onnx.save(to_proto(models.mlp(32)), tmp_path / "model.onnx")
    (tmp_path / "model.tflite").write_bytes(convert(models.mlp(32)).data)
    return [tmp_path / "model.onnx", tmp_path / "model.tflite"]


def test_a_command_runs_in_the_folder_and_its_children_end_with_it(folder: Path) -> None:
    with LocalDevice() as device:
        assert device.run(["cat"], given=b"abc").out == b"abc"
        done = device.run(["sh", "-c", "sleep 62 >/dev/null 2>&1 & echo $!; pwd; exit 3"])
        child, where = done.out.decode().split()
        assert (done.code, Path(where).parent) == (3, folder)
        assert device.run(["sh", "-c", "kill -9 $$"]).code == -9
        assert device.run(["no-such-program"]).code == 127
        with pytest.raises(DeviceTroubleError, match=r"took longer than 0\.2 s"):
            device.run(["sleep", "60"], limit_s=0.2)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_nothing_stays_however_the_tool_ends(folder: Path, ending: int) -> None:
    code = (
        "from edgepress.devices.local import LocalDevice\n"
        "with LocalDevice() as device:\n"
        "    device.run(['sh', '-c', 'echo $$ >started; sleep 63'])\n"
    )
    environment = {**os.environ, "TMPDIR": str(folder)}
    tool = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (found := [path for path in folder.glob("*/started") if path.read_text()]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = int(found[0].read_text())
    time.sleep(0.2)  # the keeper is told of the process right after its start
    tool.send_signal(ending)
    tool.wait(20)
    while (list(folder.iterdir()) or Path(f"/proc/{started}").exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{started}").exists()


def test_files_go_and_come_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    with LocalDevice() as device:
        device.put(tmp_path / "a", "b")
        device.get("b", tmp_path / "c")
        with pytest.raises(DeviceTroubleError, match="No such file"):
            device.get("d", tmp_path / "c")
        with pytest.raises(DeviceTroubleError, match="No such file"):
            device.put(tmp_path / "missing", "e")
        for name in ("../up", "/etc/passwd", "", ".hidden", "-option"):
            with pytest.raises(ValueError, match="no plain file name"):
                device.put(tmp_path / "a", name)
    assert (tmp_path / "c").read_bytes() == b"a"


def test_the_engine_is_told_by_the_suffix_and_both_agree(files: list[Path]) -> None:
    with LocalDevice() as device:
        worker = RemoteWorker(device)
        looks = worker.ask("look", files).result
        outputs = worker.run(files, [FEEDS, FEEDS])
        growth = worker.ask("memory", files, FEEDS).result
    assert [look["engine"] for look in looks] == ["onnxruntime", "litert"]
    assert [look["inputs"][0][0] for look in looks] == ["x", "x"]
    assert all(look["load_ns"] > 0 for look in looks)
    np.testing.assert_allclose(outputs[0]["y"], outputs[1]["y"], rtol=1e-5, atol=1e-5)
    assert outputs[0]["y"].tobytes() == models.run(models.mlp(32), FEEDS)["y"].tobytes()
    assert all(each >= 0 for each in growth)


def test_what_is_refused_is_told_beside_what_ran_and_by_which_kernels(
    files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with LocalDevice() as device:
        ran, refused, other = RemoteWorker(device).attempt(
            [files[0], tmp_path / "bad.onnx", files[1]], [FEEDS] * 3
        )
    assert isinstance(refused, EngineError)
    assert isinstance(ran, Ran)
    assert isinstance(other, Ran)
    assert ran.outputs["y"].tobytes() == models.run(models.mlp(32), FEEDS)["y"].tobytes()
    for each, product in ((ran, "FusedGemm"), (other, "FULLY_CONNECTED")):
        assert {kernel.reads[0] for kernel in each.kernels or () if kernel.op == product} == {"float32"}


def test_models_may_take_different_feeds_and_files_go_once(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"x": 2 * FEEDS["x"]}
    with LocalDevice() as device:
        sent: list[str] = []
        put = device.put
        monkeypatch.setattr(
            device, "put", lambda source, name, **rest: (sent.append(name), put(source, name))
        )
        worker = RemoteWorker(device)
        first = worker.run([files[0], files[0]], [FEEDS, other])
        worker.run([files[0]], [FEEDS])
    for found, feeds in zip(first, (FEEDS, other), strict=True):
        assert found["y"].tobytes() == models.run(models.mlp(32), feeds)["y"].tobytes()
    assert sent.count("worker.pyz") == sum(name.endswith(".onnx") for name in sent) == 1


def test_the_report_of_this_machine() -> None:
    with LocalDevice() as device:
        machine, condition = RemoteWorker(device).environment()
    assert (machine.cpu, machine.cores, machine.features) == (
        describe().cpu,
        describe().cores,
        describe().features,
    )
    assert condition.load_1min is not None


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ("echo '{}'", DeviceTroubleError, "no readable answer"),
        ("echo '{\"result\": 1}'", DeviceTroubleError, "no readable answer"),
        ("echo nonsense", DeviceTroubleError, "no readable answer"),
        ("true", DeviceTroubleError, "no readable answer"),
        ("echo 'no disk' >&2; exit 4", EngineError, "failed with code 4: no disk"),
        ("exit 127", DeviceTroubleError, "has no sh"),
    ],
)
def test_a_worker_that_says_something_else(body: str, error: type[Exception], says: str) -> None:
    with LocalDevice(python=("sh", "-c", body)) as device, pytest.raises(error, match=says):
        RemoteWorker(device).ask("environment", ())


@pytest.mark.parametrize(
    "result",
    [
        "7", "[]", '[{"engine": 1}]', "[{}, {}]", "null", '["x"]', "[7]",
        '[{"outputs": 1, "kernels": null}]', '[{"outputs": ["y"], "kernels": [["Gemm"]]}]',
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["time", "look", "run", "attempt"])
def test_an_answer_of_another_form_is_no_crash(
    tmp_path: Path, files: list[Path], method: str, result: str
) -> None:
    now = '{"frequency_mhz": null, "top_frequency_mhz": null, "temperature_c": null, "load_1min": null}'
    (tmp_path / "answer").write_text(f'{{"result": {result}, "before": {now}, "after": {now}}}')
    with LocalDevice(python=("sh", "-c", f"cat {tmp_path / 'answer'}")) as device:
        worker = RemoteWorker(device)
        given = (files[:1],) if method == "look" else (files[:1], [FEEDS])
        with pytest.raises(DeviceTroubleError):
            getattr(worker, method)(*given)


def test_python_that_is_too_old_says_so(tmp_path: Path) -> None:
    """As an old interpreter would find it: the version is looked at before anything else is loaded."""
    code = "import runpy, sys; sys.version_info = (3, 8, 1); runpy.run_path(sys.argv[1], run_name='__main__')"
    with LocalDevice() as device:
        device.python = (*device.python, "-c", code)
        with pytest.raises(EngineError, match=r"Python 3\.9 or newer is needed; this one is 3\.8"):
            RemoteWorker(device).ask("environment", ())


def test_a_device_is_used_with_with() -> None:
    with pytest.raises(RuntimeError, match="with"):
        LocalDevice().run([os.devnull])
