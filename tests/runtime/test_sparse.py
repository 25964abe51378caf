"""The sparse engine: what it computes, and that a damaged file is refused before anything is made of it."""

import io
import sys
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.runtime.engines.choose import engine_for, suffix_of
from edgepress.runtime.engines.sparse import SparseEngine
from edgepress.runtime.record import EngineError


def saved(arrays, save=np.savez):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


@pytest.fixture
def arrays():
    """Two layers, 3 → 4 → 2; the first is sparse, the second dense enough to be run so."""
    return {
        "version": np.array(1),
        "input": np.array("x"),
        "output": np.array("y"),
        "input_shape": np.array([3]),
        "shapes": np.array([[4, 3], [2, 4]]),
        "activations": np.array(["Relu", ""]),
        "alphas": np.zeros(2, np.float32),
        "data0": np.array([2, -1], np.float32),
        "indices0": np.array([2, 0], np.uint16),
        "indptr0": np.array([0, 1, 1, 2, 2], np.int32),
        "bias0": np.array([0, 1, 0, 0], np.float32),
        "data1": np.array([1, 1, 1, 1, 1], np.float32),
        "indices1": np.array([0, 1, 2, 3, 1], np.int32),
        "indptr1": np.array([0, 4, 5], np.int32),
        "bias1": np.array([0, 10], np.float32),
    }


def test_it_multiplies_adds_and_activates(arrays):
    run = SparseEngine().load(saved(arrays))
    x = np.array([[1, 5, 3], [-4, 0, 0]], np.float32)
    expected = [[6 + 1, 1 + 10], [4 + 1, 1 + 10]]  # h = relu([2·x₂, 1, −x₀, 0])
    assert run({"x": x})["y"].tolist() == expected
    assert [run({"x": row[None]})["y"].tolist() for row in x] == [[row] for row in expected]
    assert (run.inputs, run.outputs) == ((("x", "float32", (None, 3)),), (("y", "float32", (None, 2)),))
    assert run({"x": x}, outputs=[]) == {}
    assert run({"x": x[:0]})["y"].shape == (0, 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([0.02, 0.5]), st.integers(1, 4))
def test_it_equals_a_loop_over_connections(seed, density, rows):
    rng = np.random.default_rng(seed)
    outputs, inputs = (int(n) for n in rng.integers(1, 12, 2))
    w = rng.standard_normal((outputs, inputs)) * (rng.random((outputs, inputs)) < density)
    held = [(i, j) for i in range(outputs) for j in range(inputs) if w[i, j]]
    bias = rng.standard_normal(outputs).astype(np.float32)
    content = saved(
        {
            "version": np.array(1), "input": np.array("x"), "output": np.array("y"),
            "input_shape": np.array([inputs]), "shapes": np.array([[outputs, inputs]]),
            "activations": np.array(["ThresholdedRelu"]), "alphas": np.array([0.5], np.float32),
            "data0": np.array([w[at] for at in held], np.float32),
            "indices0": np.array([j for _, j in held], np.int32),
            "indptr0": np.array([sum(i < row for i, _ in held) for row in range(outputs + 1)], np.int32),
            "bias0": bias,
        }
    )  # fmt: skip
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    found = SparseEngine().load(content)({"x": x})["y"]
    for row in range(rows):
        for i in range(outputs):
            z = float(bias[i]) + sum(w[i, j] * x[row, j] for j in range(inputs))
            if abs(z - 0.5) > 1e-5:
                assert found[row, i] == pytest.approx(z if z > 0.5 else 0, rel=1e-4, abs=1e-5)


def test_activations_keep_to_large_numbers(arrays):
    x = np.array([[1, 0, 400]], np.float32)
    for name, expected in (
        ("Softmax", [1, 0]),
        ("Sigmoid", [1, 1 / (1 + np.exp(-11))]),
        ("LogSoftmax", [0, -790]),
    ):
        run = SparseEngine().load(saved(arrays | {"activations": np.array(["Relu", name])}))
        assert run({"x": x})["y"].tolist() == [pytest.approx(expected)]


DAMAGES = {
    "version": ({"version": np.array(2)}, "version"),
    "layers": ({"shapes": np.zeros((0, 2), np.int64)}, "shapes"),
    "chain": ({"shapes": np.array([[4, 3], [2, 5]])}, "follow"),
    "sizes": ({"shapes": np.array([[4, 3], [2**40, 4]])}, "follow"),
    "negative": ({"shapes": np.array([[4, -3], [2, 4]])}, "follow"),
    "row": ({"input_shape": np.array([7])}, "a row is"),
    "activations": ({"activations": np.array(["Relu"])}, "activation"),
    "unknown": ({"activations": np.array(["Relu", "Exp"])}, "Exp"),
    "alpha": ({"alphas": np.array([np.nan, 0], np.float32)}, "nan"),
    "lengths": ({"data0": np.zeros(3, np.float32)}, "indices"),
    "rows": ({"indptr0": np.array([0, 2], np.int32)}, "rows"),
    "bias": ({"bias0": np.zeros(5, np.float32)}, "biases"),
    "start": ({"indptr0": np.array([1, 1, 1, 2, 2], np.int32)}, "follow each other"),
    "backwards": ({"indptr0": np.array([0, 2, 1, 2, 2], np.int32)}, "follow each other"),
    "end": ({"indptr0": np.array([0, 1, 1, 2, 9], np.int32)}, "follow each other"),
    "beyond": ({"indices0": np.array([3, 0], np.uint16)}, "outside"),
    "before": ({"indices0": np.array([-1, 0], np.int32)}, "outside"),
    "double": ({"data0": np.zeros(2)}, "data0"),
    "whole": ({"indices0": np.zeros(2)}, "indices0"),
    "pickle": ({"bias0": np.array([None] * 4)}, "bias0"),
    "more": ({"other": np.zeros(2)}, "other"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused(arrays, name):
    changed, says = DAMAGES[name]
    with pytest.raises(EngineError, match=f"no sparse model, or damaged: .*{says}"):
        SparseEngine().load(saved(arrays | changed))


@pytest.mark.parametrize("missing", ["version", "alphas", "data1", "bias0"])
def test_a_file_that_lacks_something_is_refused(arrays, missing):
    del arrays[missing]
    with pytest.raises(EngineError, match=missing):
        SparseEngine().load(saved(arrays))


def test_nothing_is_made_of_what_a_file_only_claims(arrays):
    with pytest.raises(EngineError, match="larger than the file"):
        SparseEngine().load(saved(arrays | {"data0": np.zeros(1 << 20, np.float32)}, np.savez_compressed))
    claimed = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        claimed, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)}
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data0.npy", claimed.getvalue())
    with pytest.raises(EngineError, match=r"says .* and holds 0 bytes"):
        SparseEngine().load(file.getvalue())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_gets_past_as_another_error(data):
    whole = bytearray(
        saved(
            {"version": np.array(1), "input": np.array("x"), "output": np.array("y"), "input_shape": np.array([2]),
             "shapes": np.array([[1, 2]]), "activations": np.array(["Relu"]), "alphas": np.zeros(1, np.float32),
             "data0": np.ones(1, np.float32), "indices0": np.zeros(1, np.uint16),
             "indptr0": np.array([0, 1], np.int32), "bias0": np.zeros(1, np.float32)}
        )
    )  # fmt: skip
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(whole), len(whole) // 2]))
    try:
        run = SparseEngine().load(bytes(whole[:cut]))
    except EngineError:
        return
    assert run({run.input_names[0]: np.ones((1, 2), np.float32)})[run.output_names[0]].shape == (1, 1)


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({"z": np.zeros((1, 3), np.float32)}, "the input is 'x'"),
        ({"x": np.zeros((1, 3))}, "float64"),
        ({"x": np.zeros((1, 4), np.float32)}, r"\[1, 4\]"),
        ({"x": np.zeros(3, np.float32)}, r"\[3\]"),
        ({"x": np.float32(1)}, r"\[\]"),
    ],
)
def test_feeds_that_do_not_fit_are_one_clear_line(arrays, feeds, says):
    run = SparseEngine().load(saved(arrays))
    with pytest.raises(EngineError, match=says):
        run(feeds)
    with pytest.raises(EngineError, match="no output 'q'"):
        run({"x": np.zeros((1, 3), np.float32)}, outputs=["q"])


def test_a_file_is_told_by_its_name_or_its_content(arrays, tmp_path):
    content = saved(arrays)
    path = tmp_path / "model-sparse.NPZ"
    path.write_bytes(content)
    assert suffix_of(content) == suffix_of(path) == ".npz"
    assert engine_for(path).name == engine_for(content).name == "sparse"
    run = engine_for(path).load(path)
    path.unlink()
    feeds = {"x": np.ones((1, 3), np.float32)}
    assert np.array_equal(run.bind(feeds)(), run(feeds)["y"])
    with pytest.raises(EngineError, match=r"missing.npz: No such file"):
        SparseEngine().load(tmp_path / "missing.npz")


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(EngineError, match="SciPy does not load") as refused:
        SparseEngine()
    assert "pip install scipy" in refused.value.hint


def test_time_goes_with_connections(arrays):
    """The same 2000 × 2000 layer with 1 % of its connections takes far less than with 19 %."""

    def least(density):
        rng = np.random.default_rng(0)
        count = int(density * 2000)
        indices = np.concatenate([rng.choice(2000, count, replace=False) for _ in range(2000)])
        one = {"input_shape": np.array([2000]), "shapes": np.array([[2000, 2000]])}
        one |= {"activations": np.array([""]), "alphas": np.zeros(1, np.float32)}
        one |= {"indices0": indices.astype(np.uint16), "data0": np.ones(len(indices), np.float32)}
        one |= {"indptr0": np.arange(0, len(indices) + 1, count, dtype=np.int32)}
        one["bias0"] = np.zeros(2000, np.float32)
        kept = {name: arrays[name] for name in ("version", "input", "output")}
        call = SparseEngine().load(saved(kept | one)).bind({"x": np.ones((1, 2000), np.float32)})
        times = []
        for _ in range(20):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    assert 3 * least(0.01) < least(0.19)
