import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepress.compressor import compare
from edgepress.compressor.data import Batch, open_data
from edgepress.compressor.errors import MetricError
from edgepress.compressor.metrics import Metric, fidelity, resolve_metric, score_all, score_rows, unread
from edgepress.compressor.model import InputSpec
from edgepress.compressor.protocols import Array
from edgepress.compressor.scoring import BuiltIn, UserMetric

FLOAT = np.dtype(np.float32)


def batch(labels: Any = None, x: Any = None, count: int = 4) -> Batch:
    labels = None if labels is None else np.asarray(labels)
    count = count if labels is None else len(labels)
    feeds = {"x": np.zeros((count, 3), FLOAT) if x is None else x}
    return Batch(feeds, labels, np.arange(count))


def logits(*chosen: int, classes: int = 10) -> Array:
    return np.eye(classes, dtype=np.float32)[list(chosen)] * 5 - 1


def values_of(
    metric: Metric, output: Array, truth: Array | None, original: Array | None = None
) -> list[float]:
    reference = None if original is None else {"out": original}
    return list(metric.per_row({"out": output}, truth, reference))


@pytest.mark.parametrize(
    ("outputs", "labels", "name"),
    [
        (logits(1, 2, 3, 4), [1, 2, 3, 9], "top1"),
        (logits(1, 2, 3, 4), [1.0, 2.0, 3.0, 9.0], "top1"),
        (logits(1, 2, 3, 4), np.eye(10)[[1, 2, 3, 9]], "top1"),
        (np.zeros((4, 1), FLOAT), [0, 1, 0, 1], "top1"),
        (np.zeros((4, 5, 8, 8), FLOAT), np.zeros((4, 8, 8), np.int64), "top1"),
        (np.zeros((4, 7, 30), FLOAT), np.zeros((4, 7), np.int64), "top1"),
        (np.zeros(4, np.int64), [0, 1, 2, 3], "top1"),
        (np.zeros((4, 1), FLOAT), [0.5, 1.5, 0.0, 1.0], "mse"),
        (np.zeros((4, 3, 8, 8), FLOAT), np.full((4, 3, 8, 8), 0.5), "psnr"),
        (np.zeros((4, 3, 8, 8), FLOAT), np.full((4, 3, 8, 8), 1.5), "mse"),
        (np.zeros((4, 3), FLOAT), None, "agreement"),
        (np.zeros((4, 3, 8, 8), FLOAT), None, "fidelity"),
        (np.zeros((4, 1), FLOAT), None, "fidelity"),
        (np.zeros((4, 3, 8, 8), FLOAT), [1, 2, 3, 4], "fidelity"),
    ],
)
def test_the_default_follows_labels_and_output(outputs: Array, labels: Any, name: str) -> None:
    assert resolve_metric(None, {"out": outputs}, batch(labels)).name == name


def test_top1_and_top5_are_in_percent() -> None:
    output = np.tile(np.arange(10, 0, -1, dtype=np.float32), (4, 1))  # class 0 first, 9 last
    first = batch([0, 4, 5, 0])
    top1 = resolve_metric("top1", {"out": output}, first)
    top5 = resolve_metric("top5", {"out": output}, first)
    assert values_of(top1, output, first.labels) == [1, 0, 0, 1]
    assert values_of(top5, output, first.labels) == [1, 1, 0, 1]
    assert top1.finish(np.array([1.0, 0, 0, 1])) == 50
    assert top1.unit == "%"


@settings(max_examples=60, deadline=None)
@given(
    scores=hnp.arrays(np.float32, (3, 7, 2, 2), elements=st.integers(-2, 2).map(np.float32)),
    labels=hnp.arrays(np.int64, (3, 2, 2), elements=st.integers(-1, 8)),
    top=st.integers(1, 6),
)
def test_hits_are_what_sorting_says(scores: Array, labels: Array, top: int) -> None:
    wanted = []
    for row in range(3):
        right = []
        for place in np.ndindex(2, 2):
            label = labels[row][place]
            if 0 <= label < 7:
                ranked = sorted(range(7), key=lambda c, p=place, r=row: (-scores[r, c][p], c))
                right.append(label in ranked[:top])
        wanted.append(np.mean(right) if right else 1.0)
    np.testing.assert_allclose(compare.hits(scores, labels, 1, 0.0, top), wanted)
    if top == 1:
        np.testing.assert_allclose(compare.agreement(scores, scores, 1, 0.0), 1)


def test_single_scores_are_cut_at_a_half_or_at_zero() -> None:
    labels = [0, 1, 1, 0]
    chance = np.array([[0.2], [0.9], [0.4], [0.1]], FLOAT)
    assert values_of(resolve_metric("top1", {"out": chance}, batch(labels)), chance, np.array(labels)) == [
        1,
        1,
        0,
        1,
    ]
    score = np.array([-3, 0.2, 0.1, -0.1], FLOAT)
    assert values_of(resolve_metric("top1", {"out": score}, batch(labels)), score, np.array(labels)) == [
        1,
        1,
        1,
        1,
    ]
    agree = resolve_metric("agreement", {"out": score}, batch())
    assert values_of(agree, -score, None, score) == [0, 0, 0, 0]


def test_losses_against_labels_and_against_the_input() -> None:
    x = np.random.default_rng(0).random((4, 1, 5, 5), FLOAT)
    output = x + np.float32(0.1)
    for labels in (None, [1, 2, 3, 4]):
        psnr = resolve_metric("psnr", {"out": output}, batch(labels, x))
        assert psnr.target_input == "x"
        score = psnr.finish(
            score_rows(psnr, lambda feeds: {"out": feeds["x"] + np.float32(0.1)}, [batch(labels, x)])
        )
        assert score == pytest.approx(20, abs=1e-4)
    peak = resolve_metric("psnr:255", {"out": output * 255}, batch(x=x * 255))
    assert peak.finish(np.array([25.5**2])) == pytest.approx(20)
    assert peak.finish(np.array([0.0])) == np.inf
    targets = np.array([1.0, 2.5, 3.0, 4.0])
    guess = np.array([[1], [2], [3], [6]], FLOAT)
    mae = resolve_metric("mae", {"out": guess}, batch(targets))
    assert values_of(mae, guess, targets) == [0, 0.5, 0, 2]
    mse = resolve_metric("mse", {"out": guess}, batch(targets))
    assert values_of(mse, guess, targets) == [0, 0.25, 0, 4]
    assert not mse.higher_is_better


def test_fidelity_is_one_minus_the_relative_error() -> None:
    original = np.array([[3, 4], [0, 0], [0, 0], [1, 0]], FLOAT)
    output = np.array([[3, 3], [0, 0], [1, 0], [-9, 0]], FLOAT)
    assert values_of(fidelity("out"), output, None, original) == pytest.approx([0.8, 1, 0, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_bad_and_no_error(bad: float) -> None:
    output = logits(1, 2)
    original = output.copy()
    output[1, 7] = bad
    labels = np.array([1, 2])
    first = Batch({"x": original}, labels, np.arange(2))
    for name, wanted in (("top1", [1, 0]), ("top5", [1, 0]), ("agreement", [1, 0]), ("fidelity", [1, 0])):
        metric = resolve_metric(name, {"out": original}, first)
        assert values_of(metric, output, labels, original) == wanted
    for name in ("mse", "mae"):
        metric = resolve_metric(name, {"out": original}, first)
        assert values_of(metric, output, original) == [0, np.inf]


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "message", "hint"),
    [
        ("top-1", logits(1, 2, 3, 4), None, "unknown metric 'top-1'", "Did you mean 'top1'"),
        ("mse:3", logits(1, 2, 3, 4), None, "unknown metric", "module:function"),
        ("psnr:loud", logits(1, 2, 3, 4), None, "does not say a peak", "psnr:255"),
        ("top1", logits(1, 2, 3, 4), None, "needs labels", "agreement"),
        ("top1", np.zeros((4, 3, 8, 8), FLOAT), [1, 2, 3, 4], "are no classes", "mse"),
        ("top1", logits(1, 2, 3, 4), [0.5, 1, 2, 3], "are no classes", "mse"),
        ("top5", np.zeros((4, 5), FLOAT), [1, 2, 3, 4], "5 classes: never wrong", "top1"),
        ("mse", np.zeros((4, 7), FLOAT), None, "no labels for output", "under y"),
        ("mse", np.zeros((4, 3), FLOAT), np.zeros((4, 2)), r"labels of shape \[4, 2\]", "under y"),
        ("psnr", np.zeros((4, 3), FLOAT), np.full((4, 3), 200.0), "targets reach 200", "psnr:255"),
        ("mse", np.zeros((9, 3), FLOAT), [1, 2, 3, 4], r"shape \[9, 3\] for 4 rows", "whole = True"),
        ("no_such_module_at_all:f", logits(1, 2, 3, 4), None, "does not import", "PYTHONPATH"),
    ],
)
def test_what_does_not_fit_is_named(name: str, outputs: Array, labels: Any, message: str, hint: str) -> None:
    with pytest.raises(MetricError, match=message) as caught:
        resolve_metric(name, {"out": outputs}, batch(labels))
    assert hint in caught.value.hint


def test_labels_outside_the_classes_are_named() -> None:
    output = logits(1, 2, classes=3)
    metric = resolve_metric("top1", {"out": output}, batch([1, 2]))
    for label in (3, -1):
        with pytest.raises(MetricError, match=f"label {label} for an output of 3 classes"):
            metric.per_row({"out": output}, np.array([1, label]), None)
    with pytest.raises(MetricError, match="needs labels"):
        metric.per_row({"out": output}, None, None)
    with pytest.raises(MetricError, match="2 rows for 3"):
        metric.per_row({"out": output}, np.array([1, 2, 0]), None)


def test_the_named_output_is_read() -> None:
    outputs = {"prob": logits(1, 2), "box": np.ones((2, 4), FLOAT)}
    metric = resolve_metric("fidelity", outputs, batch([1, 2]), output="box")
    broken = outputs | {"prob": logits(3, 3)}
    assert list(metric.per_row(broken, None, outputs)) == [1, 1]
    with pytest.raises(MetricError, match="no output 'bax'") as caught:
        resolve_metric(None, outputs, batch([1, 2]), output="bax")
    assert "'box'" in caught.value.hint


def test_batches_are_streamed_and_fillers_are_not_scored() -> None:
    data = open_data({"x": np.arange(7, dtype=np.float32)[:, np.newaxis]}, [InputSpec("x", FLOAT, (3, 1))])
    run = lambda feeds: {"out": feeds["x"] + 1, "same": feeds["x"]}  # noqa: E731
    metrics = [fidelity("same"), fidelity("out")]
    same, out = score_all(metrics, run, data.batches(3), lambda b: run(dict(b.feeds)))
    assert list(same) == list(out) == [1] * 7
    assert list(score_rows(fidelity("out"), run, data.batches(3))) == [1] * 7
    shifted = score_rows(fidelity("same"), run, data.batches(3), lambda b: {"same": b.feeds["x"] * 2})
    np.testing.assert_allclose(shifted, [1, *[0.5] * 6])
    column = np.arange(8, dtype=np.float32)[:, np.newaxis]
    data = open_data({"x": column, "y": column[:, 0] * 2 + 0.5}, [InputSpec("x", FLOAT, (3, 1))])
    mae = resolve_metric("mae", {"out": column[:3]}, next(data.batches(3)))
    np.testing.assert_allclose(score_rows(mae, run, data.batches(3)), np.abs(np.arange(8) - 0.5))
    with pytest.raises(MetricError, match="no rows"):
        score_rows(fidelity("same"), run, [])


def test_built_in_metrics_travel_between_processes() -> None:
    for name in ("top1", "agreement", "fidelity", "mse"):
        metric = resolve_metric(name, {"out": np.zeros((4, 3), FLOAT)}, batch([0, 1, 2, 0]))
        assert pickle.loads(pickle.dumps(metric)).name == name  # noqa: S301


FUNCTIONS = """
import numpy as np
def good(outputs, labels): return (outputs["out"].argmax(1) == labels) * 2
def loss(outputs, labels): return np.abs(outputs["out"]).sum(1)
loss.higher_is_better = False
loss.unit = "J"
def total(outputs, labels): return len(labels) + outputs["out"].shape[0]
total.whole = True
def raises(outputs, labels): raise KeyError("scores")
def scalar(outputs, labels): return 0.5
def nan(outputs, labels): return np.array([0.0] + [np.nan] * (len(labels) - 1))
def many(outputs, labels): return np.zeros(3)
many.whole = True
"""


def test_the_users_function_scores(functions: str) -> None:
    output = logits(1, 2, 3, 4)
    batches = [Batch({"x": output}, np.array([1, 2, 3, 9]), np.arange(4))] * 2
    run = lambda feeds: {"out": feeds["x"]}  # noqa: E731

    def scored(function: str) -> tuple[Metric, Array]:
        metric = resolve_metric(f"{functions}:{function}", {"out": output}, batches[0])
        return metric, score_rows(metric, run, batches)

    metric, values = scored("good")
    assert metric.finish(values) == 1.5
    metric, values = scored("loss")
    assert (metric.unit, metric.higher_is_better, len(values)) == ("J", False, 8)
    metric, values = scored("total")
    assert metric.whole
    assert list(values) == [16]
    for function, message in (
        ("raises", "raised KeyError: 'scores'"),
        ("scalar", r"gave shape \[\] for 4 rows, wanted \[4\]"),
        ("nan", r"gave nan \(value 1"),
        ("many", r"gave shape \[3\] for 8 rows, wanted \[1\]"),
        ("goot", "has no function 'goot'"),
    ):
        with pytest.raises(MetricError, match=message):
            scored(function)


def test_float_outputs_that_a_built_in_metric_does_not_read() -> None:
    one_row = np.zeros((4, 3), np.float32)
    outputs = {
        "a": one_row,
        "b": one_row,
        "time first": np.zeros((7, 4, 2), np.float16),
        "class": np.zeros(4, np.int64),
        "scalar": np.float32(1),
        "list": [one_row],
    }
    read = BuiltIn("fidelity", "b", lambda a, b: a)
    assert [metric.output for metric in unread(read, outputs)] == ["a", "time first"]
    assert {metric.name for metric in unread(read, outputs)} == {"fidelity"}
    assert unread(UserMetric("mine:all", len), outputs) == ()
    assert unread(read, {"b": one_row}) == ()
