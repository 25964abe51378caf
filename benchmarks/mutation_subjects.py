"""What `mutation.py` damages: a folder of small files of every kind that edgepress reads, and who reads each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from mutators import Mutator, mutate_bytes, mutate_model, mutate_text

Run = Callable[[Sequence[str]], int]

QUICK = ("--no-device", "--no-cache", "--quiet", "--format", "onnx", "--out", "made")
APPLY = (
    "model.onnx",
    "--recipe",
    "recipe.toml",
    "--data",
    "calib.npz",
    "--test",
    "test.npz",
    "--target",
    "arm",
)

NET = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[N, 1, 6, 6] x) => (float[N, 4] y)
<float[3, 1, 3, 3] k, float[3] kb, float[3] scale, float[3] shift, float[3] mean, float[3] variance,
 float[27, 8] w, float[8] b, float[8, 4] v, bool yes = {1}>
{
   c = Conv <pads = [0, 0, 0, 0]> (x, k, kb)
   n = BatchNormalization (c, scale, shift, mean, variance)
   r = Relu (n)
   p = MaxPool <kernel_shape = [2, 2]> (r)
   f = Flatten (p)
   g = Gemm (f, w, b)
   h = If (yes) <
     then_branch = one () => (float[N, 8] o) { o = Relu (g) },
     else_branch = other () => (float[N, 8] q) { q = Sigmoid (g) }
   >
   y = MatMul (h, v)
}
"""
RECIPE = """
[[pass]]
kind = "shrink"
widths = [["g", 6]]

[[pass]]
kind = "low_rank"
ranks = [["g", 4]]

[[pass]]
kind = "quantize"
weight_bits = 8
sites = []

[[pass]]
kind = "store"
bits = [["g", 4]]
"""
BOARD = """
base = "x86"
description = "a board"
weight_bits = 8
macs_per_ns_fp32 = 12.5
node_overhead_ns = 900.0

[[kernel]]
kind = "add"
precision = "fp32"
inputs = [1.0]
outputs = [1.0]
positions = [16.0, 4096.0]
ns = [
  [[30.0, 900.0]],
]
"""
GATE = """
[gate]
baseline = "model.onnx"
candidate = "out/model.onnx"
test = "test.npz"
metric = "top1"
budget = 50.0
max_size = "0.9x"
seed = 3
history = "history.jsonl"
"""
PREPROCESS = """
color = "L"
layout = "NCHW"
size = [6, 6]
resize = 7
mean = [0.5]
std = [0.25]
scale = 0.00392
"""


@dataclass(frozen=True)
class Subject:
    """A file, and the command that reads it.

    Attributes:
        name: in the table of results.
        file: in the folder.
        mutate: changes its bytes.
        words: of the command.
    """

    name: str
    file: str
    mutate: Mutator
    words: tuple[str, ...]


SUBJECTS = (
    Subject("model", "model.onnx", mutate_model, (*APPLY, *QUICK)),
    Subject("model, inspected", "model.onnx", mutate_model, ("inspect", "model.onnx")),
    Subject("model with external data", "outside.onnx", mutate_model, ("outside.onnx", *APPLY[1:], *QUICK)),
    Subject("samples, compressed", "calib.npz", mutate_bytes, (*APPLY, *QUICK)),
    Subject("samples, stored", "test.npz", mutate_bytes, (*APPLY, *QUICK)),
    Subject("array", "rows.npy", mutate_bytes, (*APPLY[:4], "rows.npy", *APPLY[7:], *QUICK)),
    Subject("picture", "images/a.png", mutate_bytes, (*APPLY[:4], "images", *APPLY[7:], *QUICK)),
    Subject("preprocess", "images/preprocess.toml", mutate_text, (*APPLY[:4], "images", *APPLY[7:], *QUICK)),
    Subject("recipe", "recipe.toml", mutate_text, (*APPLY, *QUICK)),
    Subject("timings", "timings.json", mutate_text, (*APPLY, *QUICK, "--timings", "timings.json")),
    Subject("device profile", "board.toml", mutate_text, (*APPLY[:-1], "board.toml", *QUICK)),
    Subject("device profile, shown", "board.toml", mutate_text, ("devices", "show", "board.toml")),
    Subject("budget file", "edgepress.toml", mutate_text, ("gate", "--config", "edgepress.toml", "--quiet")),
    Subject("history", "history.jsonl", mutate_text, ("gate", "--config", "edgepress.toml", "--quiet")),
    Subject("manifest", "out/manifest.json", mutate_text, ("replay", "out", "--no-device", "--out", "made")),
    Subject(
        "front",
        "out/pareto.json",
        mutate_text,
        ("model.onnx", "--pick", "1", "--from", "out", *QUICK[:3], "--out", "made"),
    ),
    Subject("report", "out/report.json", mutate_text, ("report", "out", "--out", "page.html")),
    Subject(
        "certificate",
        "proof/certificate.json",
        mutate_text,
        ("certify", "mlp.onnx", "proof/model.onnx", "--check", "proof"),
    ),
    Subject(
        "sparse network", "small.npz", mutate_bytes, ("bench", "small.npz", "--seconds", "0.01", "--quiet")
    ),
    Subject(
        "checkpoint",
        "evolved.checkpoint.npz",
        mutate_bytes,
        (
            "evolve",
            "--data",
            "flat.npz",
            "--layers",
            "6,5,4",
            "--epochs",
            "2",
            "--resume",
            "--out",
            "evolved",
        ),
    ),
)


def random_weights(text: str, rng: np.random.Generator) -> onnx.ModelProto:
    """A model of its text, where weights have names and shapes only."""
    proto = onnx.parser.parse_model(text)
    for value in proto.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        drawn = rng.normal(0.3, 0.4, shape).astype(np.float32)
        values = np.abs(drawn) + 0.1 if value.name == "variance" else drawn
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, value.name))
    del proto.graph.value_info[:]
    return proto


MLP = """
<ir_version: 9, opset_import: ["" : 17]>
mlp (float[N, 6] x) => (float[N, 4] y)
<float[6, 8] v, float[8] b, float[8, 4] w>
{
   a = MatMul (x, v)
   c = Add (a, b)
   h = Relu (c)
   y = MatMul (h, w)
}
"""


def build(run: Run) -> None:
    """Fill the current folder with undamaged files of every kind, some by earlier runs of the tool.

    Args:
        run: takes the words of a command, and gives its exit code.
    """
    rng = np.random.default_rng(0)
    net = random_weights(NET, rng)
    onnx.save(net, "model.onnx")
    onnx.save(random_weights(MLP, rng), "mlp.onnx")
    onnx.save(net, "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    images, labels = rng.normal(size=(90, 1, 6, 6)).astype(np.float32), rng.integers(0, 4, 90)
    np.savez_compressed("calib.npz", x=images[:40], y=labels[:40])
    np.savez("test.npz", x=images[40:], y=labels[40:])
    np.savez("flat.npz", x=images[:40, 0, 0], y=labels[:40])
    np.save("rows.npy", images[:40])
    _write_texts({"recipe.toml": RECIPE, "board.toml": BOARD, "edgepress.toml": GATE})
    _write_pictures(Path("images"), rng)
    for words in (
        ("model.onnx", *APPLY[3:], *QUICK[:2], "--quiet", "--budget", "90", "--out", "out"),
        (*APPLY, *QUICK[:-1], "made", "--timings", "timings.json"),
        ("gate", "--config", "edgepress.toml", "--quiet"),
        ("certify", "mlp.onnx", "--box", "0,1", "--limit", "0.5", "--out", "proof", "--quiet"),
        ("evolve", "--data", "flat.npz", "--layers", "6,5,4", "--epochs", "2", "--out", "evolved", "--quiet"),
    ):
        if (code := run(words)) not in (0, 1, 4):
            raise SystemExit(f"compress {' '.join(words)}: exit code {code}")


def _write_texts(texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        Path(name).write_text(text, encoding="utf-8")


def _write_pictures(folder: Path, rng: np.random.Generator) -> None:
    import PIL.Image

    folder.mkdir()
    (folder / "preprocess.toml").write_text(PREPROCESS, encoding="utf-8")
    for name in ("a.png", "b.jpg", *(f"c{at}.png" for at in range(12))):
        PIL.Image.fromarray(rng.integers(0, 255, (7, 9), np.uint8)).save(folder / name)
