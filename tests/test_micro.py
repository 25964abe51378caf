"""`compress --target cortex-m`: flash and arena are limits, and the file is judged by tflite-micro's own kernels."""

import json

import models
import numpy as np
import onnx
import pytest
from clicase import Case

from edgepress.compressor.choice import CANNOT_RUN, Limits
from edgepress.compressor.cli import micro as board
from edgepress.compressor.micro import micro_file
from edgepress.compressor.model import load, to_proto
from edgepress.compressor.protocols import Footprint
from edgepress.compressor.report.record import Report, load_report
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.engines.micro import MicroEngine, footprint

RECIPE = '[[pass]]\nkind = "quantize"\nresults = "integer"\n'


@pytest.fixture
def real() -> None:
    """Where tflite-micro has no wheel, tests of what it says are skipped."""
    pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason="no wheel of tflite-micro")


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed."""
    monkeypatch.setattr(board, "installed", lambda: None)


@pytest.fixture
def recipe(case: Case) -> Case:
    (case.folder / "recipe.toml").write_text(RECIPE)
    return case


def compress(case: Case, *words: object, **changed: object):
    options = {"target": "cortex-m", "format": None, "recipe": case.folder / "recipe.toml"}
    return case.compress(*words, **{**options, **changed})


def report(case: Case) -> Report:
    return load_report(case.out / "report.json")


def profile(case: Case, flash: int, arena: int) -> str:
    path = case.folder / "small.toml"
    path.write_text(f'base = "cortex-m"\nflash_bytes = {flash}\narena_bytes = {arena}\n')
    return str(path)


@pytest.mark.usefixtures("real")
def test_the_report_has_what_the_file_takes(recipe):
    done = compress(recipe)
    assert done.code == 0, done.err
    file = (recipe.out / "model.tflite").read_bytes()
    fit, taken = report(recipe).microcontroller, footprint(file)
    assert fit.fits
    assert fit.measured
    assert (fit.flash_bytes, fit.arena_bytes) == (len(file), taken.arena_bytes)
    assert (fit.flash_available_bytes, fit.arena_available_bytes) == (786432, 196608)
    assert (fit.flash_short_bytes, fit.arena_short_bytes, fit.missing_operators) == (0, 0, ())
    assert fit.float_operators == {}
    assert fit.flash_bytes_before == len(micro_file(load(recipe.model)).data)
    assert f"{len(file):,} of 786,432 bytes" in done.out
    page = (recipe.out / "report.html").read_text()
    assert f"{fit.arena_bytes:,} of 196,608 bytes" in page
    assert LiteRTEngine().load(file).inputs[0].dtype == "int8"


@pytest.mark.usefixtures("real")
def test_the_verdict_is_on_its_kernels(recipe):
    compress(recipe)
    found = report(recipe)
    samples = recipe.load_samples("test.npz")
    runner = MicroEngine(as_onnx=True).load(recipe.out / "model.tflite")
    answers = runner({"x": samples["x"]})["y"].argmax(1)
    assert found.microcontroller.judged
    assert found.compressed.score == pytest.approx(100 * (answers == samples["y"]).mean())
    assert found.tflite.certificate.engine.startswith("tflite_micro")
    assert found.tflite.certificate.score == found.compressed.score


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("lacking", ["flash", "arena"])
def test_what_does_not_fit_is_told_to_the_byte(recipe, lacking):
    compress(recipe)
    fit = report(recipe).microcontroller
    sizes = {"flash": fit.flash_bytes, "arena": fit.arena_bytes}
    sizes[lacking] -= 17
    done = compress(recipe, "--force", target=profile(recipe, **sizes))
    assert done.code == 1
    assert "17 bytes of " + lacking in done.out
    again = report(recipe).microcontroller
    assert not again.fits
    assert {"flash": again.flash_short_bytes, "arena": again.arena_short_bytes} == {
        "flash": 0,
        "arena": 0,
        lacking: 17,
    }
    assert (recipe.out / "model.tflite").is_file()
    sizes[lacking] += 17
    assert compress(recipe, "--force", target=profile(recipe, **sizes)).code == 0


@pytest.fixture
def pictures(case: Case) -> Case:
    """A net whose activations are most of its arena, with channels to spare."""
    model = models.text(
        "(float[N, 1, 16, 16] x) => (float[N, 4] y)",
        """
        c1 = Conv <pads = [1, 1, 1, 1]> (x, w1) r1 = Relu(c1)
        p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
        c2 = Conv <pads = [1, 1, 1, 1]> (p1, w2) r2 = Relu(c2) g = GlobalAveragePool(r2) f = Flatten(g)
        y = Gemm <transB = 1> (f, w3)
        """,
        models.constants(3, w1=(16, 1, 3, 3), w2=(24, 16, 3, 3), w3=(4, 24)),
    )
    onnx.save(to_proto(model), case.model)
    for name, count in (("calib", 160), ("test", 120)):
        x = np.random.default_rng(count).normal(size=(count, 1, 16, 16)).astype(np.float32)
        case.samples(f"{name}.npz", x=x, y=models.run(model, {"x": x})["y"].argmax(1))
    return case


@pytest.mark.usefixtures("real")
def test_a_search_ends_where_the_memories_are(pictures):
    before = footprint(micro_file(load(pictures.model)).data)
    target = profile(pictures, before.flash_bytes // 2, before.arena_bytes // 2)
    done = pictures.compress("--budget", 20, target=target, format=None)
    assert done.code == 0, done.err + done.out
    found = report(pictures)
    assert (found.verdict, found.microcontroller.fits) == ("kept", True)
    assert (found.microcontroller.flash_bytes_before, found.microcontroller.arena_bytes_before) == (
        before.flash_bytes,
        before.arena_bytes,
    )
    assert {step["kind"] for each in found.candidates for step in each.recipe}.isdisjoint(
        {"dynamic", "cluster"}
    )
    assert found.microcontroller.float_operators == {}


@pytest.mark.usefixtures("real")
def test_replay_makes_the_same_file(recipe):
    compress(recipe)
    done = recipe.run("replay", recipe.out, "--out", "again")
    assert done.code == 0, done.err
    assert (recipe.folder / "again" / "model.tflite").read_bytes() == (
        recipe.out / "model.tflite"
    ).read_bytes()


@pytest.fixture
def lacking(recipe: Case) -> Case:
    """A model with two nodes that have no kernel there."""
    model = models.text(
        "(float[N, 6] x) => (float[N, 4] y)",
        "h = MatMul(x, w) a = Abs(h) s = Sign(a) p = Pow(a, e) y = Add(s, p)",
        {**models.constants(5, w=(6, 4)), "e": np.array([1.5], np.float32)},
    )
    for node, name in zip(model.graph, ("product", "absolute", "", "power", "sum"), strict=True):
        node.name = name
    onnx.save(to_proto(model), recipe.model)
    return recipe


@pytest.mark.usefixtures("real")
def test_nodes_without_a_kernel_are_named_before_the_search(lacking):
    done = compress(lacking)
    assert done.code == 2
    assert "SIGN" in done.err
    assert "power (POW)" in done.err
    assert not lacking.out.exists()


def test_onnx_alone_is_no_use_there(recipe):
    done = compress(recipe, format="onnx")
    assert done.code == 2
    assert "runs TFLite files alone" in done.err


@pytest.mark.usefixtures("absent")
def test_without_the_package_the_arena_is_estimated(recipe, monkeypatch):
    done = compress(recipe)
    assert done.code == 0, done.err
    fit = report(recipe).microcontroller
    assert (fit.measured, fit.judged, fit.missing_operators) == (False, False, None)
    assert fit.flash_bytes == (recipe.out / "model.tflite").stat().st_size
    assert "estimated" in done.out
    assert 'pip install "edgepress[micro]"' in done.err


@pytest.mark.usefixtures("real")
def test_bench_tells_which_models_fit(recipe):
    compress(recipe)
    file = recipe.out / "model.tflite"
    large, small = file.stat().st_size, len(micro_file(load(recipe.model)).data)
    target = profile(recipe, large - 10, 196608)
    done = recipe.run("bench", file, recipe.model, "--device", target, "--json", "-")
    assert done.code == 0, done.err
    found = json.loads(done.out)["models"]
    fits = [each["microcontroller"] for each in found]
    assert [each["latency_ns_median"] for each in found] == [None, None]
    assert [each["fits"] for each in fits] == [False, True]
    assert [each["flash_bytes"] for each in fits] == [large, small]
    assert [each["flash_short_bytes"] for each in fits] == [10, 0]
    shown = recipe.run("bench", file, recipe.model, "--device", target)
    assert "10 bytes of flash lacking" in " ".join(shown.out.split())


@pytest.mark.usefixtures("real")
def test_check_tells_what_there_is(case):
    done = case.run("devices", "check", "cortex-m7")
    assert done.code == 0, done.err
    assert "from the data sheet" in done.out
    assert "262,144 bytes" in done.out


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize(
    "words", [("devices", "check", "cortex-m"), ("bench", "model.onnx", "--device", "cortex-m")]
)
def test_without_the_package_nothing_can_be_tried(case, words):
    done = case.run(*words)
    assert done.code == 3
    assert 'pip install "edgepress[micro]"' in done.err


def test_how_far_a_model_is_over():
    limits = Limits(flash_bytes=1000, arena_bytes=100)
    assert limits.overflow(Footprint(1000, 100)) == 0
    assert limits.overflow(Footprint(2000, 100)) == pytest.approx(np.log(2))
    assert limits.overflow(Footprint(2000, 300)) == pytest.approx(np.log(6))
    assert limits.overflow(Footprint(10, 10, missing=(("SIGN", "s"),))) == CANNOT_RUN
    assert limits.overflow(Footprint(reason="no")) == CANNOT_RUN
    assert Limits().overflow(Footprint(10**9, 10**9)) == 0
