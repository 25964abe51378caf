import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgepress.compressor import guard
from edgepress.compressor.errors import ModelError, OutputError, UsageError
from edgepress.compressor.export.onnx import save, verify
from edgepress.compressor.export.releases import RELEASES, bound, oldest_runtime
from edgepress.compressor.model import to_bytes
from edgepress.compressor.serialize import StoredModel, proto_of


@pytest.mark.parametrize("name", models.ALL)
def test_the_saved_file_is_smaller_equal_and_the_same_each_time(name: str) -> None:
    model = models.ALL[name]()
    before, feeds = to_bytes(model), models.feeds(model)
    data = save(model)
    assert len(data) < len(before)
    verify(model, data)
    expected, got = models.run(model, feeds), models.run(data, feeds)
    assert all(np.array_equal(expected[key], got[key]) for key in expected)
    assert save(models.ALL[name]()) == data
    assert save(model.clone()) == data
    assert to_bytes(model) == before


def dirty() -> ir.Model:
    """A model with what exporters leave behind everywhere, and the user's own metadata on top."""
    model = models.control_flow()
    model.metadata_props["author"] = "someone"
    model.producer_name, model.producer_version, model.model_version = "trainer", "1.2", 7
    model.doc_string = model.graph.doc_string = "secret"
    model.graph.metadata_props["trace"] = "secret"
    model.graph.name = "/home/secret/net"
    model.graph.opset_imports["unused.domain"] = 3
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.doc_string = "File secret.py, line 3"
        node.metadata_props["stack"] = "secret"
        for value in node.outputs:
            value.metadata_props["stack"] = "secret"
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.doc_string = "secret"
        value.metadata_props["stack"] = "secret"
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value.metadata_props["stack"] = "secret"
    return model


def test_traces_go_and_the_users_metadata_stay() -> None:
    data = save(dirty())
    assert b"secret" not in data
    assert b"unused.domain" not in data
    proto = onnx.ModelProto.FromString(data)
    assert [(entry.key, entry.value) for entry in proto.metadata_props] == [("author", "someone")]
    assert (proto.producer_name, proto.producer_version, proto.model_version) == ("trainer", "1.2", 7)
    assert (proto.ir_version, proto.opset_import[0].version) == (10, models.OPSET)
    assert b"secret" not in save(dirty(), short_names=False)


def test_metadata_do_not_multiply_on_each_trip() -> None:
    model = models.mlp()
    tensor = model.graph.initializers["w1"].const_value
    assert tensor is not None
    tensor.metadata_props["note"] = "kept"
    first = to_bytes(model)
    assert to_bytes(ir.from_proto(onnx.ModelProto.FromString(first))) == first


def test_inputs_and_outputs_keep_names_that_the_short_ones_would_take() -> None:
    model = models.text(
        "(float[N, 3] b, float[N, 3] c) => (float[N, 3] a, float[N, 3] d)",
        "long_1 = Add(b, c) long_2 = Relu(long_1) a = Mul(long_2, weight) d = Abs(long_2)",
        models.constants(0, weight=(3,)),
    )
    data, feeds = save(model), models.feeds(model)
    verify(model, data)
    expected, got = models.run(model, feeds), models.run(data, feeds)
    assert all(np.array_equal(expected[key], got[key]) for key in "ad")
    assert b"long" not in data
    assert b"long_1" in save(model, short_names=False)


def test_many_values_get_distinct_short_names() -> None:
    body = " ".join(f"value_{i + 1} = Relu(value_{i})" for i in range(120))
    model = models.text("(float[N] value_0) => (float[N] value_120)", body)
    proto = onnx.ModelProto.FromString(save(model))
    names = [name for node in proto.graph.node for name in node.output]
    assert len(set(names)) == 120
    assert max(len(name) for name in names[:-1]) == 2


def test_equal_weights_are_stored_once_and_outputs_are_not_merged() -> None:
    same = models.constants(0, w=(6, 6))["w"]
    model = models.text(
        "(float[N, 6] x) => (float[N, 6] y, float[6, 6] w3)",
        "g = MatMul(x, w1) h = MatMul(g, w2) y = MatMul(h, w3)",
        {"w1": same, "w2": same.copy(), "w3": same.copy()},
    )
    data, feeds = save(model), models.feeds(model)
    proto = onnx.ModelProto.FromString(data)
    assert len(proto.graph.initializer) == 2
    assert np.array_equal(models.run(data, feeds)["y"], models.run(model, feeds)["y"])


def test_attributes_that_say_the_default_are_left_out_and_others_stay() -> None:
    model = models.text(
        "(float[N, 2, 6, 6] x) => (float[N, 2, 3, 3] y)",
        """c = Conv <dilations = [1, 1], group = 1, pads = [1, 1, 1, 1], strides = [1, 1]> (x, k)
        y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 0, 0], ceil_mode = 0> (c)""",
        models.constants(0, k=(2, 2, 3, 3)),
    )
    data, feeds = save(model), models.feeds(model)
    proto = onnx.ModelProto.FromString(data)
    assert [[a.name for a in node.attribute] for node in proto.graph.node] == [
        ["pads"],
        ["kernel_shape", "strides"],
    ]
    assert np.array_equal(models.run(data, feeds)["y"], models.run(model, feeds)["y"])


def test_over_two_gigabytes_the_clean_up_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.cnn()
    whole = save(model)
    monkeypatch.setattr(guard, "PROTO_LIMIT", 1000 + (16 << 20))
    parts = save(model)
    assert isinstance(parts, StoredModel)
    verify(model, parts)
    one, other = proto_of(whole), proto_of(parts)
    assert [node.SerializeToString() for node in one.graph.node] == [
        node.SerializeToString() for node in other.graph.node
    ]
    feeds = models.feeds(model)
    assert np.array_equal(models.run(parts, feeds)["y"], models.run(model, feeds)["y"])


@pytest.mark.parametrize("what", ["name", "type", "fixed batch"])
def test_verify_sees_a_changed_input_or_output(what: str) -> None:
    data = onnx.ModelProto.FromString(save(models.mlp()))
    if what == "name":
        data.graph.input[0].name = data.graph.node[0].input[0] = "z"
    elif what == "type":
        data.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    else:
        data.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    with pytest.raises(OutputError, match="instead of"):
        verify(models.mlp(), data.SerializeToString())


@pytest.mark.parametrize(
    ("opset", "ir_version", "oldest"),
    [
        (9, 4, "1.0"),
        (11, 7, "1.3"),
        (13, 7, "1.6"),
        (15, 8, "1.9"),
        (18, 8, "1.14"),
        (18, 10, "1.18"),
        (22, 10, "1.21"),
    ],
)
def test_the_oldest_runtime_follows_opset_and_ir_version(opset: int, ir_version: int, oldest: str) -> None:
    model = models.mlp()
    model.graph.opset_imports[""], model.ir_version = opset, ir_version
    assert oldest_runtime(model) == oldest
    bound(model, oldest)
    bound(model, "99.0")
    if oldest != "1.0":
        major, minor = oldest.split(".")
        with pytest.raises(ModelError, match=r"opset|IR version"):
            bound(model, f"{major}.{int(minor) - 1}.3")


def test_a_model_of_the_future_and_a_version_that_is_none_are_refused() -> None:
    model = models.mlp()
    model.graph.opset_imports[""] = 99
    with pytest.raises(ModelError, match="opset 99"):
        oldest_runtime(model)
    for text in ("new", "1", "1.x", "0.5"):
        with pytest.raises(UsageError):
            bound(models.mlp(), text)


def test_newer_releases_read_what_older_ones_read() -> None:
    for older, newer in pairwise(RELEASES):
        assert older.version < newer.version
        assert older.opset <= newer.opset
        assert older.ml_opset <= newer.ml_opset
        assert older.ir_version <= newer.ir_version


def test_initializers_that_nothing_reads_are_dropped() -> None:
    model = models.ALL["cnn"]()
    before = len(onnx.ModelProto.FromString(save(model)).graph.initializer)
    tensor = ir.tensor(np.ones(1000, np.float32), name="unread")
    model.graph.register_initializer(ir.Value(name="unread", const_value=tensor))
    assert len(onnx.ModelProto.FromString(save(model)).graph.initializer) == before


def test_a_large_model_is_in_memory_a_few_times_at_most() -> None:
    code = (
        "import numpy as np, models\n"
        "from edgepress.compressor.export.onnx import save\n"
        "from edgepress.compressor.report.build import peak_rss_bytes\n"
        "weights = {f'w{k}': np.random.default_rng(k).random((2048, 2048), np.float32) for k in (1, 2, 3, 4)}\n"
        "chain = 'a = MatMul(x, w1) b = MatMul(a, w2) c = MatMul(b, w3) y = MatMul(c, w4)'\n"
        "model = models.text('(float[N, 2048] x) => (float[N, 2048] y)', chain, weights)\n"
        "before = peak_rss_bytes(0)\n"
        "size = len(save(model))\n"
        "print((peak_rss_bytes(0) - before) / size)\n"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, check=True)
    assert float(done.stdout) < 3.5  # the protobuf, the file, and room that grows as it is written
