"""What each layer takes, by onnxruntime's own profiler."""

import models
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.model import to_bytes
from edgepress.runtime import layers
from edgepress.runtime.layers import layer_times, summed
from edgepress.runtime.record import EngineError


def event(name: str, ts: int, dur: int, op: str = "Conv") -> dict[str, object]:
    kernel = {"cat": "Node", "name": f"{name}_kernel_time", "args": {"op_name": op}}
    return {**(kernel if op else {"cat": "Session", "name": name}), "ts": ts, "dur": dur, "tid": 1}


def trace(runs: list[list[tuple[str, int]]]) -> list[dict[str, object]]:
    """Inferences one after the other; each is its kernels, one after the other, with 2 µs before each."""
    found, now = [], 100
    for kernels in [[("warm", 500)]] * layers.WARM_UP + runs:
        start = now
        for name, dur in kernels:
            found.append(event(name, now + 2, dur))
            now += 2 + dur
        found.append(event("model_run", start, now - start, op=""))
        now += 50
    return found


@given(st.lists(st.lists(st.integers(1, 99), min_size=3, max_size=3), min_size=1, max_size=9))
@settings(deadline=None, max_examples=100)
def test_means_are_of_the_quicker_half(times: list[list[int]]) -> None:
    found = summed(trace([[("a", one), ("b_token_7", two), ("a", three)] for one, two, three in times]))
    quicker = sorted(times, key=sum)[: (len(times) + 1) // 2]
    assert found["runs"] == len(quicker)
    assert found["run_ns"] == pytest.approx(1000 * np.mean([sum(each) + 6 for each in quicker]))
    if len({sum(each) for each in times}) == len(times):
        rows = {row["name"]: row for row in found["layers"]}
        assert rows["a"]["ns"] == pytest.approx(1000 * np.mean([one + three for one, _, three in quicker]))
        assert (rows["a"]["calls"], rows["b"]["calls"]) == (2, 1)
        assert rows["b"]["ns"] == pytest.approx(1000 * np.mean([two for _, two, _ in quicker]))
    assert [row["ns"] for row in found["layers"]] == sorted([r["ns"] for r in found["layers"]], reverse=True)


def test_what_lies_within_a_node_is_not_counted_twice() -> None:
    events = trace([[("loop", 100)]])
    start = int(next(e for e in events if e["name"] == "loop_kernel_time")["ts"])
    events += [event("body", start + 10, 20), event("deep", start + 12, 5), event("body", start + 40, 60)]
    rows = {row["name"]: (row["ns"], row["calls"]) for row in summed(events)["layers"]}
    assert rows == {"loop": (20_000, 1), "body": (75_000, 2), "deep": (5_000, 1)}


def test_a_trace_without_inferences_is_an_error() -> None:
    with pytest.raises(EngineError, match="no inferences"):
        summed([])


def test_the_large_layer_of_a_real_model_takes_most() -> None:
    model = models.text(
        "(float[64, 256] x) => (float[64, 8] y)",
        "h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2)",
        models.constants(1, w1=(256, 2048), w2=(2048, 8)),
    )
    x = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    found = layer_times(to_bytes(model), {"x": x}, time_limit_s=0.3)
    first = found["layers"][0]
    assert first["op"] in ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")
    assert first["ns"] > 2 * found["layers"][1]["ns"]
    assert sum(row["ns"] for row in found["layers"]) <= 1.02 * found["run_ns"]
    assert found["runs"] >= 3


def test_a_loop_is_not_counted_twice_in_a_real_model() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18]> g (float[64, 64] x) => (float[64, 64] y)
        <int64 n = {5}, bool c = {1}> { y = Loop(n, c, x) <body = b (int64 i, bool ci, float[64, 64] v)
        => (bool co, float[64, 64] w) { co = Identity(ci) m = MatMul(v, v) w = Tanh(m) }> }"""
    )
    found = layer_times(proto.SerializeToString(), {"x": np.zeros((64, 64), np.float32)}, time_limit_s=0.1)
    rows = {row["op"]: row for row in found["layers"]}
    assert (rows["Loop"]["calls"], rows["MatMul"]["calls"]) == (1, 5)
    assert sum(row["ns"] for row in found["layers"]) <= 1.02 * found["run_ns"]


def test_litert_says_that_it_has_none() -> None:
    found = layer_times(convert(models.mlp(8)).data, {"x": np.zeros((1, 6), np.float32)})
    assert found["layers"] is None
    assert "benchmark_model" in found["reason"]


def test_feeds_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(EngineError, match="cannot run"):
        layer_times(to_bytes(models.mlp(8)), {"x": np.zeros((1, 7), np.float32)})
