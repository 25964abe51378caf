"""`model.tflite` beside `model.onnx`: the main job, replay, --pick and the Python API."""

import json
import sys

import models
import numpy as np
import onnx
import pytest
from clicase import Case, files_below

import edgepress.compressor as package
from edgepress.compressor import companion, session
from edgepress.compressor.cli import host
from edgepress.compressor.export.tflite import schema
from edgepress.compressor.model import to_proto
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report.record import Report, load_report
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.engines.ort import OrtEngine

RECIPE = '[[pass]]\nkind = "quantize"\n'


@pytest.fixture
def recipe(case: Case) -> Case:
    (case.folder / "recipe.toml").write_text(RECIPE)
    return case


def compress(case: Case, *words: object, **changed: object):
    return case.compress(*words, **{"format": None, "recipe": case.folder / "recipe.toml", **changed})


def report(case: Case) -> Report:
    return load_report(case.out / "report.json")


def test_both_files_give_the_same_numbers(recipe):
    done = compress(recipe)
    assert done.code in (0, 1), done.err
    found = report(recipe).tflite
    assert found is not None
    certificate = found.certificate
    assert certificate is not None
    x = recipe.load_samples("test.npz")["x"]
    theirs = OrtEngine().load(recipe.out / "model.onnx")({"x": x})["y"]
    ours = LiteRTEngine().load(recipe.out / "model.tflite")({"x": x})["y"]
    assert certificate.outputs[0].identical_percent == pytest.approx(100 * (theirs == ours).mean(), abs=5)
    assert certificate.outputs[0].same_class_percent == pytest.approx(
        100 * (theirs.argmax(1) == ours.argmax(1)).mean(), abs=5
    )
    assert certificate.rows == len(x)
    assert certificate.score == pytest.approx(certificate.onnx_score, abs=5)
    assert certificate.grids > 0
    assert certificate.differing == ()
    assert certificate.own_grids <= 1  # integers of a product whose result is real
    assert certificate.outputs[0].identical_percent == 100
    assert (certificate.delegate, certificate.partitions, certificate.outside) == ("XNNPACK", 1, {})
    assert found.size_bytes == (recipe.out / "model.tflite").stat().st_size
    assert "bit-identical" in done.out
    page = (recipe.out / "report.html").read_text()
    assert "XNNPACK in 1 piece" in page
    assert "all as in the ONNX file" in page


def test_the_manifest_has_its_hash_and_the_certificate(recipe):
    compress(recipe)
    record = manifests.read(recipe.out)
    assert record.files["model.tflite"] == manifests.sha256_file(recipe.out / "model.tflite")
    assert record.tflite == report(recipe).tflite
    assert manifests.verify(recipe.out) == []


def test_the_same_as_export_makes_of_the_onnx_file(recipe):
    compress(recipe)
    made = recipe.folder / "again.tflite"
    assert recipe.run("export", recipe.out / "model.onnx", "--out", made).code == 0
    assert made.read_bytes() == (recipe.out / "model.tflite").read_bytes()


def test_replay_makes_both_again(recipe):
    compress(recipe)
    done = recipe.run("replay", recipe.out, "--out", "again")
    assert done.code in (0, 1), done.err
    assert "Both models are the same, byte for byte." in done.out
    for name in ("model.onnx", "model.tflite"):
        assert (recipe.folder / "again" / name).read_bytes() == (recipe.out / name).read_bytes()


def test_replay_refuses_another_tflite_file(recipe):
    compress(recipe)
    path = recipe.out / "manifest.json"
    document = json.loads(path.read_text())
    document["files"]["model.tflite"] = "0" * 64
    path.write_text(json.dumps(document))
    done = recipe.run("replay", recipe.out, "--out", "again")
    assert done.code == 2
    assert "other bytes" in done.err
    assert not (recipe.folder / "again").exists()


def test_replay_without_the_package_says_so(recipe, monkeypatch):
    compress(recipe)
    without_package(monkeypatch)
    done = recipe.run("replay", recipe.out, "--out", "again")
    schema.schema.cache_clear()
    assert done.code == 2
    assert "model.tflite could not be rebuilt" in done.err
    assert not (recipe.folder / "again").exists()


def test_a_picked_point_has_both_files_too(case):
    assert case.compress("--budget", 5, format=None).code == 0
    done = case.run(case.model, "--pick", 0, "--from", case.out, "--out", "picked")
    assert done.code == 0, done.err
    assert (case.folder / "picked" / "model.tflite").is_file()
    done = case.run(case.model, "--pick", 0, "--from", case.out, "--out", "other", "--format", "onnx")
    assert done.code == 0, done.err
    assert not (case.folder / "other" / "model.tflite").exists()


def test_onnx_alone_on_demand(recipe):
    compress(recipe, format="onnx")
    assert not (recipe.out / "model.tflite").exists()
    assert report(recipe).tflite is None


def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    schema.schema.cache_clear()
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)


def test_without_the_package_the_job_goes_on_and_the_report_says_why(recipe, monkeypatch):
    without_package(monkeypatch)
    done = compress(recipe)
    schema.schema.cache_clear()
    assert done.code in (0, 1), done.err
    assert (recipe.out / "model.onnx").is_file()
    assert not (recipe.out / "model.tflite").exists()
    assert 'pip install "edgepress[tflite]"' in report(recipe).tflite.reason
    assert "TFLite   none: " in done.out


def test_without_the_package_tflite_alone_is_an_error(recipe, monkeypatch):
    without_package(monkeypatch)
    done = compress(recipe, format="tflite")
    schema.schema.cache_clear()
    assert done.code == 2
    assert 'pip install "edgepress[tflite]"' in done.err
    assert not recipe.out.exists()


def test_without_an_interpreter_the_file_is_written_but_not_proven(recipe, monkeypatch):
    monkeypatch.setattr(host, "tflite_engine", lambda: None)
    done = compress(recipe)
    assert done.code in (0, 1), done.err
    assert (recipe.out / "model.tflite").is_file()
    found = report(recipe).tflite
    assert (found.certificate, found.unproven) == (None, "nothing here runs TFLite files")
    assert "not compared with the ONNX file" in done.out


@pytest.fixture
def strange(recipe: Case) -> Case:
    """A model with operators that no TFLite file has."""
    model = models.text(
        "(float[N, 6] x) => (float[N, 4] y)",
        "h = MatMul(x, w1) a = Asinh(h) b = Acosh(a) c = IsNaN(b) d = Cast <to = 1> (c) y = Add(a, d)",
        models.constants(5, w1=(6, 4)),
    )
    onnx.save(to_proto(model), recipe.model)
    return recipe


def test_what_tflite_cannot_express_is_named_and_the_job_goes_on(strange):
    done = compress(strange)
    assert done.code in (0, 1, 4), done.err
    found = report(strange).tflite
    assert "cannot be written as TFLite" in found.reason
    assert any("Asinh" in each for each in found.problems)
    assert any("Acosh" in each for each in found.problems)
    assert "TFLite   none: " in done.out
    assert "Acosh" in (strange.out / "report.html").read_text()
    assert not (strange.out / "model.tflite").exists()


def test_with_tflite_alone_it_is_an_error_before_any_work(strange, monkeypatch):
    monkeypatch.setattr(session, "_follow_recipe", lambda *_: pytest.fail("it began to work"))
    before = files_below(strange.folder)
    done = compress(strange, format="tflite")
    assert done.code == 2
    assert "Asinh" in done.err
    assert "Acosh" in done.err
    assert "--format onnx" in done.err
    assert files_below(strange.folder) == before


def test_with_tflite_alone_the_onnx_file_is_there_as_the_reference(recipe):
    assert compress(recipe, format="tflite").code in (0, 1)
    assert {"model.onnx", "model.tflite"} <= {path.name for path in recipe.out.iterdir()}


def test_a_result_that_must_be_tflite_and_cannot_is_a_limit_missed(recipe, monkeypatch):
    monkeypatch.setattr(companion, "refuse_early", lambda _: None)
    monkeypatch.setattr(session, "refuse_early", lambda _: None)
    monkeypatch.setattr(companion, "convert", broken)
    done = compress(recipe, format="tflite")
    assert done.code == 1
    assert (recipe.out / "model.onnx").is_file()
    assert "there is no model.tflite" in report(recipe).limits_missed[0]


def broken(model, **_):
    raise KeyError("a fault of the writer")


def test_a_fault_of_the_writer_costs_no_result(recipe, monkeypatch):
    monkeypatch.setattr(companion, "convert", broken)
    done = compress(recipe)
    assert done.code in (0, 1), done.err
    assert "the writer failed (KeyError: 'a fault of the writer')" in report(recipe).tflite.reason


def test_a_file_that_does_not_run_is_not_handed_over(recipe, monkeypatch):
    class Refusing:
        name, version = "refusing", "1"

        def load(self, model, threads=1):
            raise companion.DeviceError("the process of refusing died over the model")

    monkeypatch.setattr(host, "tflite_engine", Refusing)
    done = compress(recipe)
    assert done.code in (0, 1), done.err
    assert "died over the model" in report(recipe).tflite.reason
    assert not (recipe.out / "model.tflite").exists()


@pytest.mark.parametrize("words", ["keras", "onnx,keras", ","])
def test_unknown_formats_are_refused(case, words):
    done = case.compress(format=words)
    assert done.code == 2
    assert "onnx, tflite" in done.err


def test_from_python(case):
    x = np.random.default_rng(1).normal(size=(60, 6)).astype(np.float32)
    y = models.run(models.mlp(32), {"x": x})["y"].argmax(1)
    result = package.compress(
        case.model, {"x": x, "y": y}, target="arm", recipe=(), formats=("onnx", "tflite"), workers=1
    )
    assert result.tflite is not None
    found = LiteRTEngine().load(result.tflite)({"x": x})["y"]
    np.testing.assert_allclose(found, models.run(models.mlp(32), {"x": x})["y"], rtol=1e-5, atol=1e-5)
    assert package.compress(case.model, target="arm", formats=("onnx",)).tflite is None
