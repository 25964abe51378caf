"""Whatever is wrong with what the user gives: a clear line on stderr, exit 2, and nothing written."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from clicase import Case, Outcome, files_below, rows
from clicase import refused as told_as_refused
from onnx import TensorProto, helper, numpy_helper

from edgepress.compressor import outdir
from edgepress.compressor.cli import run
from edgepress.compressor.report import build, manifest


def refused(case: Case, job: Callable[[], Outcome], *wanted: str) -> None:
    """The job ends with exit 2, says the wanted words, and leaves the folder as it was."""
    before = files_below(case.folder)
    outcome = job()
    told_as_refused(outcome, *wanted)
    assert outcome.out == ""
    after = [name for name in files_below(case.folder) if "__pycache__" not in name]
    assert after == before


def test_good_input_is_not_refused(case: Case) -> None:
    assert case.compress().code == 0
    assert manifest.verify(case.out) == []


# The model


def test_missing_model(case: Case) -> None:
    refused(case, lambda: case.run("nowhere.onnx", "--out", case.out), "nowhere.onnx", "no such file")


def test_not_an_onnx_file(case: Case) -> None:
    case.model.write_text("hello " * 100)
    refused(case, case.compress, "model.onnx", "not an ONNX file")


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "Keras"),
        (bytes(4) + b"TFL3" + bytes(90), "TensorFlow Lite"),
        (b"\x80\x02" + bytes(90), "torch"),
    ],
    ids=["keras", "tflite", "torch"],
)
def test_models_of_other_tools_are_told_how_to_become_onnx(case: Case, head: bytes, word: str) -> None:
    case.model.write_bytes(head)
    refused(case, case.compress, "not an ONNX file", word)


def test_truncated_model(case: Case) -> None:
    data = case.model.read_bytes()
    case.model.write_bytes(data[: len(data) // 2])
    refused(case, case.compress, "truncated")


def test_checker_error(case: Case) -> None:
    def misname(proto: onnx.ModelProto) -> None:
        proto.graph.node[0].op_type = "Gemmm"

    case.change_model(misname)
    refused(case, case.compress, "checker", "Gemmm")


def external(case: Case, location: str, content: bytes) -> None:
    """Move one weight into a file."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        size = len(tensor.raw_data)
        (case.folder / "weights.bin").write_bytes(content or bytes(size))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", location), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)

    case.change_model(change)


@pytest.mark.parametrize(
    ("location", "content", "word"),
    [
        ("gone.bin", b"", "gone.bin"),
        ("../weights.bin", b"", "../weights.bin"),
        ("weights.bin", b"1234", "weights.bin"),
    ],
    ids=["missing", "outside", "short"],
)
def test_external_data(case: Case, location: str, content: bytes, word: str) -> None:
    external(case, location, content)
    refused(case, case.compress, word)


def test_training_information(case: Case) -> None:
    case.change_model(lambda proto: proto.training_info.add())
    refused(case, case.compress, "training")


def test_sparse_weights_that_would_be_lost(case: Case) -> None:
    def change(proto: onnx.ModelProto) -> None:
        sparse = proto.graph.sparse_initializer.add()
        sparse.values.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "s"))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 1, 99]), "s_i"))
        sparse.dims.extend([4, 4])

    case.change_model(change)
    refused(case, case.compress, "sparse")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(case: Case, bad: float) -> None:
    def change(proto: onnx.ModelProto) -> None:
        weights = numpy_helper.to_array(proto.graph.initializer[0]).copy()
        weights.flat[3] = bad
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w1"))

    case.change_model(change)
    refused(case, case.compress, "'w1'", "NaN" if np.isnan(bad) else "infinite")


def test_model_that_the_runtime_does_not_know(case: Case) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Foo", ["x"], ["y"], domain="my.own")],
        "g",
        [value("x", TensorProto.FLOAT, ["N", 6])],
        [value("y", TensorProto.FLOAT, ["N", 6])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my.own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), case.model)
    refused(case, case.compress, "my.own:Foo")


# The samples


def broken(**changed: Any) -> dict[str, Any]:
    return {name: array for name, array in {**rows(3, 80), **changed}.items() if array is not None}


def with_value(bad: float) -> Any:
    x = rows(3, 80)["x"]
    x[7, 2] = bad
    return x


BAD_SAMPLES = {
    "names": (broken(x=None, z=np.ones((80, 6), np.float32), w=np.ones((80, 6))), ("'x'",)),
    "shape": (broken(x=np.ones((80, 7), np.float32)), ("[80, 7]", "6")),
    "dtype": (broken(x=np.full((80, 6), "a")), ("'x'",)),
    "nan": (broken(x=with_value(np.nan)), ("NaN", "'x'", "7")),
    "inf": (broken(x=with_value(np.inf)), ("inf", "'x'", "7")),
    "empty": (broken(x=np.ones((0, 6), np.float32), y=np.ones(0, int)), ("empty",)),
    "labels": (broken(y=np.zeros(79, int)), ("80", "79")),
    "label out of range": (broken(y=np.full(80, 9)), ("9",)),
}


@pytest.mark.parametrize("what", BAD_SAMPLES)
@pytest.mark.parametrize("option", ["data", "test"])
def test_samples(case: Case, what: str, option: str) -> None:
    arrays, wanted = BAD_SAMPLES[what]
    path = case.samples("bad.npz", **arrays)
    refused(case, lambda: case.compress(**{option: path}), *wanted)


def test_bad_values_are_found_before_the_search_without_a_test_file(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepress.compressor.session.make_trials", never)
    path = case.samples("bad.npz", **broken(x=with_value(np.nan)))
    refused(case, lambda: case.compress(data=path, test=None), "NaN")


def test_missing_and_damaged_samples(case: Case) -> None:
    refused(case, lambda: case.compress(data="nowhere.npz"), "nowhere.npz")
    half = case.folder / "half.npz"
    half.write_bytes((case.folder / "calib.npz").read_bytes()[:900])
    refused(case, lambda: case.compress(data=half), "half.npz")


def test_samples_on_which_the_model_does_not_run(case: Case) -> None:
    def loosen(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "F"

    case.change_model(loosen)
    path = case.samples("wide.npz", x=np.arange(560, dtype=np.float32).reshape(80, 7))
    refused(case, lambda: case.compress(data=path, test=None), "does not run on these samples", "inspect")


def test_data_and_test_that_share_rows(case: Case) -> None:
    refused(case, lambda: case.compress(test=case.folder / "calib.npz"), "80 of the 80 rows")


def test_samples_that_are_all_the_same(case: Case) -> None:
    path = case.samples("same.npz", x=np.ones((80, 6), np.float32))
    refused(case, lambda: case.compress(data=path, test=None), "80 rows", "the same")


def test_test_samples_without_labels_for_a_metric_that_needs_them(case: Case) -> None:
    path = case.samples("plain.npz", x=rows(2, 60)["x"])
    refused(case, lambda: case.compress(test=path), "labels")


def test_test_without_data(case: Case) -> None:
    refused(case, lambda: case.compress(data=None), "--data")


# Options


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--metric", "top11"], ["'top11'", "top1"]),
        (["--metric", "nowhere:score"], ["nowhere"]),
        (["--target", "cortex-a27"], ["'cortex-a27'", "cortex-a72"]),
        (["--target", "nowhere.toml"], ["nowhere.toml"]),
        (["--objective", "latincy"], ["'latincy'", "'latency'"]),
        (["--budgit", "3"], ["--budgit", "'--budget'"]),
        (["--budget", "101"], ["--budget"]),
        (["--budget", "nan"], ["budget"]),
        (["--shape", "x=0"], ["NAME=1,3,224,224"]),
        (["--shape", "q=1,6"], ["'q'", "Known: x"]),
        (["--shape", "x=1,9"], ["'x'"]),
        (["--leave", "(oops"], ["(oops", "regular expression"]),
        (["--output", "z"], ["'z'", "Known: y"]),
        (["--recipe", "nowhere.toml"], ["nowhere.toml"]),
        (["--timings", "model.onnx"], ["model.onnx", "timings"]),
        (["--seed", "-1"], ["--seed"]),
        (["--data"], ["--data"]),
        (["extra"], ["extra"]),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_options(case: Case, words: list[str], wanted: list[str]) -> None:
    refused(case, lambda: case.compress(*words), *wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[[pass]\n", ["TOML"]),
        ('[[pass]]\nkind = "shrinc"\n', ["'shrinc'", "'shrink'"]),
        ('[[pass]]\nkind = "store"\nbitts = 8\n', ["'bitts'", "'bits'"]),
        ('[[pass]]\nkind = "store"\nbits = 7\n', ["bits"]),
        (
            '[[pass]]\nkind = "store"\nbits = [["hh", 4]]\n',
            ["Pass 1", "'bits'", "no site 'hh'", "'h'", "inspect"],
        ),
        ('[[pass]]\nkind = "low_rank"\nranks = [["z", 1]]\n', ["(low_rank)", "'ranks'", "'z'"]),
        (
            '[[pass]]\nkind = "store"\nleave = ["y"]\n[[pass]]\nkind = "quantize"\nleave = ["x"]\n',
            ["Pass 2", "'x'"],
        ),
        (
            '[[pass]]\nkind = "quantize"\nsites = ["^gemm"]\n',
            ["'sites'", "'^gemm' matches no site", "'y'", "'h'"],
        ),
        ('[[pass]]\nkind = "store"\nsites = ["h", "^a$"]\n', ["'^a$' matches no site"]),
    ],
)
def test_recipes(case: Case, text: str, wanted: list[str]) -> None:
    (case.folder / "recipe.toml").write_text(text)
    refused(case, lambda: case.compress("--recipe", "recipe.toml"), *wanted)


def test_names_are_checked_even_where_no_data_are_there_to_use_them(case: Case) -> None:
    refused(case, lambda: case.compress("--metric", "top11", data=None, test=None), "'top11'")


def test_metric_function_that_raises(case: Case) -> None:
    (case.folder / "mymetric.py").write_text("def score(outputs, labels):\n    raise ValueError('oh no')\n")
    refused(
        case, lambda: case.compress("--metric", "mymetric:score"), "mymetric:score", "ValueError", "oh no"
    )


def test_score_of_zero_is_refused_with_the_metric_to_use(case: Case) -> None:
    labels = rows(2, 60)["y"]
    path = case.samples("wrong.npz", x=rows(2, 60)["x"], y=(labels + 1) % 4)
    refused(case, lambda: case.compress(test=path), "agreement")


# The output folder


def never(*_: object, **__: object) -> Any:
    raise AssertionError("the long work began")


def test_folders_of_others_are_refused_before_the_work(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "make_host", never)
    case.out.mkdir()
    (case.out / "thesis.txt").write_text("years of work")
    refused(case, case.compress, "was not written by edgepress", "--force")
    refused(case, lambda: case.compress(out=case.folder), "out")
    refused(case, lambda: case.compress(out=case.model), "model.onnx")


def test_read_only_folder(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "make_host", never)

    def denied(target: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.parent))

    monkeypatch.setattr(outdir, "claim", denied)
    refused(case, case.compress, "Cannot write", str(case.out), "Permission denied")


def disk_full(_: object) -> str:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "dump_report", disk_full)
    refused(case, case.compress, "disk is full", str(case.out))


def test_a_failed_run_leaves_the_last_result_as_it_was(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert case.compress().code == 0

    monkeypatch.setattr(build, "dump_report", disk_full)
    refused(case, case.compress, "disk is full")
    assert manifest.verify(case.out) == []
