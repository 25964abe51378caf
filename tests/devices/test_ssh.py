"""A board over SSH: a real sshd on 127.0.0.1, with this machine's Python; nothing may stay behind on either side.

Faults as the command line tells them are in `test_ssh_board.py`.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
import sshd
from sshd import SLEEP, Server, server, soon

from edgepress.compressor.model import to_proto
from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.remote import RemoteWorker
from edgepress.devices.ssh import SshDevice
from edgepress.runtime.environment import describe
from edgepress.runtime.record import EngineError

__all__ = ["server"]
pytestmark = sshd.needs_sshd
FEEDS = {"x": np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(to_proto(models.mlp(32)), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_long_temporary_folder_is_told_by_its_bytes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        usual = Path(short, "ü" * 40)  # of less than 60 letters, and of more bytes
        usual.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(usual))
        with SshDevice("board") as board:
            assert Path(board._control).parent != usual


def test_the_worker_runs_there_and_its_outputs_come_back(server: Server, model: Path) -> None:
    with SshDevice("board", sshd.PYTHON) as board:
        assert len(list(server.there.iterdir())) == 1
        (found,) = RemoteWorker(board).run([model], [FEEDS])
    expected = models.run(models.mlp(32), FEEDS)
    assert found["y"].tobytes() == expected["y"].tobytes()


def test_times_of_several_models_and_the_machine_s_own_report(server: Server, model: Path) -> None:
    with SshDevice("board", sshd.PYTHON) as board:
        worker = RemoteWorker(board)
        times, answer = worker.time([model, model], [FEEDS, FEEDS], time_limit_s=0.2)
        machine, condition = worker.environment()
        assert len(next(server.there.iterdir(), Path()).name.split("-")) == 2
    assert [len(each.samples_ns) for each in times] == [len(times[0].samples_ns)] * 2
    assert all(each.ci95_ns[0] <= each.median_ns <= each.ci95_ns[1] for each in times)
    assert answer.after.load_1min is not None
    assert (machine.cpu, machine.features) == (describe().cpu, describe().features)
    assert condition.load_1min is not None


def test_words_files_and_exit_codes_go_through_unchanged(server: Server, tmp_path: Path) -> None:
    odd = ["a b", "'", '"', "$HOME", "*", "", "-n", "é\n!"]
    content = bytes(range(256)) * 1000
    (tmp_path / "a name").write_bytes(content)
    with SshDevice("board") as board:
        done = board.run(["printf", "%s|", *odd])
        assert done.out.decode() == "".join(f"{word}|" for word in odd)
        assert board.run(["cat"], given=content).out == content
        assert board.run(["sh", "-c", "echo no >&2; exit 255"]).err == "no"
        codes = [board.run(["sh", "-c", f"exit {code}"]).code for code in (0, 3, 255)]
        assert codes == [0, 3, 255]
        assert board.run(["sh", "-c", "kill -9 $$"]).code == -9
        board.put(tmp_path / "a name", "file")
        board.get("file", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content
        with pytest.raises(ValueError, match="no plain file name"):
            board.put(tmp_path / "a name", "../file")
        with pytest.raises(DeviceTroubleError, match="does not give missing"):
            board.get("missing", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("server")
def test_a_name_that_leads_nowhere() -> None:
    with (
        pytest.raises(DeviceTroubleError, match="not a name that leads anywhere"),
        SshDevice("no-such-host.invalid"),
    ):
        pytest.fail("connected")


@pytest.mark.parametrize("address", ["-oProxyCommand=true", "", "a b", "a\nb"])
def test_an_address_is_no_option(address: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        SshDevice(address)


def test_no_ssh_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceTroubleError, match="no ssh on this machine"), SshDevice("board"):
        pytest.fail("connected")


def test_a_connection_that_drops(server: Server) -> None:
    with SshDevice("board") as board:
        thread = soon(server, server.cut)
        with pytest.raises(DeviceTroubleError, match="connection to board was lost"):
            board.run(SLEEP)
        thread.join()
        with pytest.raises(DeviceTroubleError, match="connection to board was lost"):
            board.run(["true"])


def test_a_command_that_takes_too_long_is_ended_there(server: Server) -> None:
    with SshDevice("board") as board:
        with pytest.raises(DeviceTroubleError, match=r"took longer than 0\.3 s"):
            board.run(SLEEP, limit_s=0.3)
        deadline = time.monotonic() + 5
        while (left := sshd.running(f"{sshd.MARK}={server.port}")) and time.monotonic() < deadline:
            if not any("sleep 60" in line for line in left):
                break
            time.sleep(0.02)
        assert not any("sleep 60" in line for line in left)
        assert board.run(["echo", "on"]).out == b"on\n", "the connection is as good as before"


def test_our_own_process_is_killed(server: Server) -> None:
    """Nobody is left here to clean up; the other side does."""
    code = (
        "from edgepress.devices.ssh import SshDevice\n"
        "with SshDevice('board') as board:\n"
        "    print(board._control, flush=True)\n"
        "    board.run(['sh', '-c', 'sleep 60 & wait'])\n"
    )
    ours = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    soon(server, lambda: os.kill(ours.pid, signal.SIGKILL)).join()
    control = Path(ours.communicate()[0].decode().strip())
    assert server.left() == []
    assert sshd.lasting(lambda: [*map(str, control.iterdir())]) == [], (
        "its ssh ends, and takes its socket along"
    )
    control.rmdir()


def test_a_server_is_up_once_it_has_the_port_itself(server: Server) -> None:
    """What the last one left may hold it for a while, and take connections."""
    server.stop()
    held = socket.create_server(("127.0.0.1", server.port))
    let_go = threading.Timer(0.5, held.close)
    let_go.start()
    server.start()
    let_go.join()
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        assert connection.recv(4) == b"SSH-"


def test_ctrl_c(server: Server) -> None:
    main = threading.main_thread().ident
    assert main is not None
    with SshDevice("board") as board:
        soon(server, lambda: signal.pthread_kill(main, signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            board.run(SLEEP)


def ask(model: Path, python: tuple[str, ...] = sshd.PYTHON) -> None:
    with SshDevice("board", python) as board:
        RemoteWorker(board).ask("time", [model], FEEDS, time_limit_s=0.1)


def test_numpy_is_missing_there(server: Server, model: Path) -> None:
    hidden = server.folder / "hidden"
    hidden.mkdir()
    (hidden / "numpy.py").write_text("raise ModuleNotFoundError('No module named numpy')")
    server.login["PYTHONPATH"] = str(hidden)
    server.start()
    with pytest.raises(EngineError, match=r"board: .*No module named numpy") as caught:
        ask(model)
    assert "pip install" in caught.value.hint


def test_a_model_that_the_engine_refuses(server: Server, model: Path) -> None:
    model.write_bytes(b"nonsense")
    with pytest.raises(EngineError, match=r"board: onnxruntime cannot load model\d\.onnx"):
        ask(model)


@pytest.fixture
def small_disk(server: Server) -> Iterator[None]:
    """A disk of 200 kB there: a real one where we may mount it, else a limit on the size of files."""
    mounted = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=200k", "none", str(server.there)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        server.lines = ('ForceCommand sh -c \'ulimit -f 200; trap "" XFSZ; eval "$SSH_ORIGINAL_COMMAND"\'',)
    server.start()
    yield
    assert server.left() == []
    if mounted.returncode == 0:
        subprocess.run(["/bin/umount", "-l", str(server.there)], check=True)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk(server: Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(1 << 20))
    with SshDevice("board") as board:
        with pytest.raises(DeviceTroubleError, match="board cannot take large") as caught:
            board.put(tmp_path / "large", "large")
        assert "Free some room" in caught.value.hint
        with pytest.raises(DeviceTroubleError, match="took longer"):
            board.run(SLEEP, limit_s=0.3)  # what notes its process needs no room


def test_boards_without_sftp_and_with_talkative_logins(server: Server, tmp_path: Path) -> None:
    """No subsystem is configured here at all; and what a login prints first is not taken for an answer."""
    server.lines = ("ForceCommand sh -c 'echo Welcome; eval \"$SSH_ORIGINAL_COMMAND\"'",)
    server.start()
    (tmp_path / "file").write_bytes(b"content")
    with SshDevice("board") as board:
        board.put(tmp_path / "file", "file")
        assert board.run(["cat", "file"]).out.endswith(b"content")
        board.python = sshd.PYTHON
        assert RemoteWorker(board).environment()[0].cpu == describe().cpu
