"""Models over 2 GB: files in place of bytes, with the limit lowered so that small ones stand for them."""

import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor import guard, inline
from edgepress.compressor.cli.host import make_host
from edgepress.compressor.errors import ModelError, OutputError
from edgepress.compressor.model import load, to_bytes
from edgepress.compressor.serialize import StoredModel, contents, files, parse, serialize, write
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.memory import memory_peak_bytes


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, with the limit of one file lowered to nothing."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(guard, "PROTO_LIMIT", 16 << 20)
    yield folder
    gc.collect()
    assert not list(folder.iterdir())


def stored(model: ir.Model) -> StoredModel:
    data = serialize(model)
    assert isinstance(data, StoredModel)
    return data


@pytest.mark.parametrize("name", models.ALL)
def test_files_compute_what_the_bytes_do(name: str, scratch: Path) -> None:
    model = models.ALL[name]()
    feeds = models.feeds(model)
    got = models.run(stored(model), feeds)
    expected = models.run(parse(stored(model)), feeds)
    guard.PROTO_LIMIT = 1 << 31
    original = models.run(to_bytes(model), feeds)
    assert all(np.array_equal(original[key], got[key]) for key in original)
    assert all(np.array_equal(original[key], expected[key]) for key in original)


def test_below_the_limit_it_is_bytes() -> None:
    assert serialize(models.cnn()) == to_bytes(models.cnn())


def test_one_protobuf_is_refused_above_the_limit(scratch: Path) -> None:
    with pytest.raises(ModelError, match="one file ends at 2 GB"):
        to_bytes(models.cnn())


def test_files_go_with_the_object_and_a_loaded_model_lives_on(scratch: Path) -> None:
    model = models.mlp(64)
    data = stored(model)
    assert len(data) == sum(path.stat().st_size for path in data.path.parent.iterdir()) > 64 * 6 * 4
    runner = OrtEngine().load(data)
    feeds = models.feeds(model)
    before = runner(feeds)["y"]
    del data
    gc.collect()
    assert not list(scratch.iterdir())
    assert np.array_equal(runner(feeds)["y"], before)


def test_weights_stay_out_of_the_file_and_unread_ones_out_of_both(scratch: Path) -> None:
    model = models.mlp(64)
    size = len(stored(model))
    tensor = ir.tensor(np.ones(1000, np.float32), name="unread")
    model.graph.register_initializer(ir.Value(name="unread", const_value=tensor))
    data = stored(model)
    assert len(data) == size
    assert data.path.stat().st_size < 1500
    assert "unread" in model.graph.initializers


def test_a_weight_in_a_constant_node_goes_beside_the_file_too(scratch: Path) -> None:
    model = models.text(
        "(float[N, 200] x) => (float[N, 2] y)",
        "w = Constant <value = float[200, 2] {" + ", ".join(["0.5"] * 400) + "}> () y = MatMul(x, w)",
    )
    data = stored(model)
    assert data.path.stat().st_size < 1600
    x = np.ones((1, 200), np.float32)
    assert models.run(data, {"x": x})["y"].tolist() == [[100.0, 100.0]]


def test_written_under_another_name_it_still_finds_its_weights(scratch: Path, tmp_path: Path) -> None:
    model = models.cnn()
    data, feeds = stored(model), models.feeds(model)
    path = tmp_path / "small.onnx"
    write(data, path)
    assert files(data, "small.onnx") == {
        name: (tmp_path / name).stat().st_size for name in ("small.onnx", "small.onnx.data")
    }
    del data
    onnx.checker.check_model(str(path))
    guard.PROTO_LIMIT = 1 << 31
    assert to_bytes(load(path)) == to_bytes(model)
    assert np.array_equal(models.run(path, feeds)["y"], models.run(to_bytes(model), feeds)["y"])


def places(path: Path) -> list[inline.Range]:
    """Where the weights of a file lie."""
    return [inline.range_of(each) for each in inline.outside(onnx.load(path, load_external_data=False))]


def test_weights_start_where_they_can_be_read_in_place(scratch: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {
        "p": (3, 701),
        "w": (701, 401),
        "q": (401, 3),
        "v": (3, 400),
    }  # bytes, floats of over 1 MB, and so on
    model = models.text(
        "(float[N, 3] x) => (float[N, 400] y)",
        "a = Cast <to = 1> (p) b = MatMul(x, a) c = MatMul(b, w) d = Cast <to = 1> (q) e = MatMul(c, d) "
        "y = MatMul(e, v)",
        {k: (9 * rng.normal(size=s)).astype(np.int8 if k in "pq" else np.float32) for k, s in shapes.items()},
    )
    data = stored(model)
    write(data, tmp_path / "small.onnx")
    feeds = {"x": np.ones((2, 3), np.float32)}
    expected = models.run(ir.to_proto(model).SerializeToString(), feeds)["y"]
    for path in (data.path, tmp_path / "small.onnx"):
        found = places(path)
        assert [each.length for each in found] == [2103, 701 * 401 * 4, 1203, 4800]
        assert [each.offset % 64 for each in found] == [0] * 4
        assert found[1].offset % 4096 == 0
        assert len(data) == sum(path.with_name(f"{path.name}{end}").stat().st_size for end in ("", ".data"))
        assert np.array_equal(models.run(path, feeds)["y"], expected)
        for tensor in onnx.load(path).graph.initializer:
            original = model.graph.initializers[tensor.name].const_value
            assert original is not None
            assert np.array_equal(onnx.numpy_helper.to_array(tensor), original.numpy())
    assert np.array_equal(models.run(parse(data), feeds)["y"], expected)
    assert np.array_equal(models.run(load(tmp_path / "small.onnx"), feeds)["y"], expected)


@given(lengths=st.lists(st.sampled_from([1, 63, 64, 65, 4095, 4097, (1 << 20) - 1, 1 << 20]), max_size=6))
@settings(max_examples=30, deadline=None)
def test_a_file_of_weights_holds_each_where_the_model_says(lengths: list[int]) -> None:
    proto = onnx.ModelProto()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for at, length in enumerate(lengths):
            (folder / str(at)).write_bytes(bytes([at + 1]) * length)
            tensor = proto.graph.initializer.add(data_type=onnx.TensorProto.INT8, dims=[length])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=str(at))
        _, pieces = inline.two_files(proto, "weights")
        whole = b"".join(inline.read(pieces, folder))
    assert len(whole) == inline.size_of(pieces)
    for at, tensor in enumerate(proto.graph.initializer):
        place = inline.range_of(tensor)
        assert place.offset % (4096 if place.length >= 1 << 20 else 64) == 0
        assert whole[place.offset : place.offset + place.length] == bytes([at + 1]) * lengths[at]
        whole = whole.replace(bytes([at + 1]), bytes(1))
    assert not whole.strip(bytes(1)), "nothing else is in it"


@pytest.mark.parametrize("limit", [16 << 20, 1 << 31])
def test_weights_that_were_cut_short_meanwhile_are_told(
    limit: int, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(stored(models.mlp(64)), tmp_path / "large.onnx")
    data = stored(load(tmp_path / "large.onnx"))
    assert data.in_place
    monkeypatch.setattr(guard, "PROTO_LIMIT", limit)  # so that it is two files, or one
    weights = tmp_path / "large.onnx.data"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(ModelError, match="has become shorter since the model was loaded"):
        write(data, tmp_path / "small.onnx")
    with pytest.raises(ModelError, match=re.escape(str(weights))):
        list(contents(data))


def test_a_full_disk_is_told_before_anything_is_written(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []
    monkeypatch.setattr(f"{serialize.__module__}.move_beside", lambda *arguments: written.append(arguments))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(OutputError, match="No space left") as caught:
        serialize(models.mlp())
    assert "TMPDIR" in caught.value.hint
    assert not written


@pytest.mark.parametrize("temporary", [True, False])
def test_a_full_disk_is_told_with_what_helps_there(
    temporary: bool, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(stored(models.mlp(64)), tmp_path / "large.onnx")
    data = stored(load(tmp_path / "large.onnx"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(OutputError, match="No space left") as caught:
        _ = data.path if temporary else write(data, tmp_path / "small.onnx")
    assert ("TMPDIR" in caught.value.hint) is temporary
    assert ("another folder" in caught.value.hint) is not temporary


def test_a_folder_that_cannot_be_written_is_told(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(f"{serialize.__module__}.move_beside", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        serialize(models.mlp())


@pytest.mark.parametrize("ending", ["raise KeyboardInterrupt", "sys.exit(3)", "pass"])
def test_nothing_is_left_however_the_process_ends(ending: str, tmp_path: Path) -> None:
    code = (
        "import sys, models\n"
        "from edgepress.compressor import guard\n"
        "from edgepress.compressor.serialize import serialize\n"
        "guard.PROTO_LIMIT = 16 << 20\n"
        "data = serialize(models.mlp())\n"
        "assert data.path.exists()\n"
        f"{ending}\n"
    )
    paths = {"PYTHONPATH": str(Path(__file__).parent.parent), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, check=False)
    assert b"Assertion" not in done.stderr
    assert not list(tmp_path.glob("edgepress-*"))


def test_files_are_timed_and_their_memory_measured(scratch: Path) -> None:
    model = models.mlp(64)
    pair, feeds = (stored(model), stored(model)), models.feeds(model, 1)
    host = make_host("local", 1, 0, 0.05, lambda *_: None)
    assert host.stopwatch is not None
    assert all(latency.median_ns > 0 for latency in host.stopwatch(pair, feeds))
    assert memory_peak_bytes(pair[0], feeds, repeats=1) >= 0
