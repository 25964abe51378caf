import json
import sys
from pathlib import Path

import models
import models_wild
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from clicase import Case, files_below
from tflite import between_pairs, one_op

from edgepress.compressor.cli import export as command
from edgepress.compressor.export.tflite import prepare, schema
from edgepress.compressor.model import to_proto
from edgepress.runtime.engines.litert import LiteRTEngine


def put(case: Case, model: ir.Model, name: str = "net.onnx") -> Path:
    path = case.folder / name
    onnx.save(to_proto(model), path)
    return path


def quantized(case: Case) -> tuple[Path, dict[str, np.ndarray]]:
    """A convolution in 8 bits, with the samples that its ranges are from."""
    rng = np.random.default_rng(4)
    feeds = {"x": rng.standard_normal((1, 3, 6, 6)).astype(np.float32)}
    weights = {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32)}
    model, _ = between_pairs(one_op("Conv", feeds, constants=weights), feeds, weights={"w": 0})
    return put(case, model), feeds


def test_a_tflite_file_lies_beside_the_model_and_runs(case):
    done = case.run("export", case.model)
    assert done.code == 0, done.err
    assert "model.tflite" in done.out
    assert "2 operators: FULLY_CONNECTED 2; no TRANSPOSE" in done.out
    x = np.random.default_rng(1).normal(size=(7, 6)).astype(np.float32)
    found = LiteRTEngine().load(case.folder / "model.tflite")({"x": x})["y"]
    np.testing.assert_allclose(found, models.run(models.mlp(32), {"x": x})["y"], rtol=1e-5, atol=1e-6)


def test_the_same_model_gives_the_same_bytes(case):
    case.run("export", case.model, "--out", "a.tflite")
    case.run("export", case.model, "--out", "b.tflite")
    assert (case.folder / "a.tflite").read_bytes() == (case.folder / "b.tflite").read_bytes()


def test_verify_shows_how_far_both_agree(case):
    done = case.run("export", case.model, "--verify", case.folder / "test.npz")
    assert done.code == 0, done.err
    assert "XNNPACK in 1 piece, all operators in it" in done.out
    assert "same class in 100 % of rows (60 samples)" in done.out


def test_verify_runs_a_model_that_was_traced_with_one_row_row_by_row(case):
    onnx.save(models_wild.alone(), case.folder / "alone.onnx")
    x = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    done = case.run("export", "alone.onnx", "--verify", case.samples("x.npz", x=x))
    assert done.code == 0, done.err
    assert "same class in 100 % of rows (20 samples)" in done.out


def test_verify_of_integers_counts_steps_and_scales(case):
    path, feeds = quantized(case)
    samples = case.samples("x.npz", **feeds)
    done = case.run("export", path, "--verify", samples, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    certificate = said["certificate"]
    assert certificate["rows"] == 1
    assert certificate["outputs"][0]["largest_steps"] <= 1.001
    assert certificate["grids"] == 2 + 4 + 4  # input, output, the channels of the weights, those of the bias
    assert (certificate["own_grids"], certificate["differing"]) == (0, [])
    assert said["operators"] == {"CONV_2D": 1, "DEQUANTIZE": 1, "QUANTIZE": 1}
    assert said["size_bytes"] == (case.folder / "net.tflite").stat().st_size


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_integers_at_the_border_on_demand(case, io):
    path, feeds = quantized(case)
    done = case.run("export", path, "--io", io, "--verify", case.samples("x.npz", **feeds), "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["certificate"]["outputs"][0]["largest_steps"] <= 1.001
    run = LiteRTEngine().load(case.folder / "net.tflite")
    assert [port.dtype for port in (*run.inputs, *run.outputs)] == [io, io]


def test_the_order_of_dimensions_stays_on_demand(case):
    path, feeds = quantized(case)
    assert case.run("export", path, "--keep-layout").code == 0
    run = LiteRTEngine().load(case.folder / "net.tflite")
    assert run.inputs[0].shape == (1, 3, 6, 6)
    assert run.operators["TRANSPOSE"] > 0
    assert run(feeds)["y0"].shape == (1, 4, 4, 4)


def test_onnx_out_is_the_cleaned_file(case):
    done = case.run("export", case.model, "--format", "onnx", "--out", "small.onnx")
    assert done.code == 0, done.err
    x = np.ones((2, 6), np.float32)
    session = ort.InferenceSession(str(case.folder / "small.onnx"))
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], models.run(models.mlp(32), {"x": x})["y"])
    assert (case.folder / "small.onnx").stat().st_size < case.model.stat().st_size


def test_an_existing_file_is_left_alone_without_force(case):
    (case.folder / "model.tflite").write_bytes(b"mine")
    done = case.run("export", case.model)
    assert (done.code, (case.folder / "model.tflite").read_bytes()) == (2, b"mine")
    assert "is there already" in done.err
    assert "--force" in done.err
    assert case.run("export", case.model, "--force").code == 0
    assert (case.folder / "model.tflite").read_bytes()[4:8] == b"TFL3"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "model.onnx", "--force"], "is an input of this run"),
        (["--out", "calib.npz", "--force", "--verify", "calib.npz"], "is an input of this run"),
        (["--out", "none/model.tflite"], "does not exist"),
        (["--out", "."], "is a folder"),
        (["--format", "keras"], "'keras'"),
        (["--format", "onnx"], "--out"),
        (["--format", "onnx", "--io", "int8", "--out", "a.onnx"], "go with --format tflite"),
        (["--io", "int8"], "is not quantized"),
        (["--io", "int4"], "'int4'"),
        (["--verify", "none.npz"], "none.npz"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_written(case, words, said):
    before = files_below(case.folder)
    done = case.run("export", case.model, *words)
    assert done.code == 2
    assert said in done.err
    assert files_below(case.folder) == before


BAD = {
    "all of them are named": (
        models.text("(float[2, 3] x) => (float[2, 3] y)", "a = Asinh(x) b = Relu(a) y = Acosh(b)"),
        ["2 of the model's nodes", "Asinh", "Acosh", "--format onnx"],
    ),
    "another free dimension": (
        models.text("(float[N, 3, H] x) => (float[N, 3, H] y)", "y = Relu(x)"),
        ["'x': dimension 2 (H)", "--shape x=N,3,N"],
    ),
    "no elements": (
        models.text("(float[2, 0] x) => (float[2, 0] y)", "y = Relu(x)"),
        ["no elements"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_model_that_tflite_cannot_express(case, name):
    model, said = BAD[name]
    path = put(case, model)
    before = files_below(case.folder)
    done = case.run("export", path)
    assert done.code == 2
    for words in said:
        assert words in done.err
    assert files_below(case.folder) == before


def test_a_dimension_can_be_fixed(case):
    path = put(case, models.text("(float[N, 3, H] x) => (float[N, 3, H] y)", "y = Relu(x)"))
    assert case.run("export", path, "--shape", "x=1,3,5").code == 0
    assert LiteRTEngine().load(path.with_suffix(".tflite")).inputs[0].shape == (1, 3, 5)


def test_more_weights_than_a_file_can_hold(case, monkeypatch):
    monkeypatch.setattr(prepare, "LARGEST", 100)
    before = files_below(case.folder)
    done = case.run("export", case.model)
    assert done.code == 2
    assert "a TFLite file holds up to 2 GB" in done.err
    assert files_below(case.folder) == before


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 100])
def test_files_that_are_no_models(case, content):
    path = case.folder / "bad.onnx"
    path.write_bytes(content)
    done = case.run("export", path)
    assert done.code == 2
    assert "bad.onnx" in done.err
    assert not path.with_suffix(".tflite").exists()


def test_without_the_package_the_error_says_what_to_install(case, monkeypatch):
    schema.schema.cache_clear()
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    done = case.run("export", case.model)
    schema.schema.cache_clear()
    assert done.code == 2
    assert 'pip install "edgepress[tflite]"' in done.err
    assert not (case.folder / "model.tflite").exists()


def test_a_write_that_fails_leaves_nothing(case, monkeypatch):
    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(28, "No space left on device")

    before = files_below(case.folder)
    monkeypatch.setattr(command.Path, "write_bytes", full)
    done = case.run("export", case.model)
    assert done.code == 2
    assert "No space left" in done.err
    assert files_below(case.folder) == before
