"""Releases of Python that this machine has."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


def interpreters(version: str) -> Iterator[str]:
    """Programs of this release that start: on PATH, of pyenv, of uv."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which(name), *sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/{name}")))]
    if shutil.which("uv"):
        found.append(_said(["uv", "python", "find", "--no-python-downloads", version]))
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for each in found:
        if each and _said([each, "-c", code]) == version:
            yield each


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
