"""The two nets of `cycles.py`: their weights by name, their training, and the same as ONNX."""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

import cycle_kernel as kernel

Floats = npt.NDArray[np.float32]
Weights = dict[str, Floats]
"""Biases of the layers before the last one are called `bias_…`; their lengths are the widths."""

SINGLE = np.float32


def widths_of(weights: Mapping[str, Floats]) -> list[int]:
    """Units of each hidden layer, front to back."""
    return [len(weights[name]) for name in sorted(weights) if name.startswith("bias_")]


def weights_of(model: ir.Model) -> Weights:
    """Initializers by name."""
    return {
        name: np.array(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def _onnx(header: str, body: str, weights: Mapping[str, Floats]) -> ir.Model:
    """A model in ONNX's text."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {header} {{ {body} }}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def activation(threshold: float) -> str:
    """The ReLU, or the modified one."""
    return f"ThresholdedRelu <alpha = {threshold:f}>" if threshold else "Relu"


def chosen(weights: Weights, units: npt.NDArray[np.bool_]) -> Weights:
    """Of a summation net, some units."""
    axes = {"w1": 1, "bias_1": 0, "w2": 0}
    return {name: np.compress(units, w, axes[name]) if name in axes else w for name, w in weights.items()}


def store(whole: Weights, weights: Weights, places: npt.NDArray[np.intp]) -> None:
    """Put a summation net's units back to their places."""
    whole["w1"][:, places], whole["bias_1"][places] = weights["w1"], weights["bias_1"]
    whole["w2"][places], whole["b2"][:] = weights["w2"], weights["b2"]


class Summation:
    """y = i₁ + i₂ by 2-1000-1 with ReLU; i uniform in [−1, 1] (Çallı 2017 §2.1.1).

    Squared error, momentum 0.3, rate 0.01, a million rows in batches of 1000, ten epochs, as in the document. It does
    not say how weights begin. With standard normal ones, which its library gives where nothing is said, the first
    steps are far longer than the curvature allows (rate · λ is 9, the limit 2 (1 + momentum) = 2.6): units die at
    random, and with two seeds of six all of them before anything is learnt. With 0.7 of that, where rate · λ is 4.4,
    all six learn and some units die; with 0.5 (2.3) next to none does.
    """

    name = "sum"
    ideal: tuple[int, ...] = (1,)
    start_epochs, cycle_epochs, quiet = 10, 1, 5
    units, batch, rows = 1000, 1000, 1_000_000
    rate, momentum, penalty = 0.01, 0.3, 0.03
    deviation = SINGLE(0.7)

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.train_rows: Floats = rng.uniform(-1, 1, (self.rows, 2)).astype(SINGLE)
        self.test_rows: Floats = rng.uniform(-1, 1, (10_000, 2)).astype(SINGLE)
        self.test_targets: Floats = self.test_rows.sum(axis=1, keepdims=True)

    def start(self, seed: int) -> Weights:
        """Not trained yet."""
        rng = np.random.default_rng([seed, 2])
        return {
            "w1": self.deviation * rng.standard_normal((2, self.units)).astype(SINGLE),
            "bias_1": np.zeros(self.units, SINGLE),
            "w2": self.deviation * rng.standard_normal((self.units, 1)).astype(SINGLE),
            "b2": np.zeros(1, SINGLE),
        }

    def train(
        self, weights: Weights, epochs: int, seed: int, *, regularised: bool = False, threshold: float = 0.0
    ) -> Weights:
        """Stochastic gradient descent with momentum; L1 as soft thresholds after each step, so that zeros are zeros.

        Without a penalty a unit that no row makes fire has no gradient: it is left out to the end, to the same result.
        """
        rng = np.random.default_rng([seed, 3])
        whole, places = (
            {name: value.copy() for name, value in weights.items()},
            np.arange(len(weights["bias_1"])),
        )
        w = {name: value.copy() for name, value in whole.items()}
        velocity = {name: np.zeros_like(value) for name, value in w.items()}
        shrinkage = SINGLE(self.rate * self.penalty if regularised else 0)
        for _ in range(epochs):
            if not regularised:
                fires = self.fires(w, threshold)
                store(whole, w, places)
                places = places[fires]
                w, velocity = (chosen(each, fires) for each in (w, velocity))
            order = rng.permutation(self.rows)
            for at in range(0, self.rows, self.batch):
                x = self.train_rows[order[at : at + self.batch]]  # (batch, 2)
                gradients = self.gradients(w, x, x.sum(axis=1, keepdims=True), threshold)
                for name, gradient in gradients.items():
                    velocity[name] = SINGLE(self.momentum) * velocity[name] - SINGLE(self.rate) * gradient
                    w[name] += velocity[name]
                    if regularised:
                        w[name] = np.sign(w[name]) * np.maximum(np.abs(w[name]) - shrinkage, 0)
        store(whole, w, places)
        return whole

    def fires(self, w: Weights, threshold: float) -> npt.NDArray[np.bool_]:
        """Whether each unit is above the threshold for any row, [units]."""
        found = np.zeros(len(w["bias_1"]), bool)
        for at in range(0, self.rows, self.batch):
            silent = np.flatnonzero(~found)
            z = self.train_rows[at : at + self.batch] @ w["w1"][:, silent] + w["bias_1"][silent]
            found[silent] = (z > threshold).any(axis=0)
        return found

    @staticmethod
    def gradients(w: Weights, x: Floats, y: Floats, threshold: float) -> Weights:
        """Of the mean squared error over rows x [n, 2] with sums y [n, 1]."""
        columns = np.ascontiguousarray(x.T)
        found = kernel.gradients(w["w1"], w["bias_1"], w["w2"], w["b2"], columns, y[:, 0], threshold)
        return dict(zip(("w1", "bias_1", "w2", "b2"), found, strict=True))

    @staticmethod
    def distorted(weights: Weights, rng: np.random.Generator) -> Weights:
        """Each w + u · (1 − Var(w)) with u uniform in [−1, 1]; none where the variance is above 1."""
        return {
            name: (w + rng.uniform(-1, 1, w.shape) * max(0.0, 1 - float(w.var()))).astype(SINGLE)
            for name, w in weights.items()
        }

    @staticmethod
    def model(weights: Weights, threshold: float = 0.0) -> ir.Model:
        """As ONNX."""
        body = f"z = Gemm(x, w1, bias_1) h = {activation(threshold)}(z) y = Gemm(h, w2, b2)"
        return _onnx("(float[N, 2] x) => (float[N, 1] y)", body, weights)


class AutoEncoder:
    """Two convolutions that halve, two transposed ones that double, 3 × 3; each with bias, BatchNorm and ReLU.

    28 × 28 × 1 → 14 × 14 × 32 → 7 × 7 × 64 → 14 × 14 × 32 → 28 × 28 × 1 (Çallı 2017 §2.1.2). Squared error on pixels in
    [0, 1], by Adam, in batches of 50; the document does not say how it trained.
    """

    name = "convae"
    ideal: tuple[int, ...] = (4, 16, 4)
    start_epochs, cycle_epochs, quiet = 4, 1, 8  # the penalty takes six epochs from a first scale to zero
    channels = (1, 32, 64, 32, 1)

    def __init__(self, mnist: Path, python: Path) -> None:
        self.mnist, self.python = mnist, python
        with np.load(mnist, allow_pickle=False) as held:
            self.train_rows: Floats = held["x_train"].astype(SINGLE) / SINGLE(255)
            self.test_rows: Floats = held["x_test"].astype(SINGLE) / SINGLE(255)
        self.test_targets = self.test_rows

    def start(self, seed: int) -> Weights:
        """He's normal numbers; ConvTranspose has its inputs first."""
        rng = np.random.default_rng([seed, 2])
        found: Weights = {}
        for place, (inputs, outputs) in enumerate(
            zip(self.channels, self.channels[1:], strict=False), start=1
        ):
            shape = (outputs, inputs, 3, 3) if place <= 2 else (inputs, outputs, 3, 3)
            scale = np.sqrt(
                2 / (9 * inputs) * (1 if place <= 2 else 4)
            )  # a stride of 2 leaves a quarter of the taps
            found[f"w{place}"] = (rng.standard_normal(shape) * scale).astype(SINGLE)
            found[self.bias(place)] = np.zeros(outputs, SINGLE)
            found[f"gamma{place}"] = np.full(
                outputs, 0.5, SINGLE
            )  # Liu et al. 2017: what begins at 1 is slow to go
            found[f"beta{place}"] = np.zeros(outputs, SINGLE)
            found[f"mean{place}"], found[f"var{place}"] = np.zeros(outputs, SINGLE), np.ones(outputs, SINGLE)
        return found

    @staticmethod
    def bias(place: int) -> str:
        """Name of a layer's bias."""
        return f"bias_{place}" if place < 4 else "b4"

    def train(
        self, weights: Weights, epochs: int, seed: int, *, regularised: bool = False, threshold: float = 0.0
    ) -> Weights:
        """By `cycles_torch.py`, in a process of the other environment."""
        with tempfile.TemporaryDirectory(prefix="cycles-") as folder:
            before, after = Path(folder) / "before.npz", Path(folder) / "after.npz"
            np.savez(before, allow_pickle=False, **weights)
            script = Path(__file__).with_name("cycles_torch.py")
            words = [self.python, script, "--weights", before, "--mnist", self.mnist, "--out", after]
            words += ["--epochs", epochs, "--seed", seed, "--threshold", threshold]
            subprocess.run(
                [str(word) for word in words] + (["--regularised"] if regularised else []), check=True
            )
            with np.load(after, allow_pickle=False) as held:
                return {name: held[name] for name in held.files}

    @staticmethod
    def distorted(weights: Weights, rng: np.random.Generator) -> Weights:
        """Each w + u · σ(w) with u uniform in [−1, 1], on kernels: the document does not say how much."""
        return {
            name: (w + rng.uniform(-1, 1, w.shape) * w.std()).astype(SINGLE) if w.ndim == 4 else w
            for name, w in weights.items()
        }

    def model(self, weights: Weights, threshold: float = 0.0) -> ir.Model:
        """As ONNX."""
        down = "Conv <pads = [1, 1, 1, 1], strides = [2, 2]>"
        up = "ConvTranspose <pads = [1, 1, 1, 1], strides = [2, 2], output_padding = [1, 1]>"
        body = ""
        for place in range(1, 5):
            source, result = ("x" if place == 1 else f"h{place - 1}"), ("y" if place == 4 else f"h{place}")
            kind = activation(threshold if place < 4 else 0.0)
            body += (
                f" c{place} = {down if place <= 2 else up}({source}, w{place}, {self.bias(place)})"
                f" n{place} = BatchNormalization(c{place}, gamma{place}, beta{place}, mean{place}, var{place})"
                f" {result} = {kind}(n{place})"
            )
        return _onnx("(float[N, 1, 28, 28] x) => (float[N, 1, 28, 28] y)", body, weights)
