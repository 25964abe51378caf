"""An emulator and a small 64-bit ARM userland (Python, numpy, engines), made in the user's cache on first use.

Everything comes through this machine's own apt and pip, so from the mirrors that it is set up for, and nothing of the
system is changed: apt works in a folder of its own, and packages are unpacked, not installed. apt checks signatures,
pip the checksums of `arm-wheels.txt`. A folder is made beside its place, tried, and renamed: it is whole or absent.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from edgepress.devices.base import DeviceTroubleError

Tell = Callable[[str], None]

EMULATOR = "qemu-aarch64"
_FORM = "1"  # raised where a userland is put together in another way
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
_SOURCES = ("sources.list.d/debian.sources", "sources.list.d/ubuntu.sources", "sources.list")
_INSTALL = "apt-get install qemu-user"
_LIMIT_S = 600.0
_OFFLINE = "It needs the network once, through apt and pip as they are set up here."


def cache_folder() -> Path:
    """Where the emulator, the userland and built plugins are kept: `edgepress/arm` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the standard says that a relative path counts as none
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "edgepress" / "arm"


def emulator(tell: Tell) -> tuple[str, ...]:
    """The command that starts the emulator: the installed one, else one that is unpacked into the cache.

    Args:
        tell: takes a line about what goes on, where that takes long.

    Raises:
        DeviceTroubleError: neither is to be had.
    """
    installed = shutil.which(EMULATOR)
    if installed:
        return (installed,)
    folder = cache_folder() / "qemu"
    hint = f"Install it: {_INSTALL}"
    with _whole(folder, tell) as making:
        if making is not None:
            tell("downloading the emulator (Debian package qemu-user)")
            arch = _checked(["dpkg", "--print-architecture"], "the emulator cannot be had", hint).strip()
            _unpack(("qemu-user",), arch, making, "the emulator cannot be had", hint)
            for other in (making / "usr/bin").iterdir():
                if other.name != EMULATOR:
                    other.unlink()
    libraries = [str(path) for path in sorted(folder.glob("**/lib/*-linux-gnu"))]
    program = str(folder / "usr/bin" / EMULATOR)
    if not libraries:
        return (program,)
    return ("env", f"LD_LIBRARY_PATH={':'.join(libraries)}", program, "-U", "LD_LIBRARY_PATH")


def prepared() -> bool:
    """Whether emulator and userland are there, so that nothing is downloaded on use."""
    there = shutil.which(EMULATOR) is not None or (cache_folder() / "qemu").is_dir()
    return there and _userland_folder().is_dir()


def userland(command: Sequence[str], tell: Tell) -> Path:
    """The root folder of the userland, made where it is missing: some 20 s and 80 MB of downloads.

    Args:
        command: what starts the emulator.
        tell: takes a line about what goes on.

    Raises:
        DeviceTroubleError: packages cannot be had, or Python does not start in what came out.
    """
    folder = _userland_folder()
    trouble = "the emulated ARM userland cannot be made"
    with _whole(folder, tell) as making:
        if making is not None:
            tell("downloading a small ARM userland (Debian packages, 25 MB)")
            _unpack(_PACKAGES, "arm64", making, trouble, _OFFLINE)
            _link_merged(making)
            tell("downloading numpy, onnxruntime and LiteRT for ARM (52 MB)")
            _add_wheels(_wheels(), making, trouble)
            tell("starting Python in it for the first time")
            _try(command, making, trouble)
    return folder


def _wheels() -> str:
    """The requirements, with checksums."""
    return resources.files("edgepress.devices").joinpath("arm-wheels.txt").read_text(encoding="utf-8")


def _userland_folder() -> Path:
    """Named by all that goes into it."""
    recipe = "\0".join((_FORM, *_PACKAGES, _wheels()))
    return cache_folder() / f"root-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def python_in(root: Path) -> Path:
    """The Python program of a userland."""
    return next(path for path in sorted(root.glob("usr/bin/python3.*")) if path.name[9:].isdigit())


def guest_environment(root: Path) -> dict[str, str]:
    """Environment in which programs of the userland run: nothing of the user's own, nothing random."""
    return {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": str(root / "opt/site"),
        "PYTHONHASHSEED": "0",  # the order in sets would change instruction counts
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


@contextmanager
def _whole(folder: Path, tell: Tell) -> Iterator[Path | None]:
    """A folder to make what will stand as `folder`, or None where it stands already.

    One process at a time; others wait for it. What a killed one left is taken away by the next.
    """
    if folder.is_dir():
        yield None
        return
    parent = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = (parent / "lock").open("w")
    except OSError as error:
        raise DeviceTroubleError(
            f"{parent} cannot be written: {error.strerror}", "Set XDG_CACHE_HOME to a folder that can."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another process that prepares the emulated device")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            yield None
            return
        for stale in parent.glob(".half-*"):
            shutil.rmtree(stale, ignore_errors=True)
        making = Path(tempfile.mkdtemp(dir=parent, prefix=".half-"))
        try:
            yield making
            making.rename(folder)
        except OSError as error:
            raise DeviceTroubleError(f"{parent} cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(making, ignore_errors=True)


def apt_options(arch: str, folder: Path, status: Path, sources: Path) -> list[str]:
    """Options of apt for packages of any architecture, with all that it writes below a folder of ours.

    Args:
        arch: Debian's name of the architecture.
        folder: for lists and downloads.
        status: file of the packages that count as installed.
        sources: the file that names the mirrors.
    """
    options = (
        f"APT::Architecture={arch}",
        f"APT::Architectures={arch}",
        f"Dir::State={folder}/state",
        f"Dir::State::status={status}",
        f"Dir::Cache={folder}/cache",
        f"Dir::Etc::sourcelist={sources}",
        "Dir::Etc::sourceparts=/dev/null",
        "APT::Install-Recommends=false",
        "APT::Sandbox::User=root",  # ours to read, whoever we are
        "APT::Update::Post-Invoke-Success=",
        "Acquire::Languages=none",
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
        "Debug::NoLocking=true",
        "Binary::apt-get::APT::Keep-Downloaded-Packages=true",
    )
    return [word for option in options for word in ("-o", option)]


def _unpack(packages: Sequence[str], arch: str, target: Path, trouble: str, hint: str) -> None:
    """Download packages with what they need beyond this machine's own (same architecture) or all, and unpack them."""
    found = [Path("/etc/apt") / name for name in _SOURCES if (Path("/etc/apt") / name).is_file()]
    if not found or shutil.which("dpkg-deb") is None:
        raise DeviceTroubleError(f"{trouble}: this is no Debian-like system", hint)
    with tempfile.TemporaryDirectory(prefix="edgepress-") as temporary:
        folder = Path(temporary)
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        status = folder / "status"
        status.touch()
        if arch != "arm64":
            status = Path("/var/lib/dpkg/status")
        apt = ["apt-get", *apt_options(arch, folder, status, found[0]), "-qq"]
        _checked([*apt, "update"], trouble, hint)
        _checked([*apt, "--yes", "--download-only", "--reinstall", "install", *packages], trouble, hint)
        archives = sorted((folder / "cache/archives").glob("*.deb"))
        if not archives:
            raise DeviceTroubleError(f"{trouble}: apt downloaded nothing", hint)
        for archive in archives:
            _checked(["dpkg-deb", "-x", str(archive), str(target)], trouble, hint)


def _link_merged(root: Path) -> None:
    """Give /lib to a userland whose packages know /usr/lib only: the link comes with none of them."""
    for name in ("lib", "bin"):
        if not (root / name).exists() and (root / "usr" / name).is_dir():
            (root / name).symlink_to(f"usr/{name}")


def _add_wheels(requirements: str, root: Path, trouble: str) -> None:
    version = python_in(root).name.removeprefix("python")
    with tempfile.TemporaryDirectory(prefix="edgepress-") as temporary:
        listed = Path(temporary) / "requirements.txt"
        listed.write_text(requirements, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        command += ["install", "--require-hashes", "--no-deps", "--only-binary=:all:", "--no-compile"]
        command += ["--implementation=cp", f"--python-version={version}"]
        command += [f"--platform={platform}" for platform in _PLATFORMS]
        _checked(
            [*command, "--target", str(root / "opt/site"), "--requirement", str(listed)], trouble, _OFFLINE
        )


def _try(command: Sequence[str], root: Path, trouble: str) -> None:
    """Import what devices need; byte code that this leaves makes every later start quicker."""
    from edgepress.devices.armboard import write_board

    with tempfile.TemporaryDirectory(prefix="edgepress-") as temporary:
        board = Path(temporary) / "board"
        write_board(board, root, "cortex-a72", 1)
        program = [*command, "-L", str(board), "-cpu", "cortex-a72", str(python_in(root))]
        code = "import json, zipfile, ctypes, statistics, dataclasses, numpy, onnxruntime, ai_edge_litert.interpreter"
        _checked([*program, "-c", code], trouble, _OFFLINE, environment=guest_environment(root))


def _checked(
    command: Sequence[str], trouble: str, hint: str, environment: dict[str, str] | None = None
) -> str:
    """Run a command to its end and return what it printed; raises `DeviceTroubleError`."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceTroubleError(f"{trouble}: {error}", hint) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"{command[0]} ended with code {done.returncode}"])[-1]
        raise DeviceTroubleError(f"{trouble}: {last}", hint)
    return done.stdout
