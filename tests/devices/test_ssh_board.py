"""A board over SSH, from the command line: a real sshd whose logins land on an emulated ARM processor, and its faults.

A login finds a shell, six tools of this machine, and a Python that runs on the emulated processor; where no processor
can be emulated, faults are injected over this machine's Python.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import emulated
import numpy as np
import pytest
import sshd
from clicase import Case
from emulated import emulation
from sshd import Server, script, server, soon, working

from edgepress.compressor.cli import run
from edgepress.compressor.cli.host import NO_DEVICE
from edgepress.compressor.report.bench import Bench
from edgepress.compressor.report.record import load_report
from edgepress.devices import ssh
from edgepress.devices.remote import RemoteWorker
from edgepress.devices.ssh import SshDevice
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.record import HintedError

__all__ = ["emulation", "server"]
pytestmark = sshd.needs_sshd


@pytest.fixture
def board(server: Server) -> Iterator[Server]:
    """Logins land there; `board.toml` is its profile."""
    (server.folder / "board.toml").write_text('base = "arm"\naddress = "board"\n', encoding="utf-8")
    with ExitStack() as stack:
        here = emulated.unavailable()
        python = (
            ("/usr/bin/env", "PYTHONPATH=", *sshd.PYTHON)
            if here
            else stack.enter_context(emulated.arm_python())
        )
        server.land(python)
        yield server
        assert server.left() == []


@pytest.mark.usefixtures("emulation")
def test_an_8_bit_model_goes_there_runs_and_its_outputs_are_those_of_this_machine(
    board: Server, tmp_path: Path
) -> None:
    feeds = emulated.conv_net(tmp_path / "net.onnx")
    int8 = emulated.quantized(tmp_path / "net.onnx", feeds, tmp_path / "int8.onnx")
    with SshDevice("board") as device:
        worker = RemoteWorker(device)
        machine, _ = worker.environment()
        (found,) = worker.run([int8], [feeds])
    assert machine.arch == "aarch64"
    expected = OrtEngine().load(int8)(feeds)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert np.array_equal(found[name], values)
        assert values.std() > 0


@pytest.mark.usefixtures("emulation")
def test_a_bench_there_is_over_soon(board: Server, case: Case) -> None:
    start = time.process_time() + board.used_s()
    said = case.run("bench", "model.onnx", "--device", "board.toml", "--seconds", 1, "--json", "times.json")
    assert said.code == 0, said.err
    assert board.left() == []
    found = Bench.model_validate_json(Path("times.json").read_bytes())
    assert (found.transport, found.cpu) == ("ssh", "Cortex-A72")
    there = board.used_s()
    # Of processors, since other tests run beside this one: it is what it takes where nothing else does.
    assert 1 < there < 15
    assert time.process_time() + there - start < 15


@pytest.mark.usefixtures("emulation")
def test_the_board_times_and_judges_what_compress_makes(
    board: Server, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NO_DEVICE)
    monkeypatch.setattr(run, "TIMING_SECONDS", 0.5)
    (case.folder / "recipe.toml").write_text('[[pass]]\nkind = "quantize"\n', encoding="utf-8")
    told = case.compress("--recipe", "recipe.toml", target="board.toml")
    assert told.code in (0, 1), told.err
    report = load_report(case.out / "report.json")
    assert report.cost_kind == "measured"
    assert report.compressed.latency_ns_ci95 is not None
    assert report.device is not None
    assert (report.device.how, report.device.cpu, report.device.rows) == ("ssh", "Cortex-A72", 60)
    assert report.device.baseline.rows_changed == 0
    assert board.left() == []


def bench(case: Case) -> tuple[int, str]:
    """What the command line makes of it."""
    found = case.run("bench", "model.onnx", "--device", "board.toml", "--seconds", "0.1")
    assert found.out == ""
    return found.code, found.err


def told(work: Callable[[SshDevice], object]) -> tuple[int, str]:
    """The same for work that no command does by itself."""
    with pytest.raises(HintedError) as caught, SshDevice("board") as device:
        work(device)
    return 3, f"compress: {caught.value}\n  {caught.value.hint}"


def fetch(case: Case) -> tuple[int, str]:
    """A file comes back."""

    def work(device: SshDevice) -> None:
        device.put(case.model, "file")
        device.get("file", case.folder / "back")

    found = told(work)
    assert not (case.folder / "back").exists()
    return found


def hurry(case: Case) -> tuple[int, str]:
    """The worker has a few seconds."""
    return told(lambda device: RemoteWorker(device).ask("environment", (), limit_s=4))


@contextmanager
def another_host_key(server: Server) -> Iterator[None]:
    sshd.known(server, "stranger")
    before = (server.folder / "known").read_bytes()
    yield
    assert (server.folder / "known").read_bytes() == before, "nothing is added"


@contextmanager
def no_host_key(server: Server) -> Iterator[None]:
    sshd.known(server, "")
    yield
    assert (server.folder / "known").read_bytes() == b"", "nothing is added"


@contextmanager
def another_user_key(server: Server) -> Iterator[None]:
    config = server.folder / "config"
    config.write_text(config.read_text().replace("/user\n", "/stranger\n"), encoding="utf-8")
    yield


@contextmanager
def nobody_listens(server: Server) -> Iterator[None]:
    server.stop()
    yield


@contextmanager
def a_server_that_hangs(server: Server) -> Iterator[None]:
    assert server.process is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ssh._OPTIONS, "ConnectTimeout", "1")
        server.process.send_signal(signal.SIGSTOP)
        yield
        server.process.send_signal(signal.SIGCONT)


@contextmanager
def no_ssh_there(server: Server) -> Iterator[None]:
    """Something else has the port."""
    server.stop()
    with socket.create_server(("127.0.0.1", server.port)) as other:

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


@contextmanager
def no_shell_there(server: Server) -> Iterator[None]:
    script(server.folder / "login", "echo This account is currently not available.; exit 1")
    yield


def slow_cat(server: Server, when: str) -> threading.Thread:
    """Have transfers of one direction begin and get no further, and cut the connection then."""
    cat = server.folder / "tools" / "cat"
    script(cat, f"if {when}; then echo part; exec sleep 60; fi", f'exec {shutil.which("cat")} "$@"')
    return soon(server, server.cut)


@contextmanager
def dropped_in_put(server: Server) -> Iterator[None]:
    thread = slow_cat(server, "[ -f /dev/stdout ]")
    yield
    thread.join()


@contextmanager
def dropped_in_get(server: Server) -> Iterator[None]:
    thread = slow_cat(server, '[ "$#" -gt 0 ]')
    yield
    thread.join()


@contextmanager
def dropped_in_run(server: Server) -> Iterator[None]:
    thread = soon(server, server.cut, working)
    yield
    thread.join()


@contextmanager
def a_killed_worker(server: Server) -> Iterator[None]:
    def kill() -> None:
        for number, line in sshd.processes(f"{sshd.MARK}={server.port}").items():
            if working(line):
                os.kill(number, signal.SIGKILL)

    thread = soon(server, kill, working)
    yield
    thread.join()


@contextmanager
def a_worker_that_hangs(server: Server) -> Iterator[None]:
    script(server.folder / "tools" / "python3", "sleep 60 & wait")
    yield


@contextmanager
def a_full_disk(server: Server) -> Iterator[None]:
    """A real one of 16 kB where we may mount it, else a limit on the size of files."""
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=16k", "none", str(server.there)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        server.land(server.python, 'ulimit -f 8; trap "" XFSZ')
    yield
    assert server.left() == []
    if mounted:
        subprocess.run(["/bin/umount", "-l", str(server.there)], check=True)


@contextmanager
def no_python(server: Server) -> Iterator[None]:
    (server.folder / "tools" / "python3").unlink()
    yield


@contextmanager
def no_engine(server: Server) -> Iterator[None]:
    hidden = server.folder / "hidden"
    hidden.mkdir()
    (hidden / "onnxruntime.py").write_text("raise ModuleNotFoundError('No module named onnxruntime')")
    server.land([word.replace("PYTHONPATH=", f"PYTHONPATH={hidden}:") for word in server.python])
    yield


@contextmanager
def nonsense_for_an_answer(server: Server) -> Iterator[None]:
    script(server.folder / "tools" / "python3", "echo '<html>Log in to the hotel network</html>'")
    yield


class Fault(NamedTuple):
    """Something goes wrong, work meets it, and is told what, and what to do."""

    inject: Callable[[Server], AbstractContextManager[None]]
    says: str
    advises: str
    work: Callable[[Case], tuple[int, str]] = bench


FAULTS = (
    Fault(another_host_key, "another host key", "ssh-keygen -R"),
    Fault(no_host_key, "a host key that is not known", "accept its key"),
    Fault(another_user_key, "refuses the login", "ssh-copy-id"),
    Fault(nobody_listens, "no ssh server answers", "on that port"),
    Fault(a_server_that_hangs, "does not answer", "Is it on"),
    Fault(no_ssh_there, "cannot be reached", "Try `ssh board`"),
    Fault(no_shell_there, "This account is currently not available", "Try `ssh board`"),
    Fault(dropped_in_put, "connection to board was lost", "Is it still on"),
    Fault(dropped_in_run, "connection to board was lost", "Is it still on"),
    Fault(dropped_in_get, "connection to board was lost", "Is it still on", fetch),
    Fault(a_killed_worker, "ended by signal 9", "memory ran out"),
    Fault(a_worker_that_hangs, "python3 took longer than 4 s", "Raise the time limit", hurry),
    Fault(a_full_disk, "cannot take worker.pyz", "Free some room there"),
    Fault(no_python, "has no python3", "Install Python 3.9 or newer"),
    Fault(no_engine, "No module named onnxruntime", "pip install"),
    Fault(nonsense_for_an_answer, "no readable answer", "Try again"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.inject.__name__)
def test_a_fault_is_exit_code_3_a_clear_line_and_no_leftovers(
    board: Server, case: Case, fault: Fault
) -> None:
    """The fixtures look for files and processes that stayed, on both sides."""
    with fault.inject(board):
        code, said = fault.work(case)
    assert code == 3
    what, hint = said.rstrip("\n").split("\n")
    assert what.startswith("compress: ")
    assert "board" in what
    assert fault.says in what
    assert hint.startswith("  ")
    assert fault.advises in hint


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_tool_is_ended_amid_its_work(board: Server, case: Case, ending: int) -> None:
    code = "from edgepress.compressor.cli import main; main()"
    words = [sys.executable, "-c", code, "bench", "model.onnx", "--device", "board.toml"]
    environment = {**os.environ, "TMPDIR": str(case.folder / "tool")}
    (case.folder / "tool").mkdir()
    tool = subprocess.Popen(words, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    soon(board, lambda: tool.send_signal(ending), working).join()
    _, said = tool.communicate(timeout=60)
    assert tool.returncode == 130, said
    assert b"Traceback" not in said
    assert {path.name for path in (case.folder / "tool").iterdir()} <= {".ses"}  # of onnxruntime here
