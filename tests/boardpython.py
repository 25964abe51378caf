"""A Python as boards have it: the oldest that the worker promises, where this machine has one, with tflite_runtime.

`PYTHONPATH=benchmarks python tests/boardpython.py FOLDER` makes an environment of it, with nothing else in it.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from interpreters import interpreters

VERSIONS = ("3.9", "3.10", "3.11")
"""Those that tflite_runtime has wheels for; the first is what the worker promises."""
PACKAGES = ("tflite-runtime", "numpy<2")
ROOT = Path(__file__).parents[1]


@cache
def oldest() -> str:
    """A bare interpreter of the oldest release; empty where there is none."""
    return next(interpreters(VERSIONS[0]), "")


@cache
def equipped() -> str:
    """An interpreter with tflite_runtime: the one that a variable names, else of the environment; empty if none."""
    made = ROOT / ".venv-board" / "bin" / "python"
    return os.environ.get("EDGEPRESS_TFLITE_PYTHON") or (str(made) if made.exists() else "")


def make(folder: Path) -> bool:
    """Make the environment of the oldest interpreter that the packages can be had for; says whether there is one."""
    for python in (each for version in VERSIONS for each in interpreters(version)):
        made = subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=False).returncode == 0
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        pip += ["--disable-pip-version-check", "--only-binary", ":all:", *PACKAGES]
        if made and subprocess.run(pip, check=False, timeout=300).returncode == 0:
            return True
        shutil.rmtree(folder, ignore_errors=True)
    return False


if __name__ == "__main__":
    if not make(Path(sys.argv[1])):
        sys.exit(f"no environment with {' and '.join(PACKAGES)}: tests that need it are skipped")
