"""The emulated ARM machine itself: what the real ARM kernels compute, and what they execute for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import emulated
import numpy as np
import onnx_ir
import pytest
from emulated import MACS, ask, conv_net, emulation, quantized

from edgepress.compressor.export.tflite.convert import convert
from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.profile import load_profile
from edgepress.devices.qemu import QemuDevice
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.engines.ort import OrtEngine

__all__ = ["emulation"]
pytestmark = pytest.mark.usefixtures("emulation")
ZOO = Path(__file__).parents[2] / "benchmarks/zoo"


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], emulated.Feeds]:
    folder = tmp_path_factory.mktemp("nets")
    feeds = conv_net(folder / "fp32.onnx")
    return [folder / "fp32.onnx", quantized(folder / "fp32.onnx", feeds, folder / "int8.onnx")], feeds


@pytest.fixture
def a72() -> Iterator[QemuDevice]:
    with QemuDevice(load_profile("cortex-a72")) as device:
        yield device


@pytest.mark.parametrize(("core", "least", "most"), [("cortex-a72", 1.1, 1.4), ("cortex-a76", 3.0, 3.6)])
def test_counts_follow_the_arithmetic_and_the_core(nets, core, least, most):
    models, feeds = nets
    with QemuDevice(load_profile(core)) as device:
        fp32, int8 = ask(device, "count", models, feeds)
    assert least < fp32["instructions_total"] / int8["instructions_total"] < most
    assert fp32["instructions_fma"] * 4 == pytest.approx(MACS, rel=0.02)
    assert int8["instructions_fma"] < 0.01 * fp32["instructions_fma"]
    assert fp32["instructions_dot"] == 0
    dots = MACS / 16 if core == "cortex-a76" else 0
    assert int8["instructions_dot"] == pytest.approx(dots, rel=0.02)
    for row in (fp32, int8):
        assert 0.05 < row["instructions_load_store"] / row["instructions_total"] < 0.5
        assert not [key for key in row if "ns" in key.split("_") or "latency" in key]
    assert fp32["heap_bytes"] > 4 * 64 * 64 * 9  # it holds its weights at least


def test_counts_repeat_from_run_to_run(nets, a72):
    models, feeds = nets
    runs = [ask(a72, "count", models, feeds) for _ in range(3)]
    for rows in zip(*runs, strict=True):
        totals = [row["instructions_total"] for row in rows]
        assert max(totals) - min(totals) <= 200e-6 * min(totals)
        assert len({(row["instructions_fma"], row["instructions_dot"]) for row in rows}) == 1


@pytest.mark.parametrize("name", ["fmnist_cnn", "mnist_mlp"])
def test_eight_bit_outputs_are_those_of_this_machine(a72, tmp_path, name):
    model = ZOO / name / "model.onnx"
    port = OrtEngine().load(model).inputs[0]
    with np.load(ZOO / name / "calib.npz") as archive:
        rows = next(archive[key] for key in archive.files if key not in ("y", "labels"))[:64]
    feeds = {port.name: rows.astype(np.float32)}
    int8 = quantized(model, feeds, tmp_path / "int8.onnx")
    (names,) = ask(a72, "run", [int8], feeds, outputs=["o.npz"])
    a72.get("o.npz", tmp_path / "o.npz")
    here = OrtEngine().load(int8)(feeds)
    assert names == list(here)
    with np.load(tmp_path / "o.npz") as there:
        for index, values in enumerate(here.values()):
            assert np.array_equal(there[f"a{index}"], values)
            assert values.std() > 0


def test_tflite_files_run_and_are_counted_too(nets, tmp_path):
    models, feeds = nets
    files = [tmp_path / f"{model.stem}.tflite" for model in models]
    for model, file in zip(models, files, strict=True):
        file.write_bytes(convert(onnx_ir.load(model)).data)
    with QemuDevice(load_profile("cortex-a76")) as device:
        fp32, int8 = ask(device, "count", files, feeds)
        ((name,), _) = ask(device, "run", files, feeds, outputs=["a.npz", "b.npz"])
        device.get("b.npz", tmp_path / "b.npz")
    assert fp32["instructions_fma"] * 4 == pytest.approx(MACS, rel=0.02)
    assert int8["instructions_dot"] * 16 == pytest.approx(MACS, rel=0.02)
    assert fp32["instructions_total"] > 2 * int8["instructions_total"]
    with np.load(tmp_path / "b.npz") as there:
        assert np.array_equal(there["a0"], LiteRTEngine(as_onnx=True).load(files[1])(feeds)[name])


def test_a_null_model_counts_nearly_nothing_above_itself(a72, tmp_path):
    from edgepress.runtime.memory import null_model

    (tmp_path / "null.onnx").write_bytes(null_model())
    (row,) = ask(a72, "count", [tmp_path / "null.onnx"], {"x": np.zeros(1, np.float32)})
    assert row["instructions_total"] < 2000
    assert row["instructions_fma"] == row["instructions_dot"] == 0


def test_programs_see_the_board_and_not_this_machine():
    code = "import os, platform; print(platform.machine(), os.cpu_count(), open('/proc/cpuinfo').read())"
    with QemuDevice(load_profile("cortex-a76"), counts=False) as device:
        said = device.run((*device.python, "-c", code)).out.decode()
    assert said.startswith("aarch64 ")
    assert "0xd0b" in said
    assert "asimddp" in said
    assert "GenuineIntel" not in said
    assert "AuthenticAMD" not in said


def test_exit_codes_streams_and_signals_come_through(a72):
    code = "import os, sys; sys.stderr.write('no'); print(sys.stdin.read()); sys.exit(7)"
    done = a72.run((*a72.python, "-c", code), given=b"yes")
    assert (done.code, done.out, done.err) == (7, b"yes\n", "no")
    done = a72.run((*a72.python, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert done.code == -signal.SIGKILL


def test_time_over_ends_the_program_and_the_device_goes_on(a72):
    with pytest.raises(DeviceTroubleError, match=r"ended after 2 s"):
        a72.run((*a72.python, "-c", "import time; time.sleep(600)"), limit_s=2)
    assert a72.run((*a72.python, "-c", "print(1)")).out == b"1\n"


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_however_the_tool_ends(ending, tmp_path):
    code = (
        "from edgepress.devices.profile import load_profile\n"
        "from edgepress.devices.qemu import QemuDevice\n"
        "with QemuDevice(load_profile('cortex-a72')) as d:\n"
        "    d.run((*d.python, '-c', 'open(\"started\", \"w\"); import time; time.sleep(600)'), limit_s=600)\n"
    )
    tool = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL
    )
    _until(lambda: list(tmp_path.glob("edgepress-*/*/started")))
    assert _running(tmp_path)
    tool.send_signal(ending)
    tool.wait(20)
    _until(lambda: not list(tmp_path.iterdir()) and not _running(tmp_path))


def _until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


def _running(folder):
    """Emulators whose command names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"qemu-aarch64") and any(str(folder).encode() in word for word in words):
            found.append(process.name)
    return found
