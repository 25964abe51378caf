"""The engine under another interpreter's packages: boards have tflite_runtime and an older numpy (docs/tflite.md)."""

import os
import subprocess
from pathlib import Path

import boardpython
import models
import numpy as np
import pytest
from tflite import between_pairs, one_op

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.export.tflite.grids import output_steps

PYTHON = boardpython.equipped()
CODE = """
import sys
import numpy as np
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.record import EngineError
engine = LiteRTEngine(as_onnx=True)
run = engine.load(open("model.tflite", "rb").read())
with np.load("in.npz") as feeds:
    feeds = dict(feeds)
    np.savez("out.npz", **run(feeds))
    run.bind(feeds)()
try:
    run({})
except EngineError as error:
    assert "inputs are" in str(error), error
print(engine.name, engine.version, run.delegate, run.partitions, np.__version__)
"""

pytestmark = pytest.mark.skipif(not PYTHON, reason="no Python with tflite_runtime: see `make board`")


def by_the_other(
    folder: Path, content: bytes, feeds: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], str]:
    """Outputs, and what the other interpreter says of itself; it sees the runtime and nothing else of ours."""
    (folder / "edgepress").mkdir()
    (folder / "edgepress" / "runtime").symlink_to(Path(__file__).parents[2] / "runtime")
    (folder / "model.tflite").write_bytes(content)
    np.savez(folder / "in.npz", **feeds)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [PYTHON, "-c", CODE], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    with np.load(folder / "out.npz") as arrays:
        return dict(arrays), done.stdout


@pytest.mark.parametrize("net", [models.mlp, models.cnn, models.residual, models.depthwise])
def test_floats_are_as_onnxruntime_has_them(tmp_path, net):
    model = net()
    feeds = models.feeds(model)
    found, said = by_the_other(tmp_path, convert(model).data, feeds)
    assert said.split()[0] in {"tflite_runtime", "litert", "tensorflow.lite"}
    for name, array in models.run(model, feeds).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("io", ["float32", "int8", "uint8"])
def test_integers_are_at_most_a_step_apart(tmp_path, io):
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((1, 3, 6, 6)).astype(np.float32)}
    held = {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32)}
    model, _ = between_pairs(one_op("Conv", feeds, constants=held), feeds, weights={"w": 0})
    found, _ = by_the_other(tmp_path, convert(model, io=io).data, feeds)
    step = output_steps(model)["y0"]
    expected = models.run(model, feeds)["y0"]
    np.testing.assert_allclose(found["y0"], expected, rtol=0, atol=1.001 * step)
