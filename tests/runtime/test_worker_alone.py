"""The worker's one file under Pythons as boards have them: the oldest release, an old numpy, and tflite_runtime."""

import json
import subprocess
import sys
from pathlib import Path

import boardpython
import models
import numpy as np
import onnx
import pytest
from emulated import emulation

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.model import to_proto
from edgepress.devices.local import LocalDevice
from edgepress.devices.profile import load_profile
from edgepress.devices.qemu import QemuDevice
from edgepress.devices.remote import RemoteWorker
from edgepress.runtime import worker

__all__ = ["emulation"]
FEEDS = {"x": np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)}
LOADS = """import compileall, sys, zipfile
zipfile.ZipFile(sys.argv[1]).extractall("unpacked")
sys.exit(not compileall.compile_dir("unpacked", quiet=1))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model.tflite").write_bytes(convert(models.mlp(32)).data)
    return tmp_path / "model.tflite"


def test_all_of_it_loads_in_the_oldest_python_and_looks_around_without_a_library(tmp_path: Path) -> None:
    """In the one that is promised, where this machine has it; what it can read is linted everywhere."""
    bundle = str(worker.bundle(tmp_path / "worker.pyz"))
    alone = [boardpython.oldest() or sys.executable, "-I", "-S"]

    def said(*words: str, given: str = "") -> str:
        done = subprocess.run(
            [*alone, *words], input=given, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said("-c", LOADS, bundle)
    request = json.dumps({"task": "environment", "models": [], "feeds": None, "inputs": []})
    found = json.loads(said(bundle, given=request))["result"]["python"]
    assert found == said("-c", "import platform; print(platform.python_version())").strip()
    assert not boardpython.oldest() or found.startswith(f"{boardpython.VERSIONS[0]}.")


@pytest.mark.skipif(not boardpython.equipped(), reason="no Python with tflite_runtime: see `make board`")
def test_tflite_files_run_with_tflite_runtime_and_nothing_else(file: Path) -> None:
    """-I: neither this folder nor variables of the user lead to other packages."""
    python = (boardpython.equipped(), "-I")
    with LocalDevice(python=python) as device:
        found = RemoteWorker(device)
        machine, _ = found.environment()
        (look,) = found.look([file])
        (outputs,) = found.run([file], [FEEDS])
        (times,), _ = found.time([file], [FEEDS], time_limit_s=0.1)
        (growth,) = found.ask("memory", [file], FEEDS).result
        listed = device.run([*python, "-m", "pip", "list", "--format", "json"]).out
    packages = {each["name"].replace("_", "-"): each["version"] for each in json.loads(listed)}
    assert set(packages) - {"pip", "setuptools"} == {"numpy", "tflite-runtime"}
    assert packages["numpy"].startswith("1.")
    assert (look.engine, look.version) == ("tflite_runtime", packages["tflite-runtime"])
    assert machine.python.startswith(("3.9.", "3.10.", "3.11."))
    expected = models.run(models.mlp(32), FEEDS)
    np.testing.assert_allclose(outputs["y"], expected["y"], rtol=1e-5, atol=1e-6)
    assert times.median_ns > 0
    assert growth >= 0


@pytest.mark.usefixtures("emulation")
def test_it_runs_on_the_emulated_processor(file: Path, tmp_path: Path) -> None:
    onnx.save(to_proto(models.mlp(32)), tmp_path / "model.onnx")
    files = [tmp_path / "model.onnx", file]
    with QemuDevice(load_profile("cortex-a53"), counts=False) as device:
        found = RemoteWorker(device)
        machine, _ = found.environment()
        outputs = found.run(files, [FEEDS, FEEDS])
    assert (machine.arch, machine.cpu) == ("aarch64", "Cortex-A53")
    for each in outputs:
        np.testing.assert_allclose(each["y"], models.run(models.mlp(32), FEEDS)["y"], rtol=1e-5, atol=1e-6)
