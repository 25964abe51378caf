"""The counting plugin for QEMU (`plugin.c`): built by this machine's compiler, once for each emulator.

QEMU loads only plugins made for its own version of the plugin API, so it is asked first, by a plugin that wants a
version which no QEMU has: it refuses, and names the newest that it knows.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from edgepress.devices.base import DeviceTroubleError

KNOWN_APIS = range(1, 6)
"""Plugin API versions that `plugin.c` is written for: 1 is QEMU up to 8, 5 is QEMU 10."""

_PROBE = """
int qemu_plugin_version = 1 << 20;
int qemu_plugin_install(unsigned long id, const void *info, int argc, char **argv) { return -1; }
"""
_COMPILERS = ("cc", "gcc", "clang")
_LIMIT_S = 60.0


def plugin(emulator: Sequence[str], folder: Path) -> Path:
    """The plugin for an emulator, built where that has not been done.

    Args:
        emulator: the command that starts it, without arguments.
        folder: where built plugins are kept; made where missing.

    Returns:
        Path of the shared library.

    Raises:
        DeviceTroubleError: no compiler, or an emulator without plugins or with an API that is not known.
    """
    source = resources.files("edgepress.devices").joinpath("plugin.c").read_text(encoding="utf-8")
    version = _run([*emulator, "--version"]).stdout
    digest = hashlib.sha256(f"{source}\0{version}".encode()).hexdigest()[:16]
    built = folder / f"counter-{digest}.so"
    if not built.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as making:
            api = _api(emulator, Path(making))
            library = compiled(source, Path(making) / "counter.so", api)
            os.replace(library, built)  # noqa: PTH105 two processes may do this at once: either one's file will do
    return built


def compiled(source: str, target: Path, api: int) -> Path:
    """Compile a plugin as a shared library.

    Args:
        source: C.
        target: where it goes.
        api: version of QEMU's plugin API, defined as `API`.

    Raises:
        DeviceTroubleError: there is no compiler, or it refuses.
    """
    compiler = next((found for found in map(shutil.which, _COMPILERS) if found), None)
    if compiler is None:
        raise DeviceTroubleError(
            "no C compiler, which the instruction counter needs", "Install one: apt-get install gcc libc6-dev"
        )
    text = target.with_suffix(".c")
    text.write_text(source, encoding="utf-8")
    done = _run([compiler, "-O2", "-shared", "-fPIC", f"-DAPI={api}", str(text), "-o", str(target)])
    if done.returncode != 0:
        raise DeviceTroubleError(
            f"the instruction counter cannot be compiled: {_first_line(done.stderr)}",
            "Install the C library's headers: apt-get install gcc libc6-dev",
        )
    return target


def api_in(refusal: str) -> int | None:
    """The newest plugin API that an emulator has, read from its refusal; None where it does not say."""
    found = re.search(r"supports only up to version (\d+)", refusal)
    return int(found[1]) if found else None


def _api(emulator: Sequence[str], folder: Path) -> int:
    """The plugin API to build for; raises `DeviceTroubleError` where there is none."""
    probe = compiled(_PROBE, folder / "probe.so", 0)
    # Plugins are loaded before the program is looked at: any file will do.
    done = _run([*emulator, "-plugin", str(probe), str(probe)])
    api = api_in(done.stderr)
    if api is None:
        raise DeviceTroubleError(
            f"{emulator[0]} takes no plugins, so it cannot count instructions: {_first_line(done.stderr)}",
            "Use Debian 12's qemu-user, or a QEMU built with plugins: static ones have none.",
        )
    if api not in KNOWN_APIS:
        known = f"{KNOWN_APIS[0]} to {KNOWN_APIS[-1]}"
        raise DeviceTroubleError(
            f"{emulator[0]} has plugin API version {api}; the instruction counter knows {known}",
            "Use another QEMU: release 7 to 10.",
        )
    return api


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceTroubleError(f"{command[0]} does not run: {error}") from error


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[0]
