"""TFLite files by the interpreter for microcontrollers: the real one, where there is a wheel of it."""

import subprocess
import sys

import models
import numpy as np
import pytest
from formats import Samples
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.micro import estimate, micro_file
from edgepress.compressor.passes import Quantize
from edgepress.compressor.passes.base import Context
from edgepress.runtime.engines.apart import ApartEngine, alone
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.record import EngineError

micro = pytest.importorskip("edgepress.runtime.engines.micro")
pytest.importorskip(
    "tflite_micro.python.tflite_micro.runtime", reason="tflite-micro has no wheel for this Python"
)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(count, 6)).astype(np.float32)


def int8_file() -> bytes:
    """A small net in 8 bits, borders included."""
    model = models.mlp(32)
    Quantize(results="integer").apply(model, Context(stream=Samples({"x": rows(64)})))
    return micro_file(model).data


def test_floats_are_those_of_the_interpreter_for_computers():
    file, x = convert(models.mlp(32)).data, rows(7)
    runner = micro.MicroEngine().load(file)
    ours, theirs = runner({"x": x}), LiteRTEngine().load(file)({"x": x})
    np.testing.assert_allclose(ours["y"], theirs["y"], rtol=1e-5, atol=1e-6)
    assert [port.name for port in runner.inputs] == ["x"]
    assert runner.operators == LiteRTEngine().load(file).operators


def test_integers_are_near_and_reals_outside():
    file, x = int8_file(), rows(40)
    ours = micro.MicroEngine(as_onnx=True).load(file)({"x": x})["y"]
    theirs = LiteRTEngine(as_onnx=True).load(file)({"x": x})["y"]
    assert ours.dtype == np.float32
    step = np.diff(np.unique(theirs)).min()
    assert np.abs(ours - theirs).max() <= 1.01 * step
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.9
    assert micro.MicroEngine().load(file).inputs[0].dtype == "int8"


def test_channels_stand_second_for_those_who_know_the_onnx_model():
    model = models.text(
        "(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)",
        "y = Conv <pads = [1, 1, 1, 1]> (x, w)",
        models.constants(3, w=(4, 3, 3, 3)),
    )
    x = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    found = micro.MicroEngine(as_onnx=True).load(convert(model).data)({"x": x})["y"]
    np.testing.assert_allclose(found, models.run(model, {"x": x})["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [int8_file, lambda: convert(models.mlp(32)).data])
def test_the_arena_is_known_to_the_byte(make, tmp_path):
    file = make()
    size = micro.footprint(file).arena_bytes
    (tmp_path / "model.tflite").write_bytes(file)

    def fits(arena: int) -> bool:
        code = "import sys; from tflite_micro.python.tflite_micro.runtime import Interpreter as I; "
        code += "I.from_file(sys.argv[1], arena_size=int(sys.argv[2])).invoke()"
        words = [sys.executable, "-c", code, str(tmp_path / "model.tflite"), str(arena)]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    assert fits(size)
    assert not fits(size - 1)


@settings(deadline=None, max_examples=15)
@given(widths=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_activations_alone_are_never_more_than_the_planner_lays_out(widths, seed):
    names = ["x", *(f"h{place}" for place in range(len(widths) - 1)), "y"]
    sizes = [6, *widths]
    body = "".join(
        f"m{place} = MatMul({names[place]}, w{place}) {names[place + 1]} = Relu(m{place})"
        for place in range(len(widths))
    )
    weights = models.constants(seed, **{f"w{p}": (sizes[p], sizes[p + 1]) for p in range(len(widths))})
    file = convert(models.text(f"(float[1, 6] x) => (float[1, {widths[-1]}] y)", body, weights)).data
    guess, found = estimate(file), micro.footprint(file)
    assert guess.flash_bytes == found.flash_bytes == len(file)
    assert 0 < guess.arena_bytes <= found.activation_bytes < found.arena_bytes


def lacking() -> bytes:
    model = models.text(
        "(float[1, 6] x) => (float[1, 12] y)",
        "h = MatMul(x, w) s = Sign(h) a = Abs(s) y = Tile(a, n)",
        {**models.constants(5, w=(6, 6)), "n": np.array([1, 2], np.int64)},
    )
    return convert(model).data


def test_all_operators_without_a_kernel_are_named():
    found = micro.footprint(lacking())
    assert [(each.kind, each.output) for each in found.missing] == [("SIGN", "s"), ("TILE", "y")]
    assert found.arena_bytes is None
    with pytest.raises(EngineError, match="no SIGN, TILE"):
        micro.MicroEngine().load(lacking())


def test_floats_are_counted_and_integers_are_not():
    assert micro.footprint(int8_file()).floats == {}
    assert micro.footprint(convert(models.mlp(32)).data).floats["FULLY_CONNECTED"] > 0


@pytest.mark.parametrize("damage", [lambda f: f[:100], lambda f: b"abcd" + f[4:8] + b"x" * 99, lambda f: b""])
def test_damaged_files_are_refused(damage):
    with pytest.raises(EngineError):
        alone(micro.NAME, micro.footprint, damage(int8_file()))
    with pytest.raises(EngineError):
        ApartEngine(micro.MicroEngine).load(damage(int8_file()))


def test_missing_files_and_wrong_feeds_are_told(tmp_path):
    with pytest.raises(EngineError, match="No such file"):
        micro.footprint(tmp_path / "none.tflite")
    runner = micro.MicroEngine().load(convert(models.mlp(32)).data)
    for feeds in ({"z": rows(1)}, {"x": rows(1).astype(np.float64)}, {"x": rows(0)}):
        with pytest.raises(EngineError, match="cannot run"):
            runner(feeds)
    with pytest.raises(EngineError, match="no output 'z'"):
        runner({"x": rows(1)}, outputs=["z"])


def test_what_the_library_prints_stays_off_the_terminal(capfd):
    micro.footprint(int8_file())
    micro.footprint(lacking())
    assert capfd.readouterr().err == ""
