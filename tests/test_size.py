"""Large models: what is held of them, where their files lie, and work that grows with the number of nodes alone."""

import gc
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgepress.compressor import model as model_module
from edgepress.compressor.cli import host
from edgepress.compressor.cli.host import CheckedEngine
from edgepress.compressor.export.onnx import save
from edgepress.compressor.mapped import Mapped
from edgepress.compressor.model import load, to_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.observe import Streamer
from edgepress.compressor.passes import Pass, Quantize, StoreWeights, WeightOnly
from edgepress.compressor.passes.base import Context
from edgepress.compressor.serialize import StoredModel, contents, files, parse, serialize, write
from edgepress.runtime.engines.ort import OrtEngine


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; nothing is small enough to be handed on as bytes."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(model_module, "IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    gc.collect()
    assert not list(folder.iterdir())


def chain(folder: Path, width: int, layers: int) -> Path:
    """MatMul and Relu in turn, weights outside the file."""
    block = np.random.default_rng(0).standard_normal((width, width), np.float32) / np.float32(width**0.5)
    weights = {f"w{layer}": np.roll(block, layer, axis=1) for layer in range(layers)}
    nodes = "".join(f"m{n} = MatMul(x{n}, w{n}) x{n + 1} = Relu(m{n}) " for n in range(layers))
    ends = f"(float[N, {width}] x0) => (float[N, {width}] x{layers})"
    ir.save(models.text(ends, nodes, weights), folder / "chain.onnx", external_data="chain.data")
    return folder / "chain.onnx"


def feeds(width: int) -> dict[str, Any]:
    return {"x0": np.random.default_rng(1).standard_normal((3, width), np.float32)}


def test_few_bits_of_64_mb_take_little_more_than_the_result(scratch: Path, tmp_path: Path) -> None:
    model = load(chain(tmp_path, 1024, 16))
    tracemalloc.start()
    try:
        outcome = WeightOnly().apply(model, Context())
        data = save(model)
        write(data, tmp_path / "small.onnx")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(outcome.changed) == 16
    size = (tmp_path / "small.onnx").stat().st_size
    assert len(data) == size < 12e6
    assert peak < 3 * size  # 64 MB came in
    assert not (tmp_path / "small.onnx.data").exists()


def test_weights_that_lie_in_files_are_run_and_hashed_where_they_are(scratch: Path, tmp_path: Path) -> None:
    path = chain(tmp_path, 64, 3)
    data = serialize(load(path))
    assert isinstance(data, StoredModel)
    assert data.in_place
    assert len(data.graph) < 1500
    got = CheckedEngine().load(data)(feeds(64))
    assert not list(scratch.iterdir())
    assert np.array_equal(got["x3"], OrtEngine().load(path)(feeds(64))["x3"])
    before = b"".join(contents(data))
    raw = bytearray(path.with_name("chain.data").read_bytes())
    raw[100] ^= 1
    path.with_name("chain.data").write_bytes(raw)
    assert b"".join(contents(serialize(load(path)))) != before


def test_a_path_is_made_only_where_one_is_asked_for(scratch: Path, tmp_path: Path) -> None:
    path = chain(tmp_path, 64, 3)
    data = serialize(load(path))
    assert isinstance(data, StoredModel)
    data.lies_at(path)
    assert data.path == path
    other = serialize(load(path))
    assert isinstance(other, StoredModel)
    assert other.path.parent.parent == scratch
    assert np.array_equal(OrtEngine().load(other)(feeds(64))["x3"], OrtEngine().load(path)(feeds(64))["x3"])


def test_a_large_one_runs_in_another_process(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = chain(tmp_path, 64, 3)
    here = CheckedEngine().load(serialize(load(path)))(feeds(64))
    monkeypatch.setattr(host, "APART_BYTES", 0)
    monkeypatch.setattr(host, "LEAN_BYTES", 0)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loaded in this process")

    monkeypatch.setattr(OrtEngine, "load", refuse)
    apart = CheckedEngine().load(serialize(load(path)))(feeds(64))
    np.testing.assert_allclose(apart["x3"], here["x3"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "matmul", "depthwise", "two_inputs", "half"])
def test_one_file_written_in_pieces_is_the_one_of_bytes(name: str, scratch: Path, tmp_path: Path) -> None:
    model = models.ALL[name]()
    data = serialize(model)
    assert isinstance(data, StoredModel)
    path = tmp_path / "whole.onnx"
    write(data, path)
    assert path.read_bytes() == to_bytes(model)
    assert dict(files(data, path.name)) == {path.name: path.stat().st_size}


def test_one_file_holds_the_weights_of_bodies_too(scratch: Path, tmp_path: Path) -> None:
    model = models.control_flow()
    path = tmp_path / "whole.onnx"
    write(serialize(model), path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    given = models.feeds(model)
    expected, got = models.run(to_bytes(model), given), models.run(path, given)
    assert all(np.array_equal(expected[key], got[key]) for key in expected)


def test_a_released_weight_reads_the_same_again(tmp_path: Path) -> None:
    model = load(chain(tmp_path, 64, 1))
    tensor = model.graph.initializers["w0"].const_value
    assert isinstance(tensor, Mapped)
    before = tensor.numpy().copy()
    tensor.release()
    assert np.array_equal(tensor.numpy(), before)


def test_a_model_read_back_keeps_its_temporary_files(scratch: Path) -> None:
    model = models.mlp(64)
    again = parse(serialize(model))
    gc.collect()
    assert list(scratch.iterdir())
    assert np.array_equal(
        models.run(serialize(again), models.feeds(model))["y"],
        models.run(to_bytes(again), models.feeds(model))["y"],
    )


def residual(groups: int) -> ir.Model:
    """Gemm, Relu, Mul and Add, so many times."""
    random = np.random.default_rng(0)
    weights: dict[str, Any] = {}
    nodes = ""
    for n in range(groups):
        weights[f"w{n}"] = random.standard_normal((8, 8)).astype(np.float32) / 3
        weights[f"s{n}"] = np.full(8, 1e-3, np.float32)
        nodes += (
            f"g{n} = Gemm(x{n}, w{n}) r{n} = Relu(g{n}) m{n} = Mul(r{n}, s{n}) x{n + 1} = Add(m{n}, x{n}) "
        )
    model = models.text(f"(float[N, 8] x0) => (float[N, 8] x{groups})", nodes, weights)
    return normalize(model).model


def calls(work: Callable[[], object]) -> int:
    """Calls of functions of the project that some work makes."""
    count = 0

    def watch(frame: Any, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and "compressor" in frame.f_code.co_filename

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("step", [Quantize(), StoreWeights(min_elements=1)], ids=lambda step: step.kind)
def test_work_grows_as_nodes_do(step: Pass) -> None:
    counts = []
    for groups in (20, 80):
        model = residual(groups)
        batch = {"x0": np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)}
        context = Context(Streamer(OrtEngine(), model.clone(), lambda batch=batch: iter([batch])), rows=8)
        counts.append(calls(lambda model=model, context=context: step.apply(model, context)))
    assert counts[1] < 6 * counts[0]  # four times the nodes
