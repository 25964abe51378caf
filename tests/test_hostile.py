"""Files made to do harm: each is refused in one message, before it takes memory, disk or time."""

import io
import json
import math
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from clicase import Case, refused, rows
from onnx import TensorProto

from edgepress.compressor import columns, data
from edgepress.compressor.data import open_data
from edgepress.compressor.errors import DataError, ModelError, UsageError
from edgepress.compressor.evolve import checkpoint
from edgepress.compressor.fold_constants import fold_constants
from edgepress.compressor.model import load, to_proto
from edgepress.compressor.printable import showable
from edgepress.compressor.samples import synthetic_feeds
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.specs import InputSpec
from edgepress.runtime.engines import sparse
from edgepress.runtime.record import EngineError

X = [InputSpec("x", np.dtype(np.float32), (None, 6))]
GIGABYTE = 1 << 30


def compress_refused(case: Case, words: str, **options: object) -> None:
    refused(case.compress(**options), words)
    assert not case.out.exists()


# Archives that unpack to far more than they take


def bomb(path: Path, name: str, shape: tuple[int, ...], order: str = "C") -> Path:
    """An npz whose one array is zeros: a thousandth of its size."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": order == "F", "shape": shape}
    )
    left = int(np.prod(shape)) * 4
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{name}.npy", "w") as member,
    ):
        member.write(header.getvalue())
        while left > 0:
            member.write(bytes(min(left, 1 << 20)))
            left -= 1 << 20
    return path


def test_an_archive_of_another_shape_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "bomb.npz", "x", (4, 1 << 22))
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(columns, "_fill", None)  # whatever reads rows fails
    with pytest.raises(DataError, match="wants"):
        open_data(path, X)


def test_rows_beyond_the_limit_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "bomb.npz", "x", (4, 1 << 20))
    specs = [InputSpec("x", np.dtype(np.float32), (None, None))]
    assert len(list(open_data(path, specs).batches(1))) == 4
    monkeypatch.setattr(columns, "_MOST_TAKEN", 1 << 20)
    with pytest.raises(DataError, match=f"1 rows of array 'x' .* unpack to {1 << 22} bytes"):
        list(open_data(path, specs).batches(1))


def test_an_archive_by_columns_that_would_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those are unpacked to a temporary file."""
    path = bomb(tmp_path / "bomb.npz", "x", (1 << 10, 6), "F")
    assert open_data(path, X).rows == 1 << 10
    monkeypatch.setattr(columns.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    with pytest.raises(DataError, match="1000 are free for temporary files"):
        open_data(path, X)


# Headers of arrays


def header(text: str) -> bytes:
    content = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


HEADERS = {
    "deep": "(" * 4000 + ")" * 4000,
    "open": "[" * 9000,
    "signs": "-" * 9000 + "1",
    "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3), }",
    "nothing a row": "{'descr': '|V0', 'fortran_order': False, 'shape': (99999999999, 6), }",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (1, 6), }",
    "huge": "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 6), }",
    "code": "__import__('os').getcwd()",
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("read", ["npy", "npz", "sparse", "checkpoint"])
def test_headers_of_arrays(tmp_path: Path, name: str, read: str) -> None:
    content = header(HEADERS[name]) + bytes(24)
    (tmp_path / "x.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("version.npy", content)
    readers: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
        "npy": (DataError, lambda: open_data(tmp_path / "x.npy", X)),
        "npz": (DataError, lambda: open_data(tmp_path / "x.npz", X)),
        "sparse": (EngineError, lambda: sparse.SparseEngine().load(tmp_path / "x.npz", 1)),
        "checkpoint": (UsageError, lambda: checkpoint.facts_of(tmp_path / "x.npz")),
    }
    error, work = readers[read]
    with pytest.raises(error) as caught:
        work()
    assert len(showable(str(caught.value))) > 20


# Text that nests deeply, and numbers of thousands of digits

DEEP = ("[" * 100_000, "[" * 3000 + "]" * 3000, '{"a":' * 5000, "9" * 5000)


@pytest.mark.parametrize("deep", DEEP, ids=["open", "closed", "tables", "digits"])
@pytest.mark.parametrize("file", ["recipe", "target", "timings"])
def test_text_that_nests_deeply(case: Case, file: str, deep: str) -> None:
    path = case.folder / f"x.{'json' if file == 'timings' else 'toml'}"
    path.write_text(f'{{"timings_ns": {deep}' if file == "timings" else f"a = {deep}", encoding="utf-8")
    compress_refused(case, "x.json" if file == "timings" else "", **{file: path})


@pytest.mark.parametrize("deep", DEEP, ids=["open", "closed", "tables", "digits"])
def test_a_budget_file_and_preprocessing_that_nest_deeply(case: Case, deep: str) -> None:
    (case.folder / "edgepress.toml").write_text(f"gate = {deep}", encoding="utf-8")
    assert case.run("gate", "--config", "edgepress.toml").code == 2
    (case.folder / "images").mkdir()
    (case.folder / "images" / "a.png").touch()
    (case.folder / "preprocess.toml").write_text(f"size = {deep}", encoding="utf-8")
    assert case.compress(data=case.folder / "images", test=None).code == 2


@pytest.mark.parametrize("name", ["manifest.json", "report.json"])
def test_records_that_nest_deeply(case: Case, name: str) -> None:
    case.out.mkdir()
    for deep in DEEP:
        (case.out / name).write_text(f'{{"schema_version": 1, "tool": {deep}', encoding="utf-8")
        words = ("replay", case.out, "--out", "again") if name == "manifest.json" else ("report", case.out)
        found = case.run(*words)
        assert (found.code, name in found.err) == (2, True), found


# Models


def test_models_that_no_runtime_should_see(tmp_path: Path) -> None:
    def damaged(change: Callable[[onnx.ModelProto], object]) -> Path:
        proto = to_proto(models.mlp())
        change(proto)
        (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
        return tmp_path / "model.onnx"

    def nul(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="a\0b")

    with pytest.raises(ModelError, match="lies outside the model's folder"):
        load(damaged(nul))
    with pytest.raises(ModelError, match="99 is no type"):
        load(damaged(lambda proto: setattr(proto.graph.initializer[0], "data_type", 99)))


NAMED = """
<ir_version: 9, opset_import: ["" : 17, "own" : 1], producer_name: "Q0Q0">
Q1Q1 (float[Q2Q2, 4] x, bool yes) => (float[n, 4] y)
{
   [Q3Q3] h = own.Q4Q4 <strength = 2> (x)
   y = If (yes) <then_branch = Q5Q5 () => (float[n, 4] o) { o = Relu (h) },
                 else_branch = two () => (float[n, 4] Q6Q6) { Q6Q6 = Neg (h) }>
}
<domain: "own", opset_import: ["" : 17]>
Q4Q4 <Q7Q7> (a) => (b) { b = Relu (a) }
"""


@pytest.mark.parametrize("number", range(8))
def test_text_that_is_none_is_refused_wherever_it_stands(tmp_path: Path, number: int) -> None:
    data = onnx.parser.parse_model(NAMED).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data.replace(f"Q{number}Q{number}".encode(), b"a\xff\x80b"))
    with pytest.raises(ModelError, match=r"model.onnx: '[a-z_]+' of a [A-Za-z.]+ is not UTF-8 text"):
        load(tmp_path / "model.onnx")


def test_a_spread_over_devices_is_left_out(tmp_path: Path) -> None:
    """A configuration without a name cannot be written again."""
    proto = to_proto(models.mlp())
    proto.graph.node[0].device_configurations.add()
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    found = to_proto(load(tmp_path / "model.onnx"))
    assert not found.graph.node[0].device_configurations
    assert len(found.graph.node) == len(proto.graph.node)


def test_a_model_that_takes_terabytes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [InputSpec("x", np.dtype(np.float32), (1 << 40, 6))]
    with pytest.raises(DataError, match=f"takes {1 << 40} rows at once"):
        list(open_data(rows(1, 8)["x"], specs).batches(4))
    monkeypatch.setattr(data, "_MOST_BATCH_BYTES", 1 << 50)
    assert len(list(open_data(rows(1, 8)["x"], [InputSpec("x", X[0].dtype, (16, 6))]).batches(4))) == 1
    wide = models.mlp()
    wide.graph.inputs[0].shape = models.ir.Shape([1, 1 << 40])
    assert synthetic_feeds(wide, lambda feeds: {}, 0) is None


HUGE = 1 << 44
"""Elements of a value: more than any machine has room for."""


def grown(size: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Ways to make a value of so many elements out of few, as text and constants."""
    side, pixel = math.isqrt(size), [[[[1.0]]]]
    pads = ", ".join([str(side // 2)] * 4)
    return {
        "Expand": ("e = Expand(one, to)", {"one": [1.0], "to": [size]}),
        "Tile": ("e = Tile(one, to)", {"one": [1.0], "to": [size]}),
        "Range": ("e = Range(from, end, step)", {"from": 0, "end": size, "step": 1}),
        "ConstantOfShape": ("e = ConstantOfShape(to)", {"to": [size]}),
        "OneHot": ("e = OneHot(one, to, pair)", {"one": [1], "to": [size], "pair": [0.0, 1.0]}),
        "Pad": ("e = Pad(one, to)", {"one": [1.0], "to": [0, size]}),
        "Resize": ("e = Resize(one, , scales)", {"one": pixel, "scales": [1.0, 1.0, side, side]}),
        "RandomNormal": (f"e = RandomNormal <shape = [{size}]> ()", {}),
        "Conv": (f"e = Conv <pads = [{pads}]> (one, k)", {"one": pixel, "k": pixel}),
        "computed": ("to = Cast <to = 7> (f) e = ConstantOfShape(to)", {"f": [float(size)]}),
        "taken back": (
            "b = Expand(one, to) e = ReduceMax <axes = [0], keepdims = 0> (b)",
            {"one": np.ones(5000).tolist(), "to": [size // 5000, 5000]},
        ),
    }


def growing(name: str, size: int) -> onnx.ModelProto:
    """A net, one value of which takes so many elements."""
    body, values = grown(size)[name]
    tail = "c = Cast <to = 1> (e) s = ReduceMean <keepdims = 0> (c) y = Add(m, s)"
    whole = {key: np.asarray(value) for key, value in values.items()}
    weights = {key: v.astype(np.float32) if v.dtype.kind == "f" else v for key, v in whole.items()}
    weights["w"] = np.ones((6, 4), np.float32)
    return to_proto(
        models.text(
            "(float[N, 6] x) => (float[N, 4] y)", f"m = MatMul(x, w) {body} {tail}", weights, opset=13
        )
    )


@pytest.fixture
def recipe(case: Case) -> Path:
    (case.folder / "recipe.toml").write_text('[[pass]]\nkind = "store"\n', encoding="utf-8")
    return case.folder / "recipe.toml"


@pytest.mark.parametrize("name", grown(1))
def test_a_value_that_takes_terabytes_is_named(case: Case, recipe: Path, name: str) -> None:
    case.model.write_bytes(growing(name, HUGE).SerializeToString())
    compress_refused(case, " GB; there are ", recipe=recipe, data=None, test=None)


def test_an_input_that_takes_terabytes_is_named(case: Case, recipe: Path) -> None:
    case.change_model(
        lambda proto: setattr(proto.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", HUGE)
    )
    compress_refused(case, "Value 'x'", recipe=recipe, data=None, test=None)


@pytest.mark.parametrize("name", ["Expand", "Tile", "Range", "OneHot", "Pad", "taken back"])
def test_nothing_large_is_computed_to_be_looked_at(name: str) -> None:
    """Folding used to make a constant first, and then to find it too large."""
    model = ir.from_proto(growing(name, 1 << 25))
    infer_shapes(model)
    fold_constants(model.clone())  # what it imports is not to count
    tracemalloc.start()
    try:
        fold_constants(model)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_sparse_tensors_that_claim_much_together(tmp_path: Path) -> None:
    proto = to_proto(models.mlp())
    for number in range(5):
        values = onnx.numpy_helper.from_array(np.ones(1, np.float32), f"s{number}")
        indices = onnx.numpy_helper.from_array(np.zeros(1, np.int64), f"i{number}")
        proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [1 << 27]))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="'s3' takes the model over 2 GB"):
        load(path)


def test_inputs_that_are_large_together_are_not_made_up() -> None:
    wide = models.two_inputs()
    for value in wide.graph.inputs:
        value.shape = models.ir.Shape([1, 1 << 27, 1])
    many = [*wide.graph.inputs]
    for number in range(3):
        copy = models.ir.Value(name=f"more{number}", type=many[0].type, shape=many[0].shape)
        wide.graph.inputs.append(copy)
    assert synthetic_feeds(wide, lambda feeds: {}, 0) is None


# Messages


def test_what_a_message_cites_is_cut_and_obeyed_by_no_terminal(case: Case) -> None:
    (case.folder / "recipe.toml").write_text(
        f'[[pass]]\nkind = "{"x" * 50_000}\\u001b[2J\\u202e"\n', encoding="utf-8"
    )
    outcome = case.compress(recipe=case.folder / "recipe.toml")
    assert outcome.code == 2
    assert len(outcome.err) < 4000
    assert not {"\x1b", "\u202e"} & {*outcome.err}
    assert showable("a\nb\x07") == "a\nb\N{REPLACEMENT CHARACTER}"
    assert showable("y" * 5000).count("y") == 1000
    assert showable("\n" * 500).count("\n") == 39
    assert json.dumps(showable("\ud800")) == '"\\ufffd"'
