"""What the benchmarks share: the zoo, a run of `compress` in a process of its own, facts of the machine."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OWN_ZOO = HERE / "zoo"
RESULTS = HERE / "results"

GIVE_UP = 1800.0
"""Seconds after which a run of `compress` is ended."""


@dataclass(frozen=True)
class Run:
    """How a command went.

    Attributes:
        command: as a user would type it, without where the result went.
        exit_code: negative where a signal ended it.
        seconds: by the clock.
        cpu_seconds: of all its threads.
        peak_mb: of memory.
        told: on stderr.
    """

    command: str
    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    told: str


def zoo_folder() -> Path:
    """EDGEPRESS_ZOO, else the repository's own models."""
    return Path(os.environ.get("EDGEPRESS_ZOO") or OWN_ZOO).resolve()


def known_models(zoo: Path) -> list[str]:
    """Names of the zoo's models."""
    return sorted(path.parent.name for path in zoo.glob("*/model.onnx"))


def chosen_models(zoo: Path, given: str | None) -> list[str]:
    """The models named by a comma-separated list, else all; ends the script where one is unknown."""
    known = known_models(zoo)
    models = given.split(",") if given else known
    if unknown := sorted(set(models) - set(known)):
        raise SystemExit(f"no such model in the zoo: {', '.join(unknown)}; there are: {', '.join(known)}")
    return models


def samples(folder: Path) -> tuple[str, str]:
    """Calibration samples and unseen ones, relative to the zoo."""
    if (folder / "images").is_dir():
        return f"{folder.name}/images/calib", f"{folder.name}/images/test"
    return f"{folder.name}/calib.npz", f"{folder.name}/test.npz"


def compress(zoo: Path, model: str, options: Sequence[str], out: Path) -> Run:
    """Run `compress` in the zoo's folder; what it writes lies in `out`."""
    command = shutil.which("compress", path=str(Path(sys.executable).parent)) or shutil.which("compress")
    if command is None:
        raise SystemExit("compress is not installed beside this Python: pip install -e '.[dev]'")
    arguments = [f"{model}/model.onnx", *options, "--no-cache", "--out"]
    with tempfile.TemporaryFile("w+") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            [command, *arguments, str(out)], cwd=zoo, stdout=subprocess.DEVNULL, stderr=errors
        )
        while (found := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            time.sleep(0.05)
            if time.monotonic() - started > GIVE_UP:
                process.kill()
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(found[1])
        errors.seek(0)
        told = errors.read()
    usage = found[2]
    shown = " ".join(["compress", *arguments, "OUT"])
    cpu = usage.ru_utime + usage.ru_stime
    return Run(shown, process.returncode, seconds, cpu, usage.ru_maxrss / 1024, told)


def size_on_disk(model: Path) -> int:
    """Bytes of a model's file and of those beside it that hold its weights."""
    return sum(file.stat().st_size for file in model.parent.glob(model.name + "*"))


def machine() -> dict[str, Any]:
    """What bears on the figures; no name of the machine and no path."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "load_1min_at_start": round(os.getloadavg()[0], 2)}


def versions() -> dict[str, str]:
    """Of this environment."""
    packages = ("edgepress", "onnx", "onnxruntime", "numpy", "scipy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def shown_command(script: str, words: Sequence[str], places: Sequence[str] = ("--out",)) -> str:
    """The command as it is stored: where things lie is nobody's business.

    Args:
        script: its name from the repository's root.
        words: its arguments.
        places: options that name a file or folder, each with a value.
    """
    pairs = zip(words, ["", *words], strict=False)
    kept = [word for word, last in pairs if last not in places and word.partition("=")[0] not in places]
    return " ".join([script, *kept])


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write indented JSON, whole or not at all, making the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
