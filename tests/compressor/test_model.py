import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor import guard
from edgepress.compressor.errors import ModelError, UsageError
from edgepress.compressor.model import (
    dims,
    input_specs,
    load,
    parameters,
    prefix,
    to_bytes,
    weights_bytes,
)
from edgepress.compressor.serialize import parse, serialize_prefix
from edgepress.compressor.shapes import infer_shapes


def saved(proto: onnx.ModelProto | ir.Model, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(
        to_bytes(proto) if isinstance(proto, ir.Model) else proto.SerializeToString(deterministic=True)
    )
    return path


def mlp_proto() -> onnx.ModelProto:
    return onnx.ModelProto.FromString(to_bytes(models.mlp()))


def external(folder: Path) -> tuple[Path, onnx.ModelProto]:
    models.external(models.mlp(), folder)
    path = folder / "external.onnx"
    return path, onnx.load(path, load_external_data=False)


def point_to(proto: onnx.ModelProto, location: str, path: Path) -> Path:
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("name", models.ALL)
def test_a_loaded_model_computes_what_the_saved_one_did(name: str, tmp_path: Path) -> None:
    model = models.ALL[name]()
    again = load(saved(model, tmp_path))
    feeds = models.feeds(model)
    expected, got = models.run(model, feeds), models.run(again, feeds)
    assert list(expected) == list(got)
    assert all(np.array_equal(expected[key], got[key]) for key in expected)


def test_a_missing_file_a_folder_and_an_empty_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for name, words in (("none.onnx", "no such file"), (".", "is a folder"), ("empty.onnx", "is empty")):
        with pytest.raises(ModelError, match=words) as caught:
            load(tmp_path / name)
        assert caught.value.hint
        assert caught.value.exit_code == 2


def foreign_file(kind: str, folder: Path) -> Path:
    path = folder / "model"
    if kind == "savedmodel":
        path.mkdir()
        (path / "saved_model.pb").touch()
    elif kind == "torch zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", b"x")
    elif kind == "keras zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.h5", b"x")
    elif kind == "safetensors":
        header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    else:
        content = {
            "torch pickle": pickle.dumps({"w": 1}),
            "keras h5": b"\x89HDF\r\n\x1a\n" + bytes(20),
            "tflite": bytes([28, 0, 0, 0]) + b"TFL3" + bytes(20),
            "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "web page": b"<!DOCTYPE html><html></html>",
        }
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("torch zip", "torch.onnx.export"),
        ("torch pickle", "torch.onnx.export"),
        ("keras zip", "format='onnx'"),
        ("keras h5", "format='onnx'"),
        ("tflite", "--tflite model"),
        ("savedmodel", "--saved-model model"),
        ("safetensors", "torch.onnx.export"),
        ("git lfs", "git lfs pull"),
        ("web page", "download went wrong"),
    ],
)
def test_another_format_is_answered_with_the_way_to_onnx(kind: str, way: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not an ONNX file") as caught:
        load(foreign_file(kind, tmp_path))
    assert way in caught.value.hint


@pytest.mark.parametrize("content", [b"hello, this is a text", b"\x00" * 100, b"\xff" * 64, b"{}"])
def test_noise_is_not_an_onnx_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX file"):
        load(path)


@settings(max_examples=60)
@given(share=st.floats(0.02, 0.99))
def test_a_cut_file_never_loads(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = to_bytes(models.cnn())
    path = tmp_path_factory.mktemp("cut") / "cut.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"truncated|not an ONNX|checker"):
        load(path)


def test_a_cut_weight_is_called_truncated(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(to_bytes(models.cnn())[:1200])
    with pytest.raises(ModelError, match="truncated"):
        load(path)


def test_what_the_checker_says_reaches_the_user(tmp_path: Path) -> None:
    proto = mlp_proto()
    proto.graph.node[1].op_type = "Rellu"
    with pytest.raises(ModelError, match=r"checker.*Rellu"):
        load(saved(proto, tmp_path))


def test_external_data_are_views_of_their_file(tmp_path: Path) -> None:
    path, _ = external(tmp_path)
    model = load(path)
    arrays = [value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value]
    assert arrays
    assert not any(array.flags.owndata or array.flags.writeable for array in arrays)  # views of the file
    assert to_bytes(model) == to_bytes(load(saved(models.mlp(), tmp_path)))


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("gone.data", "is missing"),
        ("../external.data", "outside the model's folder"),
        ("sub/../../external.data", "outside the model's folder"),
        ("ABSOLUTE", "outside the model's folder"),
        ("link.data", "outside the model's folder"),
        ("", "outside the model's folder"),
    ],
)
def test_external_data_that_are_missing_or_elsewhere_are_refused(
    location: str, words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path, proto = external(folder)
    data = (folder / "external.data").rename(tmp_path / "external.data")
    (folder / "link.data").symlink_to(data)
    with pytest.raises(ModelError, match=words):
        load(point_to(proto, str(data) if location == "ABSOLUTE" else location, path))


def test_external_data_shorter_than_said_are_refused(tmp_path: Path) -> None:
    path, _ = external(tmp_path)
    os.truncate(tmp_path / "external.data", 100)
    with pytest.raises(ModelError, match=r"external.data: is shorter than the model says"):
        load(path)


def test_sparse_initializers_become_dense(tmp_path: Path) -> None:
    proto = mlp_proto()
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "b1")
    proto.graph.initializer.remove(weight)
    values = onnx.numpy_helper.from_array(np.array([1.5, -2], np.float32), "b1")
    indices = onnx.numpy_helper.from_array(np.array([1, 6], np.int64), "b1_at")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [8]))
    model = load(saved(proto, tmp_path))
    tensor = model.graph.initializers["b1"].const_value
    assert tensor is not None
    assert tensor.numpy().tolist() == [0, 1.5, 0, 0, 0, 0, -2, 0]


def test_training_information_is_refused(tmp_path: Path) -> None:
    proto = mlp_proto()
    proto.training_info.add().algorithm.name = "sgd"
    with pytest.raises(ModelError, match="training information"):
        load(saved(proto, tmp_path))


def test_two_weights_of_one_name_are_refused(tmp_path: Path) -> None:
    proto = mlp_proto()
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(ModelError, match="Two initializers are named 'w1'"):
        load(saved(proto, tmp_path))


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_weights_that_are_no_numbers_are_named(value: float, word: str, tmp_path: Path) -> None:
    model = models.mlp()
    weight = np.ones((4, 8), np.float32)
    weight[1, 2] = value
    model.graph.initializers["w2"].const_value = ir.tensor(weight)
    with pytest.raises(ModelError, match=f"'w2': 1 of 32 values are {word}"):
        load(saved(model, tmp_path))


def test_infinite_clip_bounds_and_masks_are_fine(tmp_path: Path) -> None:
    model = models.text(
        "(float[N, 2] x) => (float[N, 2] y)",
        "c = Clip(x, low, high) y = Add(c, mask)",
        {
            "low": np.array(0, np.float32),
            "high": np.array(np.inf, np.float32),
            "mask": models.array(0, -np.inf),
        },
    )
    assert load(saved(model, tmp_path)).graph.outputs[0].name == "y"


def test_bad_numbers_are_found_in_the_last_block() -> None:
    array = np.zeros(guard._BLOCK + 3, np.float32)
    array[-1], array[0], array[1] = np.nan, np.inf, -np.inf
    assert guard.count_bad(array) == (1, 2)


def test_shape_fixes_dynamic_dimensions_through_the_graph(tmp_path: Path) -> None:
    model = load(saved(models.two_inputs(), tmp_path), {"left": (3, 4)})
    assert dims(model.graph.outputs[0]) == (3, 3)
    assert dims(next(value for value in model.graph.inputs if value.name == "right")) == (3, 4)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("lefd", (3, 4), "no input 'lefd'"),
        ("left", (3, 5), r"\[N, 4\], which cannot become \[3, 5\]"),
        ("left", (3, 4, 1), "cannot become"),
        ("left", (0, 4), "must be positive"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(
    name: str, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        load(saved(models.two_inputs(), tmp_path), {name: shape})


def test_counting_leaves_out_shapes_scales_and_zero_points() -> None:
    model = models.text(
        "(float[N, 4] x) => (float[M, 2] y)",
        "w = DequantizeLinear(q, scale, zero) g = MatMul(x, w) y = Reshape(g, target)",
        {
            "q": np.zeros((4, 2), np.int8),
            "scale": np.array(0.5, np.float32),
            "zero": np.array(0, np.int8),
            "target": models.array(-1, 2, dtype=np.int64),
        },
    )
    assert (parameters(model), weights_bytes(model)) == (8, 8)


def test_inputs_say_what_must_be_fed() -> None:
    (spec,) = input_specs(models.cnn())
    assert (spec.name, spec.dtype, spec.shape) == ("x", np.dtype(np.float32), ("N", 2, 8, 8))


@pytest.mark.parametrize("name", [name for name in models.ALL if name != "half"])
def test_a_prefix_gives_the_values_of_the_whole(name: str) -> None:
    model = models.ALL[name]()
    before, feeds = to_bytes(model), models.feeds(model)
    names = [value.name or "" for node in model.graph for value in node.outputs if value.name]
    inputs = [value.name or "" for value in model.graph.inputs]
    whole = models.run(prefix(model, [*names, *inputs, *model.graph.initializers]), feeds)
    for wanted in (*names, *inputs, *model.graph.initializers):
        part = prefix(model, [wanted])
        assert np.array_equal(models.run(part, feeds)[wanted], whole[wanted]), wanted
        assert len(part.graph) <= len(model.graph)
        direct = parse(serialize_prefix(model, [wanted]))
        assert np.array_equal(models.run(direct, feeds)[wanted], whole[wanted]), wanted
        assert [node.op_type for node in direct.graph] == [node.op_type for node in part.graph]
    assert to_bytes(model) == before


def test_a_prefix_shares_tensors_and_leaves_out_what_it_does_not_need() -> None:
    model = models.cnn()
    part = prefix(model, ["r1"])
    assert [node.op_type for node in part.graph] == ["Conv", "Relu"]
    assert set(part.graph.initializers) == {"k1", "b1"}
    assert part.graph.initializers["k1"].const_value is model.graph.initializers["k1"].const_value


@settings(max_examples=25, deadline=None)
@given(at=st.integers(0, 6), seed=st.integers(0, 99))
def test_a_model_cut_at_any_value_ends_the_same(at: int, seed: int) -> None:
    model = models.cnn()
    infer_shapes(model)
    feeds = models.feeds(model, seed=seed)
    cut = [node.outputs[0].name or "" for node in model.graph][at]
    middle = models.run(prefix(model, [cut]), feeds)
    rest = prefix(model, ["y"], inputs=[cut])
    assert [value.name for value in rest.graph.inputs] == [cut]
    assert np.array_equal(models.run(rest, middle)["y"], models.run(model, feeds)["y"])
    direct = parse(serialize_prefix(model, ["y"], [cut]))
    assert [value.name for value in direct.graph.inputs] == [cut]
    assert np.array_equal(models.run(direct, middle)["y"], models.run(rest, middle)["y"])


def test_a_prefix_of_nothing_known_is_refused() -> None:
    with pytest.raises(ModelError, match="no value 'r3'") as caught:
        serialize_prefix(models.cnn(), ["r3"])
    assert "r2" in caught.value.hint
