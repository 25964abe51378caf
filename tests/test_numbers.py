"""Samples and activations that break statistics: each run ends with a verdict or a clear line, never with garbage."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import models
import numpy as np
import onnx
import pytest
from clicase import Case
from models import Weights, constants

from edgepress.compressor.model import load, to_proto

Arrays = dict[str, Any]


def weights(classes: int = 4) -> Weights:
    """Of a net 6 – 32 – classes."""
    return constants(1, w1=(32, 6), b1=(32,), w2=(classes, 32), b2=(classes,))


class Numbers(NamedTuple):
    """A net with samples.

    Attributes:
        weights: of the net.
        rows: inputs [rows, 6].
        labels: of the rows; None: the net's own classes.
        tail: what follows the net's last sum `z`.
        options: further words.
        codes: exit codes that there may be.
        says: that is printed or reported.
    """

    weights: Weights
    rows: np.ndarray[Any, np.dtype[np.float32]]
    labels: Any = None
    tail: str = "y = Identity(z)"
    options: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)
    says: str = ""


def normal(rows: int = 140) -> Any:
    return np.random.default_rng(3).normal(size=(rows, 6)).astype(np.float32)


def outliers() -> Numbers:
    x = normal()
    x[::10, 0] *= 1e6
    return Numbers(weights(), x)


def beyond_float32() -> Numbers:
    x = normal()
    x[5, 0] = 1e38
    return Numbers(weights(), x, codes=(0, 1, 2))


def constants_only() -> Numbers:
    return Numbers(weights(), np.full((140, 6), 0.5, np.float32), codes=(2,), says="also in")


def constant_features() -> Numbers:
    x = normal()
    x[:, 1:] = 0.5
    return Numbers(weights(), x)


def denormals() -> Numbers:
    made = weights()
    made["b1"] *= 0
    made["b2"] *= 0
    return Numbers(made, normal() * np.float32(1e-41))


def zero_channels() -> Numbers:
    made = weights()
    made["w1"][::2] = 0
    made["b1"][::2] = 0
    made["w2"][:, 1::4] = 0
    return Numbers(made, normal())


def dead_layer() -> Numbers:
    made = weights()
    made["b1"] -= 1000
    return Numbers(made, normal())


def one_sample() -> Numbers:
    return Numbers(weights(), normal(2), codes=(4,), says="too few to tell")


def thousand_classes() -> Numbers:
    return Numbers(weights(1000), normal(1000), labels=np.arange(1000), codes=(2,), says="original scores")


def thousand_right_answers() -> Numbers:
    """A layer that knows each of a thousand samples, and sees them again with a little noise."""
    chance = np.random.default_rng(5)
    known = chance.normal(size=(1000, 6)).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    made = {
        "w1": np.eye(6, dtype=np.float32),
        "b1": np.full(6, 2, np.float32),
        "w2": known,
        "b2": known.sum(1) * -2,
    }
    seen = known[chance.permutation(1000)[:400]]
    x = np.concatenate([known, seen + chance.normal(size=seen.shape).astype(np.float32) * 0.002])
    return Numbers(made, x, codes=(0, 1))


def tiny_units() -> Numbers:
    made = weights(1)
    made["w2"] *= 1e-9
    made["b2"] *= 1e-9
    return Numbers(made, normal(), labels="outputs", options=("--metric", "mse"), codes=(2,), says="fidelity")


def tiny_units_with_noise() -> Numbers:
    made = weights(1)
    made["w2"] *= 1e-9
    made["b2"] *= 1e-9
    return Numbers(made, normal(), labels="noisy", options=("--metric", "mse"))


def nan_outputs() -> Numbers:
    return Numbers(weights(), normal(), tail="y = Log(z)", codes=(2,), says="NaN or infinite in 70 of 70")


def infinite_outputs() -> Numbers:
    made = weights()
    made["b2"] += 200
    return Numbers(made, normal(), tail="y = Exp(z)", codes=(2,), says="NaN or infinite in 70 of 70")


def nan_in_places() -> Numbers:
    x = normal()
    x[3, 0] = x[75, 0] = -40
    tail = (
        "limit = Constant<value_float = -30.0>() m = ReduceMin<keepdims = 1>(x, axis) "
        "low = Less(m, limit) nan = Log(limit) y = Where(low, nan, z)"
    )
    return Numbers(weights() | {"axis": np.array([1])}, x, tail=tail, says="NaN or infinite in 1 of 70")


def nan_inside() -> Numbers:
    tail = "l = Log(z) n = IsNaN(l) zero = Constant<value_float = 0.0>() y = Where(n, zero, l)"
    return Numbers(weights(), normal(), tail=tail)


CASES: tuple[Callable[[], Numbers], ...] = (
    outliers, beyond_float32, constants_only, constant_features, denormals, zero_channels, dead_layer, one_sample,
    thousand_classes, thousand_right_answers, tiny_units, tiny_units_with_noise, nan_outputs, infinite_outputs,
    nan_in_places, nan_inside,
)  # fmt: skip


def set_up(case: Case, numbers: Numbers) -> None:
    """Write model and samples; the second half is unseen."""
    classes = len(numbers.weights["b2"])
    body = "h = Gemm <transB = 1> (x, w1, b1) a = Relu(h) z = Gemm <transB = 1> (a, w2, b2) " + numbers.tail
    model = models.text(f"(float[N, 6] x) => (float[N, {classes}] y)", body, numbers.weights)
    onnx.save(to_proto(model), case.model)
    outputs = models.run(model, {"x": numbers.rows})["y"]
    labels = numbers.labels
    if isinstance(labels, str):
        noise = np.random.default_rng(4).normal(size=outputs.shape) * outputs.std() / 10
        labels = (outputs + (noise if labels == "noisy" else 0)).astype(np.float32)
    elif labels is None:
        labels = outputs.argmax(1)
    half = max(1, len(numbers.rows) // 2)
    case.samples("calib.npz", x=numbers.rows[:half], y=labels[:half])
    case.samples("test.npz", x=numbers.rows[-half:], y=labels[-half:])


@pytest.mark.parametrize("objective", ["latency", "size"])
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_odd_numbers(case: Case, make: Callable[[], Numbers], objective: str) -> None:
    """What is written runs, is finite where the original is, and scores what the report says."""
    numbers = make()
    set_up(case, numbers)
    done = case.compress("--objective", objective, *numbers.options)
    assert done.code in numbers.codes, done.err
    assert numbers.says in done.err + done.out
    if done.code == 2:
        assert done.err.count("\n") == 2
        assert not case.out.exists()
        return
    test = case.load_samples("test.npz")
    report = json.loads((case.out / "report.json").read_text())
    before, after = (
        models.run(load(f), {"x": test["x"]})["y"] for f in (case.model, case.out / "model.onnx")
    )
    assert (np.isfinite(after) >= np.isfinite(before)).all()
    assert report["compressed"]["size_bytes"] <= report["baseline"]["size_bytes"]
    good = np.isfinite(after).all(1)
    right = good & (after.argmax(1) == test["y"]) if test["y"].ndim == 1 else (after - test["y"]) ** 2
    assert np.mean(right) * (100 if test["y"].ndim == 1 else 1) == pytest.approx(
        report["compressed"]["score"], 1e-4
    )
