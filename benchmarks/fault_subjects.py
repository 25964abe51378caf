"""What `faults.py` runs: commands by name, and the files that they read."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RECIPE = '[[pass]]\nkind = "quantize"\n'
PLAIN = ("--target", "arm", "--no-device", "--format", "onnx", "--out", "out", "--quiet")
SAMPLES = ("--data", "calib.npz", "--test", "test.npz")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "search": ("model.onnx", *SAMPLES, *PLAIN, "--workers", "1"),
    "recipe": ("model.onnx", *SAMPLES, *PLAIN, "--recipe", "recipe.toml"),
    "evolve": (
        *("evolve", *SAMPLES, "--layers", "6,40,40,4", "--epochs", "6", "--batch", "20", "--epsilon", "3"),
        *("--kernels", "scipy", "--threads", "1", "--out", "out", "--quiet"),
    ),
    "bench": (
        "bench",
        "model.onnx",
        "--device",
        "local",
        "--seconds",
        "0.3",
        "--json",
        "out.json",
        "--quiet",
    ),
}
"""What is run, by name."""
FACES = {"bench": "out.json"}
"""What a command writes, where that is not `out`."""


def make_inputs(folder: Path) -> Mapping[str, bytes]:
    """Write a net 6 – 32 – 4, samples and a recipe; returns what is in them by name."""
    chance = np.random.default_rng(0)
    weights = [chance.normal(size=shape).astype(np.float32) for shape in ((6, 32), (32,), (32, 4), (4,))]
    names = ["w1", "b1", "w2", "b2"]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["s"], name="hidden"),
            helper.make_node("Relu", ["s"], ["h"]),
            helper.make_node("Gemm", ["h", "w2", "b2"], ["y"], name="out"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(each, name) for each, name in zip(weights, names, strict=True)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        folder / "model.onnx",
    )
    for name, rows in (("calib.npz", 80), ("test.npz", 60)):
        x = chance.normal(size=(rows, 6)).astype(np.float32)
        hidden = np.maximum(x @ weights[0] + weights[1], 0)
        np.savez(folder / name, x=x, y=(hidden @ weights[2] + weights[3]).argmax(1))
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return {path.name: path.read_bytes() for path in folder.iterdir()}
