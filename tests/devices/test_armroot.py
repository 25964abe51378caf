"""The emulator and the userland in the cache: whole or absent, through apt and pip alone, and clear where it fails."""

import multiprocessing
import os
import re
import signal
import time
from importlib import resources
from pathlib import Path

import pytest

from edgepress.devices import armroot
from edgepress.devices.armboard import CORES, write_board
from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.profile import load_profile
from edgepress.devices.qemu import QemuDevice

PACKAGING = Path(__file__).parents[2] / "devices"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def tools(home, monkeypatch):
    """Programs on PATH that note how they are called; `apt-get` says what a test writes to `apt`."""
    folder = home / "bin"
    folder.mkdir()

    def tool(name, body):
        (folder / name).write_text(f'#!/bin/sh\necho "$0 $*" >>{home}/calls\n{body}\n')
        (folder / name).chmod(0o755)

    tool("apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    tool("dpkg-deb", "exit 1")
    tool("dpkg", "echo amd64")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(
        armroot.shutil, "which", lambda name: None if name == armroot.EMULATOR else f"/bin/{name}"
    )
    return home


def said(line):
    """A callback that says nothing."""


def test_the_cache_is_where_users_have_theirs(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert armroot.cache_folder() == tmp_path / "edgepress/arm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert armroot.cache_folder() == tmp_path / ".cache/edgepress/arm"


def test_apt_writes_nowhere_but_in_its_folder():
    words = armroot.apt_options("arm64", Path("/f"), Path("/f/status"), Path("/etc/apt/sources.list"))
    options = dict(word.split("=", 1) for word in words[1::2])
    assert set(words[::2]) == {"-o"}
    assert options["APT::Architecture"] == "arm64"
    assert options["Dir::State"].startswith("/f/")
    assert options["Dir::Cache"].startswith("/f/")
    assert options["Dir::Etc::sourcelist"] == "/etc/apt/sources.list"


def test_what_apt_says_is_told_with_the_line_that_installs(tools):
    told: list[str] = []
    with pytest.raises(DeviceTroubleError) as caught:
        armroot.emulator(told.append)
    if "no Debian-like" not in str(caught.value):
        assert "E: Unable to locate package" in str(caught.value)
        assert "Dir::State=" in (tools / "calls").read_text()
    assert "apt-get install qemu-user" in caught.value.hint
    assert "emulator" in told[0]
    assert [path.name for path in armroot.cache_folder().iterdir()] == ["lock"]


def test_an_unpacked_emulator_has_its_libraries_and_keeps_them_from_programs(tools):
    folder = armroot.cache_folder() / "qemu"
    (folder / "usr/bin").mkdir(parents=True)
    program = str(folder / "usr/bin/qemu-aarch64")
    assert armroot.emulator(said) == (program,)
    libraries = folder / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    command = armroot.emulator(said)
    assert command == ("env", f"LD_LIBRARY_PATH={libraries}", program, "-U", "LD_LIBRARY_PATH")


def test_a_cache_that_cannot_be_written_is_told(home):
    (home / "cache").write_text("a file")
    with pytest.raises(DeviceTroubleError, match="cannot be written") as caught:
        armroot.userland(["qemu-aarch64"], said)
    assert "XDG_CACHE_HOME" in caught.value.hint


def make(folder, seconds, log):
    """Make a folder of one file slowly, as a process of its own."""
    with armroot._whole(folder, said) as making:
        if making is not None:
            with log.open("a") as lines:
                lines.write("made\n")
            time.sleep(seconds)
            (making / "file").write_text("whole")
    assert (folder / "file").read_text() == "whole"


def test_two_processes_make_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    folder, log = tmp_path / "cache/root", tmp_path / "log"
    both = [context.Process(target=make, args=(folder, 1, log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert log.read_text() == "made\n"


def test_what_a_killed_process_left_is_taken_away(tmp_path):
    context = multiprocessing.get_context("spawn")
    folder, log = tmp_path / "cache/root", tmp_path / "log"
    killed = context.Process(target=make, args=(folder, 600, log))
    killed.start()
    while not log.exists():
        time.sleep(0.05)
    assert killed.pid
    os.kill(killed.pid, signal.SIGKILL)
    killed.join(20)
    assert list(folder.parent.glob(".half-*"))
    assert not folder.exists()
    make(folder, 0, log)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["lock", "root"]


def fail(making):
    (making / "file").touch()
    raise ZeroDivisionError


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), armroot._whole(tmp_path / "cache/root", said) as making:
        fail(making)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_every_wheel_has_a_version_and_checksums():
    text = resources.files("edgepress.devices").joinpath("arm-wheels.txt").read_text()
    lines = [line for line in text.replace("\\\n", "").splitlines() if not line.startswith("#")]
    assert [re.split("==", line)[0] for line in lines] == ["numpy", "onnxruntime", "ai-edge-litert"]
    for line in lines:
        assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}(?![0-9a-f])", line)) == 3


def test_no_mirror_is_named():
    for path in [*PACKAGING.glob("*.py"), *PACKAGING.glob("*.txt")]:
        assert not re.search("(https?|ftp)://", path.read_text()), path


def test_nothing_of_the_user_reaches_programs(monkeypatch):
    monkeypatch.setenv("PYTHONSTARTUP", "mine")
    environment = armroot.guest_environment(Path("/root-of-it"))
    assert environment["PYTHONHASHSEED"] == "0"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert "PYTHONSTARTUP" not in environment


@pytest.mark.parametrize("core", CORES)
def test_a_board_says_what_core_it_has(core, tmp_path):
    (tmp_path / "root/usr").mkdir(parents=True)
    write_board(tmp_path / "board", tmp_path / "root", core, 4)
    board = tmp_path / "board"
    assert (board / "usr").resolve() == tmp_path / "root/usr"
    text = (board / "proc/cpuinfo").read_text()
    assert text.count("processor\t: ") == 4
    assert f"CPU part\t: 0x{CORES[core].midr >> 4 & 0xFFF:03x}\n" in text
    assert ("asimddp" in text) == (core in ("cortex-a76", "neoverse-n1"))
    cpus = board / "sys/devices/system/cpu"
    assert (cpus / "present").read_text() == "0-3\n"
    assert (cpus / "cpu3/cache/index2/shared_cpu_list").read_text() == "0-3\n"
    assert int((cpus / "cpu0/regs/identification/midr_el1").read_text(), 16) == CORES[core].midr


@pytest.mark.parametrize("name", ["cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1", "arm"])
def test_every_shipped_core_can_be_emulated(name):
    device = QemuDevice(load_profile(name))
    assert not device.timed
    assert device.name == name


def test_what_is_no_arm_core_is_refused():
    with pytest.raises(DeviceTroubleError, match="x86 cannot be emulated") as caught:
        QemuDevice(load_profile("x86"))
    assert "cortex-a72" in caught.value.hint


def test_a_device_is_used_open(tmp_path):
    device = QemuDevice(load_profile("cortex-a72"))
    with pytest.raises(DeviceTroubleError, match="not open"):
        device.run(["python3"])
    with pytest.raises(DeviceTroubleError, match="not open"):
        device.put(tmp_path, "x")
