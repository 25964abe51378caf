import importlib
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import models
import numpy as np
import pytest

from edgepress.compressor.export.tflite import convert
from edgepress.runtime.engines import litert
from edgepress.runtime.engines.apart import ApartEngine
from edgepress.runtime.engines.flatfile import note_in
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.measure import measure
from edgepress.runtime.record import EngineError

IMAGES = np.random.default_rng(1).standard_normal((5, 2, 8, 8)).astype(np.float32)
NETS = (models.mlp, models.matmul, models.cnn, models.depthwise, models.residual, models.concat)


@pytest.fixture
def content() -> bytes:
    return convert(models.cnn()).data


@pytest.mark.parametrize("net", NETS)
def test_as_onnx_it_gives_what_onnxruntime_gives(net):
    model = net()
    feeds = models.feeds(model)
    run = LiteRTEngine(as_onnx=True).load(convert(model).data)
    expected = models.run(model, feeds)
    found = run(feeds)
    assert list(found) == list(expected)
    for output, array in expected.items():
        np.testing.assert_allclose(found[output], array, rtol=1e-5, atol=1e-6)
        assert found[output].dtype == array.dtype


def test_by_default_images_have_their_channels_last(content):
    run = LiteRTEngine().load(content)
    assert run.inputs == (("x", "float32", (None, 8, 8, 2)),)
    assert run.outputs == (("y", "float32", (None, 3)),)
    expected = models.run(models.cnn(), {"x": IMAGES})["y"]
    last = np.ascontiguousarray(np.moveaxis(IMAGES, 1, -1))
    np.testing.assert_allclose(run({"x": last})["y"], expected, rtol=1e-5, atol=1e-6)


def test_batches_of_any_size_follow_each_other(content):
    run = LiteRTEngine(as_onnx=True).load(content)
    expected = models.run(models.cnn(), {"x": IMAGES})["y"]
    for rows in (1, 4, 2, 5):
        np.testing.assert_allclose(run({"x": IMAGES[:rows]})["y"], expected[:rows], rtol=1e-5, atol=1e-6)


def test_a_file_for_one_row_takes_more_as_onnx_only():
    model, expected = models.cnn(), models.run(models.cnn(), {"x": IMAGES})["y"]
    model.graph.inputs[0].shape = models.ir.Shape([1, 2, 8, 8])
    content = convert(model).data
    np.testing.assert_allclose(
        LiteRTEngine(as_onnx=True).load(content)({"x": IMAGES})["y"], expected, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(EngineError, match=r"'x' has shape \[5, 8, 8, 2\], wanted \[1, 8, 8, 2\]"):
        LiteRTEngine().load(content)({"x": np.moveaxis(IMAGES, 1, -1)})


def test_it_tells_what_ran_the_operators(content):
    run = LiteRTEngine().load(content)
    assert (run.delegate, run.partitions, run.outside) == ("XNNPACK", 1, {})
    assert run.operators == {"CONV_2D": 2, "FULLY_CONNECTED": 1, "MAX_POOL_2D": 1, "MEAN": 1, "RESHAPE": 1}


def test_operators_that_no_delegate_takes_are_told():
    sides = "(float[N, 6] x, int64[N, 6] i) => (float[N, 6] y, int64[N, 6] j)"
    mixed = LiteRTEngine().load(convert(models.text(sides, "y = Mul(x, x) j = Add(i, i)")).data)
    assert (mixed.delegate, mixed.partitions, mixed.outside) == ("XNNPACK", 1, {"ADD": 1})
    none = LiteRTEngine().load(convert(models.text("(int64[2] i) => (int64[2] j)", "j = Add(i, i)")).data)
    assert (none.delegate, none.partitions, none.outside) == ("none", 0, {"ADD": 1})


def test_only_the_outputs_asked_for_come(content):
    run = LiteRTEngine(as_onnx=True).load(content)
    assert run({"x": IMAGES}, outputs=[]) == {}
    assert list(run({"x": IMAGES}, outputs=["y"])) == ["y"]
    with pytest.raises(EngineError, match="no output 'z'"):
        run({"x": IMAGES}, outputs=["z"])


def test_a_file_loads_like_its_bytes_and_may_go(content, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    run = LiteRTEngine(as_onnx=True).load(path)
    path.unlink()
    assert run({"x": IMAGES})["y"].shape == (5, 3)


def test_bound_inference_can_be_timed(content):
    last = np.ascontiguousarray(np.moveaxis(IMAGES, 1, -1))
    found = measure([content], {"x": last}, engine=LiteRTEngine(), time_limit_s=0.2, max_rounds=5)
    assert 0 < found[0].median_ns < 1e9


def test_what_is_timed_gives_the_outputs(content):
    run = LiteRTEngine(as_onnx=True).load(content)
    call = run.bind({"x": IMAGES[:1]})
    for _ in range(2):
        np.testing.assert_array_equal(call()[0], run({"x": IMAGES[:1]})["y"])


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, r"inputs are \['x'\], not \[\]"),
        ({"y": IMAGES}, r"inputs are \['x'\], not \['y'\]"),
        ({"x": IMAGES.astype(np.float64)}, "'x' is float64, wanted float32"),
        ({"x": IMAGES[:, :, :4]}, r"'x' has shape \[5, 4, 8, 2\], wanted \['\?', 8, 8, 2\]"),
        ({"x": IMAGES[0]}, "'x' has shape"),
    ],
)
def test_feeds_that_do_not_fit_are_one_clear_line(content, feeds, said):
    with pytest.raises(EngineError, match=said) as caught:
        LiteRTEngine(as_onnx=True).load(content)(feeds)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused_with_its_path(content, tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(content[:300])
    with pytest.raises(EngineError, match=r"cannot load .*broken\.tflite: .*not a valid"):
        LiteRTEngine().load(path)
    path.write_bytes(b"")
    with pytest.raises(EngineError, match="it is empty"):
        LiteRTEngine().load(path)
    with pytest.raises(EngineError, match="No such file"):
        LiteRTEngine().load(tmp_path / "missing.tflite")


def test_a_damaged_note_is_no_note(content):
    whole = note_in(content, "edgepress")
    assert whole is not None
    assert note_in(content, "other") is None
    for length in range(0, len(content), 7):
        found = note_in(content[:length], "edgepress")
        assert found is None or whole.startswith(found)
    rng = np.random.default_rng(5)
    for _ in range(300):
        broken = bytearray(content)
        for place in rng.integers(0, len(broken), 4):
            broken[place] = rng.integers(256)
        note_in(bytes(broken), "edgepress")  # whatever it says, it is no crash


def test_without_a_package_the_error_says_what_to_install(monkeypatch):
    real = importlib.import_module

    def missing(name: str, package: str | None = None):
        if name.split(".", maxsplit=1)[0] in {"ai_edge_litert", "tflite_runtime", "tensorflow"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".", maxsplit=1)[0])
        return real(name, package)

    monkeypatch.setattr(litert.importlib, "import_module", missing)
    with pytest.raises(EngineError, match="nothing here that runs TFLite files") as caught:
        LiteRTEngine()
    assert caught.value.hint == 'Install it with: pip install "edgepress[tflite]"'


def test_the_next_package_stands_in_and_a_broken_one_is_named(monkeypatch):
    real = importlib.import_module

    def only_the_second(name: str, package: str | None = None):
        if name == "ai_edge_litert.interpreter":
            raise ImportError("a library it needs is gone")
        if name == "tflite_runtime.interpreter":
            return real("ai_edge_litert.interpreter")
        if name == "tensorflow":
            raise ModuleNotFoundError(name=name)
        return real(name, package)

    monkeypatch.setattr(litert.importlib, "import_module", only_the_second)
    assert LiteRTEngine().name == "tflite_runtime"
    monkeypatch.setattr(litert, "PACKAGES", litert.PACKAGES[:1])
    with pytest.raises(EngineError, match="a library it needs is gone"):
        LiteRTEngine()


def test_the_library_says_nothing_on_stderr(content, tmp_path):
    code = (
        "import sys, os; from pathlib import Path; from edgepress.runtime.engines.litert import LiteRTEngine\n"
        "LiteRTEngine().load(Path(sys.argv[1])); os.write(2, b'heard\\n')"
    )
    file = tmp_path / "model.tflite"
    file.write_bytes(content)
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stderr == "heard\n"
    assert done.stdout == ""


def test_lines_that_are_no_chatter_pass(capfd):
    with litert._without_info():
        os.write(2, b"INFO: of no use\nERROR: of use\n")
    assert capfd.readouterr().err == "ERROR: of use\n"


class Deadly:
    """An engine whose models end the process."""

    name, version = "deadly", "1"

    def load(self, model, threads=1):
        return lambda feeds, outputs=None: os.abort()


def test_a_model_that_ends_its_process_is_an_error():
    run = ApartEngine(Deadly).load(b"x")
    with pytest.raises(EngineError, match="the process of deadly died"):
        run({})


def test_in_a_process_of_its_own_a_model_gives_the_same(content):
    engine = ApartEngine(partial(LiteRTEngine, as_onnx=True))
    run = engine.load(content)
    np.testing.assert_array_equal(
        run({"x": IMAGES})["y"], LiteRTEngine(as_onnx=True).load(content)({"x": IMAGES})["y"]
    )
    assert (run.delegate, run.partitions, run.outside) == ("XNNPACK", 1, {})
    with pytest.raises(EngineError, match="'x' is float64"):
        run({"x": IMAGES.astype(np.float64)})
    with pytest.raises(EngineError, match="not a valid"):
        engine.load(b"nonsense")
    pid = run._ask(os.getpid)
    assert pid != os.getpid()
    run.close()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
