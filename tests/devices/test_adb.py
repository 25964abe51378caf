"""Phones by adb: the real server without a device, and a stand-in for adb that keeps what a phone would."""

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import sshd

from edgepress.devices.adb import AdbDevice
from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.native import parse_benchmark_model, parse_perf_test, time_native
from edgepress.runtime.record import EngineError

STUB = """#!/bin/sh
here=$(dirname "$0"); echo "$*" >>"$here/log"
[ "$1" = -s ] && shift 2
case $1 in
connect) cat "$here/connect" ;;
get-state) cat "$here/state"; [ "$(cat "$here/state")" = device ] ;;
shell) shift; exec sh -c "$*" ;;
push|pull) cp "$2" "$3" 2>&1 || { echo "adb: error: failed to copy"; exit 1; } ;;
esac
"""
# As the programs print it.
BENCHMARK_MODEL = """INFO: STARTING!
INFO: Graph: [/data/local/tmp/m.tflite]
Initialized session in 0.855ms.
count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930

count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, Inference (avg): 33209.4
"""
PERF_TEST = """Session creation time cost: 0.127918 s
Total inference time cost: 1.44871 s
Total inference requests: 10
Average inference time cost: 144.871 ms
Min Latency: 0.14 s
P50 Latency: 0.144 s
P90 Latency: 0.15 s
"""


@dataclass
class Phone:
    """What the stand-in says and was asked."""

    folder: Path
    there: Path

    def says(self, what: str, text: str) -> None:
        (self.folder / what).write_text(text, encoding="utf-8")

    def asked(self) -> list[str]:
        return (self.folder / "log").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    found = Phone(tmp_path / "bin", tmp_path / "there")
    found.folder.mkdir()
    found.there.mkdir()
    (found.folder / "adb").write_text(STUB, encoding="utf-8")
    (found.folder / "adb").chmod(0o755)
    found.says("state", "device\n")
    found.says("connect", "connected to 10.0.0.2:5555\n")
    monkeypatch.setenv("PATH", str(found.folder), prepend=":")
    monkeypatch.setattr(AdbDevice, "base", str(found.there))
    return found


def test_files_and_commands(phone: Phone, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with AdbDevice("10.0.0.2:5555") as device:
        device.put(tmp_path / "file", "file")
        assert device.run(["sh", "-c", "cat file; exit 7"]).code == 7
        device.get("file", tmp_path / "back")
        (folder,) = phone.there.iterdir()
        with pytest.raises(DeviceTroubleError, match="failed to copy"):
            device.get("missing", tmp_path / "none")
        with pytest.raises(DeviceTroubleError, match="took longer"):
            device.run(["sleep", "60"], limit_s=0.2)
    assert (tmp_path / "back").read_bytes() == b"content"
    assert not (tmp_path / "none").exists()
    assert list(phone.there.iterdir()) == []
    asked = phone.asked()
    assert asked[:2] == ["connect 10.0.0.2:5555", "-s 10.0.0.2:5555 get-state"]
    assert f"-s 10.0.0.2:5555 push {tmp_path / 'file'} {folder}/file" in asked


def test_words_go_through_unchanged(phone: Phone) -> None:
    """adb joins its arguments with blanks for the phone's shell: quoting is ours."""
    odd = [
        "a b",
        "'",
        '"',
        "$HOME",
        "$(touch ran)",
        "`touch ran`",
        "; touch ran",
        "*",
        "",
        "-n",
        "é\n!",
        "\\",
    ]
    with AdbDevice("10.0.0.2:5555") as device:
        assert device.run(["printf", "%s|", *odd]).out.decode() == "".join(f"{word}|" for word in odd)
        assert device.run(["ls"]).out == b""


@pytest.mark.parametrize(
    ("what", "text", "says"),
    [
        ("connect", "failed to connect to '10.0.0.2:5555': Connection refused\n", "does not answer"),
        ("state", "error: device unauthorized.\n", "does not trust this machine"),
        ("state", "error: device offline\n", "is offline"),
        ("state", "error: device '10.0.0.2:5555' not found\n", "is not there"),
        ("state", "recovery\n", "cannot be reached: recovery"),
        ("state", "", "adb said nothing"),
    ],
)
def test_a_phone_that_is_not_ready(phone: Phone, what: str, text: str, says: str) -> None:
    """`adb connect` ends with 0 even so: what it says counts."""
    phone.says(what, text)
    with pytest.raises(DeviceTroubleError, match=says) as caught, AdbDevice("10.0.0.2:5555"):
        pytest.fail("connected")
    assert caught.value.hint


def test_adb_that_hangs_is_ended(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepress.devices.adb._ANSWER_S", 0.3)
    (phone.folder / "adb").write_text("#!/bin/sh\nexec sleep 61\n", encoding="utf-8")
    start = time.monotonic()
    with pytest.raises(DeviceTroubleError, match="did not answer within"), AdbDevice("x"):
        pytest.fail("connected")
    assert time.monotonic() - start < 5
    assert not [line for line in sshd.running("PATH=" + os.environ["PATH"]) if line.startswith("sleep 61")]


@pytest.mark.parametrize("address", ["-H", "a b", "a\nb"])
def test_a_serial_number_is_no_option(address: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        AdbDevice(address)


@pytest.mark.skipif(shutil.which("adb") is None, reason="no adb here (apt install adb)")
def test_the_real_server_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    try:
        with pytest.raises(DeviceTroubleError, match="is not there"), AdbDevice("nosuch"):
            pytest.fail("connected")
        with pytest.raises(DeviceTroubleError, match="does not answer"), AdbDevice("127.0.0.1:1"):
            pytest.fail("connected")
    finally:
        subprocess.run(["/usr/bin/env", "adb", "kill-server"], check=False, capture_output=True, timeout=10)


def test_what_the_programs_print_is_understood() -> None:
    turn = parse_benchmark_model(BENCHMARK_MODEL)
    assert (turn.ns, turn.count) == (33209.4e3, 50), "the warm-up's line comes first"
    newer = "count=82 first=100 curr=99 min=90 max=2000 avg=140.5 std=9 p5=91 median=98 p95=1000\n"
    assert parse_benchmark_model(BENCHMARK_MODEL + newer).ns == 98e3
    assert parse_benchmark_model("count=1 curr=120\n").ns == 120e3
    assert (parse_perf_test(PERF_TEST).ns, parse_perf_test(PERF_TEST).count) == (144e6, 10)
    older = "Average inference time cost: 83.8059 ms\n"
    assert parse_perf_test(older).ns == pytest.approx(83.8059e6)
    assert parse_perf_test("P50 Latency is 0.0587108 sec\n").ns == pytest.approx(58.7108e6)
    for parse in (parse_benchmark_model, parse_perf_test):
        with pytest.raises(ValueError, match="no"):
            parse("count=0 nonsense")


def tool(phone: Phone, name: str, body: str) -> str:
    path = phone.folder / name
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    return str(path)


def test_a_program_of_the_phone_tells_times_in_turns(phone: Phone, tmp_path: Path) -> None:
    files = []
    for name, time_us in (("slow", 2000), ("fast", 500)):
        files.append(tmp_path / f"{name}.tflite")
        files[-1].write_text(str(time_us))
    order = tmp_path / "order"
    body = f'f=${{1#--graph=}}; echo $f $2 >>{order}; echo "count=50 first=9 curr=9 min=9 max=9 avg=$(cat $f) std=1"'
    with AdbDevice("x") as device:
        slow, fast = time_native(
            device, tool(phone, "benchmark_model", body), files, threads=3, time_limit_s=0.0
        )
    assert (slow.median_ns, fast.median_ns) == (2e6, 5e5)
    assert len(slow.samples_ns) == 5
    lines = order.read_text().splitlines()
    assert lines == ["model0.tflite --num_threads=3", "model1.tflite --num_threads=3"] * 5


@pytest.mark.parametrize(
    ("name", "body", "suffix", "error", "says"),
    [
        ("benchmark_model", "echo broken >&2; exit 3", "tflite", EngineError, "failed with code 3: broken"),
        ("benchmark_model", "echo hello", "tflite", EngineError, "told no times: hello"),
        ("benchmark_model", "kill -11 $$", "tflite", EngineError, "ended by signal 11"),
        ("benchmark_model", "", "onnx", EngineError, "runs .tflite files only"),
        ("onnxruntime_perf_test", "", "tflite", EngineError, "runs .onnx files only"),
        ("something", "", "onnx", EngineError, "no program for times that is known"),
        ("/nowhere/benchmark_model", None, "tflite", DeviceTroubleError, "cannot start /nowhere"),
    ],
)
def test_a_program_that_fails(
    phone: Phone, tmp_path: Path, name: str, body: str | None, suffix: str, error: type[Exception], says: str
) -> None:
    model = tmp_path / f"model.{suffix}"
    model.write_bytes(b"")
    command = name if body is None else tool(phone, name, body)
    with AdbDevice("x") as device, pytest.raises(error, match=says):
        time_native(device, command, [model], time_limit_s=0.1)
    assert list(phone.there.iterdir()) == []
