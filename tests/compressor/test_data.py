import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepress.compressor.data import Dataset, describe, open_data, split, without_overlap
from edgepress.compressor.errors import DataError
from edgepress.compressor.model import InputSpec
from edgepress.compressor.protocols import Array
from edgepress.compressor.scoring import cut

FLOAT = np.dtype(np.float32)
X = (InputSpec("x", FLOAT, ("N", 3)),)


def rows(count: int, start: int = 0) -> Array:
    return np.arange(start * 3, (start + count) * 3, dtype=np.float32).reshape(count, 3)


def npz(path: Path, compressed: bool = True, **arrays: Any) -> Path:
    file = path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file


def read(data: Dataset, size: int = 2, **kwargs: Any) -> tuple[Array, list[Any]]:
    batches = list(data.batches(size, **kwargs))
    return np.concatenate([b.feeds["x"] for b in batches]), [b.labels for b in batches]


@pytest.mark.parametrize("compressed", [True, False])
def test_npz_rows_and_labels_come_in_order(tmp_path: Path, compressed: bool) -> None:
    data = open_data(npz(tmp_path, compressed, x=rows(5), y=np.arange(5, dtype=np.uint8)), X)
    values, labels = read(data)
    np.testing.assert_array_equal(values, rows(5))
    assert [list(part) for part in labels] == [[0, 1], [2, 3], [4]]
    assert data.labels is not None
    assert data.labels.dtype == np.int64


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 30),
    size=st.integers(1, 7),
    compressed=st.booleans(),
    fortran=st.booleans(),
    dtype=st.sampled_from(["<f4", ">f4", "<f8", "u1", "<i8", "?"]),
    draw=st.data(),
)
def test_any_rows_are_what_numpy_reads(
    tmp_path: Path, count: int, size: int, compressed: bool, fortran: bool, dtype: str, draw: st.DataObject
) -> None:
    whole = (np.random.default_rng(count).random((count, 3)) * 9).astype(dtype)
    stored = np.asfortranarray(whole) if fortran else whole
    data = open_data(npz(tmp_path, compressed, x=stored, y=np.arange(count)), X)
    outer = draw.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    inner = draw.draw(st.lists(st.integers(0, len(outer) - 1), unique=True))
    chosen = np.sort(outer)[np.sort(np.array(inner, int))]
    batches = list(data.subset(outer).batches(size, inner))
    got = [batch.feeds["x"] for batch in batches]
    np.testing.assert_array_equal(
        np.concatenate([*got, np.empty((0, 3), FLOAT)]), whole[chosen].astype(FLOAT)
    )
    assert [int(v) for batch in batches if batch.labels is not None for v in batch.labels] == list(chosen)
    assert [int(v) for batch in batches for v in batch.rows] == sorted(inner)


def peak_of_a_pass(file: Path, spec: InputSpec) -> int:
    tracemalloc.start()
    data = open_data(file, [spec])
    for _ in data.batches(16):
        pass
    data.row_hashes()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("compressed", [True, False])
def test_memory_does_not_grow_with_rows(tmp_path: Path, compressed: bool) -> None:
    spec = InputSpec("x", FLOAT, (None, 4096))
    peaks = []
    for times in (1, 1, 8):  # the first only warms up
        array = np.tile(np.arange(4096, dtype=np.uint8), (500 * times, 1))
        peaks.append(
            peak_of_a_pass(npz(tmp_path, compressed, x=array, y=np.zeros(len(array), np.uint8)), spec)
        )
    assert peaks[2] < peaks[1] * 1.1


def test_targets_are_streamed_and_classes_held(tmp_path: Path) -> None:
    targets = rows(5) + 0.5
    data = open_data(npz(tmp_path, x=rows(5), labels=targets), X)
    assert data.labels is None
    assert data.label_shape == (3,)
    np.testing.assert_array_equal(np.concatenate(read(data)[1]), targets)
    column = open_data({"x": rows(5), "y": np.arange(5)[:, np.newaxis]}, X)
    assert column.label_shape == ()
    np.testing.assert_array_equal(np.concatenate(read(column)[1]), np.arange(5))
    assert read(column, with_labels=False)[1] == [None] * 3


def test_several_inputs_go_by_name(tmp_path: Path) -> None:
    specs = (InputSpec("ids", np.dtype(np.int64), ("N", 2)), InputSpec("y", FLOAT, ("N",)))
    file = npz(tmp_path, ids=np.ones((4, 2), np.int32), y=np.ones(4), labels=np.arange(4))
    batch = next(open_data(file, specs).batches(4))
    assert batch.feeds["ids"].dtype == np.int64
    assert set(batch.feeds) == {"ids", "y"}
    assert batch.labels is not None
    np.testing.assert_array_equal(batch.labels, np.arange(4))
    with pytest.raises(DataError, match=r"no array for input 'ids'") as caught:
        open_data({"idz": np.ones((4, 2), np.int32), "y": np.ones(4)}, specs)
    assert "'idz'" in caught.value.hint


def test_one_input_takes_the_one_array_that_is_no_label(tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        read(open_data(npz(tmp_path, pictures=rows(4), y=np.arange(4)), X))[0], rows(4)
    )
    np.save(tmp_path / "plain.npy", rows(4))
    np.testing.assert_array_equal(read(open_data(str(tmp_path / "plain.npy"), X))[0], rows(4))
    np.testing.assert_array_equal(read(open_data(rows(4), X, labels=np.arange(4)))[0], rows(4))
    with pytest.raises(DataError, match="holds a, b: no array for input 'x'"):
        open_data(npz(tmp_path, a=rows(4), b=rows(4)), X)


def test_a_fixed_batch_is_filled_and_labels_are_not() -> None:
    specs = (InputSpec("x", FLOAT, (4, 3)),)
    batches = list(open_data({"x": rows(6), "y": np.arange(6)}, specs).batches(100))
    assert [b.feeds["x"].shape for b in batches] == [(4, 3), (4, 3)]
    np.testing.assert_array_equal(batches[1].feeds["x"], rows(6)[[4, 5, 5, 5]])
    assert [list(b.rows) for b in batches] == [[0, 1, 2, 3], [4, 5]]
    assert [None if b.labels is None else len(b.labels) for b in batches] == [4, 2]


def test_inputs_without_a_common_axis_of_rows_are_refused() -> None:
    for specs, text in (
        ([], "no inputs"),
        ([InputSpec("x", FLOAT, ())], "single number"),
        ([InputSpec("x", FLOAT, (1, 3)), InputSpec("h", FLOAT, (2, 3))], "'x' and 'h'"),
    ):
        with pytest.raises(DataError, match=text):
            open_data({"x": rows(4), "h": rows(4)}, specs)


def test_single_runs_may_be_stacked_where_inputs_share_no_axis_of_rows() -> None:
    specs = (
        InputSpec("x", FLOAT, (None, 3)),
        InputSpec("h", FLOAT, (2, None, 4)),
        InputSpec("rate", np.dtype(np.int64), ()),
    )
    arrays = {
        "x": np.arange(15, dtype=np.float32).reshape(5, 1, 3),
        "h": np.zeros((5, 2, 1, 4), np.float32),
        "rate": np.arange(5),
        "y": np.arange(5),
    }
    data = open_data(arrays, specs)
    batches = list(data.batches(100))
    assert [len(b.rows) for b in batches] == [1] * 5
    assert [b.feeds["x"].shape + b.feeds["h"].shape for b in batches] == [(1, 3, 2, 1, 4)] * 5
    assert [int(b.feeds["rate"]) for b in batches] == list(range(5))
    assert all(isinstance(b.feeds["rate"], np.ndarray) for b in batches)
    assert batches[2].given("h").shape == (1, 2, 1, 4)
    assert [int(b.labels[0]) for b in batches if b.labels is not None] == list(range(5))
    assert len(set(data.row_hashes())) == 5
    outputs = {"y": np.ones((1, 3), np.float32), "n": np.array(2, np.float32)}
    assert {name: value.shape for name, value in cut(outputs, batches[0]).items()} == {
        "y": (1, 1, 3),
        "n": (1,),
    }


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"x": rows(4), "y": np.arange(3)}, r"'x' has 4 rows, labels 'y' has 3", "first axis"),
    ({"x": rows(0)}, "empty", "samples"),
    ({"x": np.zeros((4, 2), FLOAT)}, r"shape \[4, 2\], input 'x' wants \[rows, 3\]", "first axis"),
    ({"x": np.zeros(3, FLOAT)}, r"wants \[rows, 3\]", "axis of rows is missing"),
    ({"x": np.zeros((4, 1, 3), FLOAT)}, "wants", "reshape(-1, 3)"),
    ({"x": np.zeros((4, 3), complex)}, "complex128, input 'x' wants float32", "astype"),
    ({"x": np.array([["a", "b", "c"]])}, "wants float32", "astype"),
    ({"x": np.float32(1)}, "single number", "rows"),
    ({"x": rows(2), "y": np.array(["cat", "dog"])}, "labels 'y' are of type", "class numbers"),
    ({"x": rows(2), "y": np.arange(2), "labels": np.arange(2)}, "both", "one"),
    ({"y": np.arange(2)}, "only labels", "'x'"),
]


@pytest.mark.parametrize(("arrays", "message", "hint"), CASES)
def test_what_does_not_fit_is_named(tmp_path: Path, arrays: dict[str, Any], message: str, hint: str) -> None:
    for source in (arrays, npz(tmp_path, **arrays)):
        with pytest.raises(DataError, match=message) as caught:
            open_data(source, X)
        assert hint in caught.value.hint


def test_channels_last_samples_get_the_transposition() -> None:
    with pytest.raises(DataError) as caught:
        open_data(np.zeros((2, 8, 9, 3), FLOAT), [InputSpec("x", FLOAT, (None, 3, 8, 9))])
    assert ".transpose(0, 3, 1, 2)" in caught.value.hint


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    values = rows(9).astype(np.float64)
    values[6, 1] = bad
    data = open_data(npz(tmp_path, x=values), X).subset([1, 6, 8])
    with pytest.raises(DataError, match="array 'x', row 6 "):
        list(data.batches(2))
    labels = open_data({"x": rows(2), "y": np.array([0.5, bad if bad < 1e39 else np.inf])}, X)
    with pytest.raises(DataError, match="array 'y', row 1 "):
        list(labels.batches(2))


def test_integers_must_fit_and_floats_are_no_integers() -> None:
    specs = (InputSpec("x", np.dtype(np.uint8), (None, 3)),)
    values = np.full((4, 3), 255, np.int64)
    assert next(open_data(values, specs).batches(4)).feeds["x"].dtype == np.uint8
    values[2, 2] = 256
    with pytest.raises(DataError, match="row 2: 256 does not fit uint8"):
        list(open_data(values, specs).batches(3))
    with pytest.raises(DataError, match="float32, input 'x' wants uint8"):
        open_data(rows(2), specs)


def rewritten(file: Path, change: str) -> Path:
    """The same archive, damaged."""
    with zipfile.ZipFile(file) as archive:
        member = archive.read("x.npy")
        kind = archive.getinfo("x.npy").compress_type
    if change == "more rows":
        member = member.replace(b"(9, 3)", b"(8, 3)")
    if change == "cut":
        member = member[:-8]
    if change == "magic":
        member = b"?" + member[1:]
    if change == "header":
        member = member.replace(b"'descr'", b"'wrong'")
    target = file.with_name(f"{change}.npz")
    with zipfile.ZipFile(target, "w", kind) as archive:
        archive.writestr("x.npy", member)
    return target


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("change", ["more rows", "cut", "magic", "header"])
def test_damaged_arrays_are_named(tmp_path: Path, compressed: bool, change: str) -> None:
    file = rewritten(npz(tmp_path, compressed, x=rows(9)), change)
    with pytest.raises(DataError, match=r"array 'x' of .*\.npz"):
        open_data(file, X)


def test_a_flipped_byte_in_a_deflated_member_is_found(tmp_path: Path) -> None:
    file = npz(tmp_path, x=np.random.default_rng(0).random((400, 3), FLOAT))
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    file.write_bytes(raw)
    with pytest.raises(DataError, match="cannot be read"):
        list(open_data(file, X).batches(50))


def test_a_file_cut_short_under_our_hands_is_found(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(9))
    data = open_data(tmp_path / "x.npy", X)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-40])
    with pytest.raises(DataError, match="ends before its last row"):
        list(data.batches(4))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Python objects"):
        open_data(npz(tmp_path, x=np.array([{"a": 1}, None], object)), X)


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    with zipfile.ZipFile(tmp_path / "empty.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    for name, text in (("text.npz", "neither"), ("empty.npz", "no arrays"), ("absent.npz", "does not exist")):
        with pytest.raises(DataError, match=text):
            open_data(tmp_path / name, X)
    with pytest.raises(DataError, match="one array, the model has the inputs x, z"):
        open_data(rows(2), [*X, InputSpec("z", FLOAT, (None,))])


def test_split_parts_every_row_once_and_repeats_itself() -> None:
    data = open_data({"x": rows(11), "y": np.arange(11)}, X)
    first, second = split(data, 0.5, seed=3)
    assert (first.rows, second.rows) == (6, 5)
    assert first.labels is not None
    assert second.labels is not None
    assert sorted([*first.labels, *second.labels]) == list(range(11))
    again = split(data, 0.5, seed=3)[0].labels
    other = split(data, 0.5, seed=4)[0].labels
    np.testing.assert_array_equal(first.labels, again)
    assert other is not None
    assert list(first.labels) != list(other)
    assert [part.rows for part in split(data, 0.001, seed=0)] == [1, 10]
    with pytest.raises(DataError, match="1 row"):
        split(open_data(rows(1), X), 0.5, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1), st.lists(st.integers(0, 60), min_size=1))
def test_rows_of_the_test_leave_the_data(data_rows: list[int], test_rows: list[int]) -> None:
    data = open_data(np.repeat(np.array(data_rows, np.uint8), 3).reshape(-1, 3), X)
    test = open_data(np.repeat(np.array(test_rows, np.float64), 3).reshape(-1, 3), X)
    shared = sum(row in data_rows for row in test_rows)
    left = [row for row in data_rows if row not in test_rows]
    if shared > 0.1 * len(test_rows) or not left:
        with pytest.raises(DataError, match=r"are also in|is also in"):
            without_overlap(data, test)
        return
    kept, dropped = without_overlap(data, test)
    assert dropped == len(data_rows) - len(left)
    assert list(read(kept, 50)[0][:, 0]) == left


def test_one_shared_row_in_ten_is_dropped_and_two_are_refused() -> None:
    data = open_data(rows(6), X)
    kept, dropped = without_overlap(data, open_data(rows(10, start=5), X))
    assert (kept.rows, dropped) == (5, 1)
    np.testing.assert_array_equal(read(kept)[0], rows(5))
    with pytest.raises(DataError, match="2 of the 10 rows of the array are also in the array") as caught:
        without_overlap(data, open_data(rows(10, start=4), X))
    assert "--test" in caught.value.hint


def test_describe_tells_files_and_rows_apart(tmp_path: Path) -> None:
    file = npz(tmp_path, x=rows(6).astype(np.float64), y=np.arange(6))
    data = open_data(file, X)
    told = describe(data)
    assert told["name"] == "data.npz"
    assert told["rows"] == 6
    assert told["inputs"] == [{"name": "x", "dtype": "float32", "stored": "float64", "shape": [3]}]
    assert told["labels"] == {"dtype": "int64", "shape": []}
    assert describe(data.subset([0, 1]))["sha256"] == told["sha256"]
    assert describe(data.subset([0, 1]))["rows_sha256"] != told["rows_sha256"]
    arrays = [describe(open_data(rows(6, start), X))["sha256"] for start in (0, 0, 1)]
    assert arrays[0] == arrays[1] != arrays[2]


def test_rows_that_are_not_there_are_a_bug_and_none_are_an_error() -> None:
    data = open_data(rows(4), X)
    with pytest.raises(IndexError):
        list(data.batches(2, [4]))
    with pytest.raises(DataError, match="no rows"):
        data.subset([])


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows(3))
    file = tmp_path / "locked.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
    raw = bytearray(file.read_bytes())
    raw[6] |= 1  # flag of encryption, in the local header and in the directory
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(raw)
    with pytest.raises(DataError, match=r"encrypted|password"):
        open_data(file, X)
