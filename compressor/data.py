"""Samples: npz or npy files, folders of images, Python callables and arrays, as batches of feeds with labels.

Nothing is read whole: a `Dataset` knows where its rows are, and every pass over it moves forward in blocks.
Only labels with one number a row are held in memory.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepress.compressor.columns import ArrayColumn, Column, IndexArray, Take
from edgepress.compressor.errors import DataError
from edgepress.compressor.fitting import (
    LABEL_NAMES,
    Slot,
    cast,
    check_column,
    check_finite,
    check_rows,
    pick_columns,
    settled,
    slots,
)
from edgepress.compressor.model import InputSpec
from edgepress.compressor.protocols import Array
from edgepress.compressor.sources import Source, find_columns

__all__ = ["Batch", "Dataset", "InputSpec", "Source", "describe", "open_data", "split", "without_overlap"]


MAX_OVERLAP = 0.1
_HASH_BLOCK_BYTES = 1 << 22
_MOST_BATCH_BYTES = 2 << 30
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Batch:
    """Some rows, ready to run.

    Attributes:
        feeds: input name → [rows + padding, ...]; the padding repeats the last row where the model's batch is
            fixed.
        labels: [rows] class ids or [rows, ...] targets, without padding; None where there are none.
        rows: numbers of these rows in the dataset, ascending; [rows].
        whole: the one row is all of the feeds, and all that comes out (`fitting.Slot`).
    """

    feeds: dict[str, Array]
    labels: Array | None
    rows: IndexArray
    whole: bool = False

    def given(self, name: str) -> Array:
        """What is fed to an input, [rows, ...], without padding."""
        feed = self.feeds[name]
        return feed[np.newaxis] if self.whole else feed[: len(self.rows)]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of samples for one model, perhaps a subset of what their files hold.

    Attributes:
        inputs: what the model takes.
        columns: one column an input, in the same order.
        label_column: labels, or None.
        index: the columns' rows that belong to it, ascending; [rows].
        name: the source, for messages.
        files: what it was read from; empty for arrays and callables.
    """

    inputs: tuple[Slot, ...]
    columns: tuple[Column, ...]
    label_column: Column | None
    index: IndexArray
    name: str
    files: tuple[Path, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.index)

    @property
    def batch_size(self) -> int | None:
        """The model's fixed batch size, or None where it takes any."""
        return next((slot.batch_size for slot in self.inputs if slot.batch_size is not None), None)

    @property
    def whole(self) -> bool:
        """Whether each row is all that one run is fed."""
        return any(slot.whole for slot in self.inputs)

    @property
    def label_shape(self) -> tuple[int, ...] | None:
        """Shape of one row's label, () for one number; None without labels."""
        return None if self.label_column is None else _row_label_shape(self.label_column)

    @property
    def labels(self) -> Array | None:
        """One number a row, [rows] (int64 for class ids); None where labels are arrays or missing."""
        return None if self._all_labels is None else self._all_labels[self.index]

    @cached_property
    def _all_labels(self) -> Array | None:
        if self.label_column is None or self.label_shape != ():
            return None
        with self.label_column.open() as take:
            values = take(np.arange(self.label_column.shape[0])).reshape(-1)
        check_finite(values, self.label_column.name, np.arange(len(values)))
        return values.astype(np.int64) if values.dtype.kind in "biu" else values

    def batches(
        self, size: int, rows: npt.ArrayLike | None = None, with_labels: bool = True
    ) -> Iterator[Batch]:
        """Read rows in ascending order, one batch at a time.

        Args:
            size: rows a batch, at least 1; the model's own batch size wins where it is fixed.
            rows: numbers of the rows to read, in any order; None: all.
            with_labels: whether to read labels too.

        Yields:
            Batches of `size` rows, the last one perhaps shorter.

        Raises:
            DataError: where bytes are damaged, or a value is NaN, infinite or out of the input's range.
        """
        chosen = self._chosen(rows)
        step = 1 if self.whole else self.batch_size or max(size, 1)
        with ExitStack() as stack:
            takes = [stack.enter_context(column.open()) for column in self.columns]
            streamed = with_labels and self.label_column is not None and self.label_shape != ()
            label_take = (
                stack.enter_context(self.label_column.open()) if streamed and self.label_column else None
            )
            for start in range(0, len(chosen), step):
                part = chosen[start : start + step]
                feeds = {
                    slot.name: _padded(self._read(slot, column, take, part), self.batch_size)
                    for slot, column, take in zip(self.inputs, self.columns, takes, strict=True)
                }
                if self.whole:
                    feeds = {name: np.asarray(feed[0]) for name, feed in feeds.items()}
                yield Batch(
                    feeds, self._labels_of(part, label_take) if with_labels else None, part, self.whole
                )

    def subset(self, rows: npt.ArrayLike) -> "Dataset":
        """The dataset of some of its rows, in ascending order; raises `DataError` where there is none."""
        chosen = self._chosen(rows)
        if not len(chosen):
            raise DataError(f"no rows of {self.name} are left", "More samples are needed.")
        return replace(self, index=self.index[chosen])

    def one_at_a_time(self) -> "Dataset":
        """The same rows, each of them run by itself; unless runs are the rows, or the model wants more at once."""
        if self.whole or self.batch_size is not None:
            return self
        alone = (replace(slot, shape=slot.shape and (1, *slot.shape[1:])) for slot in self.inputs)
        return replace(self, inputs=tuple(alone))

    def row_hashes(self) -> list[bytes]:
        """One digest a row, of the row's feeds as the model gets them; equal rows have equal digests."""
        row_bytes = sum(
            slot.dtype.itemsize * int(np.prod(column.shape[1:], dtype=np.int64))
            for slot, column in zip(self.inputs, self.columns, strict=True)
        )
        digests: list[bytes] = []
        for batch in self.batches(max(1, _HASH_BLOCK_BYTES // max(row_bytes, 1)), with_labels=False):
            blocks = [np.ascontiguousarray(batch.given(slot.name)) for slot in self.inputs]
            for row in range(len(batch.rows)):
                digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
                for block in blocks:
                    digest.update(block[row].tobytes())
                digests.append(digest.digest())
        return digests

    def _chosen(self, rows: npt.ArrayLike | None) -> IndexArray:
        if rows is None:
            return np.arange(self.rows)
        chosen = np.unique(np.asarray(rows, np.int64))
        if len(chosen) and (chosen[0] < 0 or chosen[-1] >= self.rows):
            raise IndexError(f"rows {chosen[0]} … {chosen[-1]} of a dataset with {self.rows}")
        return chosen

    def _read(self, slot: Slot, column: Column, take: Take, part: IndexArray) -> Array:
        rows = self.index[part]
        return cast(take(rows), slot, column.name, rows)

    def _labels_of(self, part: IndexArray, take: Take | None) -> Array | None:
        rows = self.index[part]
        if take is None or self.label_column is None:
            return None if self._all_labels is None else self._all_labels[rows]
        labels = take(rows)
        check_finite(labels, self.label_column.name, rows)
        return labels


def open_data(
    source: Source, inputs: Sequence[InputSpec], preprocess: Path | None = None, labels: Array | None = None
) -> Dataset:
    """Find the rows of a data source and check that they fit the model.

    Args:
        source: npz or npy file, folder of images, `module:function`; or from Python a mapping of arrays
            (labels under `y` or `labels`), an array for a model with one input, or a callable.
        inputs: what the model takes.
        preprocess: TOML file for images; None: the one beside them.
        labels: [rows] or [rows, ...], instead of the source's own.

    Returns:
        The dataset; only headers have been read (a callable has been run once, its blocks spooled to disk).

    Raises:
        DataError: where the source is missing, damaged or empty, or does not fit the model's inputs; values
            are checked as they are read.
    """
    wanted = slots(inputs)
    name, files, found = find_columns(source, wanted, preprocess)
    if labels is not None:
        taken = {slot.name for slot in wanted}
        found = {key: column for key, column in found.items() if key in taken or key not in LABEL_NAMES}
        found["labels"] = ArrayColumn("labels", np.asarray(labels))
    for column in found.values():
        if not column.shape:
            raise DataError(
                f"{name}: array {column.name!r} is a single number", "The first axis is the rows."
            )
    columns, label_column = pick_columns(found, wanted, name)
    wanted = settled(wanted, columns)
    for column, slot in zip(columns, wanted, strict=True):
        check_column(column, slot, name)
    check_rows(columns, label_column, name)
    return Dataset(wanted, tuple(columns), label_column, np.arange(columns[0].shape[0]), name, files)


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Part the rows at random into two datasets that share no row number.

    Args:
        dataset: at least two rows.
        fraction: share of the rows that goes into the first, in (0, 1); each part gets at least one row.
        seed: equal seeds part equally.

    Raises:
        DataError: where there are fewer than two rows.
    """
    if dataset.rows < 2:
        raise DataError(
            f"{dataset.name} has {dataset.rows} row; two are needed to set some aside", "Add samples."
        )
    order = np.random.default_rng(seed).permutation(dataset.rows)
    count = min(max(round(fraction * dataset.rows), 1), dataset.rows - 1)
    return dataset.subset(order[:count]), dataset.subset(order[count:])


def without_overlap(data: Dataset, test: Dataset) -> tuple[Dataset, int]:
    """Drop the rows of `data` that are also in `test`, by their digests.

    Args:
        data: for calibration and search.
        test: for the verdict.

    Returns:
        `data` without those rows, and how many were dropped.

    Raises:
        DataError: where more than a tenth of the test rows are in `data`, or nothing would be left.
    """
    data_hashes, test_hashes = data.row_hashes(), test.row_hashes()
    known, unseen = set(data_hashes), set(test_hashes)
    shared = sum(digest in known for digest in test_hashes)
    if shared > MAX_OVERLAP * test.rows:
        raise DataError(
            f"{shared} of the {test.rows} rows of {test.name} are also in {data.name}",
            "A verdict needs unseen rows: take them out, or drop --test: half of --data is then set aside.",
        )
    keep = np.array([digest not in unseen for digest in data_hashes])
    if not keep.any():
        raise DataError(
            f"every row of {data.name} is also in {test.name}", "Give other samples for calibration."
        )
    return (data if keep.all() else data.subset(np.flatnonzero(keep))), int((~keep).sum())


def describe(dataset: Dataset) -> dict[str, Any]:
    """What the manifest says of a dataset: names without folders, sizes, shapes, and a sha256.

    Args:
        dataset: read once where it is not of files.

    Returns:
        JSON-ready dict; `sha256` is the file's, or over all files' relative names and contents, or for arrays
        and callables over the digests of the rows; `rows_sha256` tells which rows of them these are.
    """
    if len(dataset.files) == 1:
        digest = _file_sha256(dataset.files[0])
    else:
        total = hashlib.sha256()
        for file in dataset.files:
            total.update(f"{file.parent.name}/{file.name} {_file_sha256(file)}\n".encode())
        for row in () if dataset.files else dataset.row_hashes():
            total.update(row)
        digest = total.hexdigest()
    label = dataset.label_column
    return {
        "name": Path(dataset.name).name,
        "files": len(dataset.files),
        "sha256": digest,
        "rows": dataset.rows,
        "rows_sha256": hashlib.sha256(dataset.index.astype("<i8").tobytes()).hexdigest(),
        "inputs": [
            {
                "name": slot.name,
                "dtype": str(slot.dtype),
                "stored": str(column.dtype),
                "shape": list(column.shape[1:]),
            }
            for slot, column in zip(dataset.inputs, dataset.columns, strict=True)
        ],
        "labels": None
        if label is None
        else {"dtype": str(label.dtype), "shape": list(dataset.label_shape or ())},
    }


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _row_label_shape(column: Column) -> tuple[int, ...]:
    shape = tuple(column.shape[1:])
    return () if shape == (1,) else shape


def _padded(values: Array, size: int | None) -> Array:
    """Rows as many as the model takes at once, the last one repeated."""
    if size is None or len(values) == size:
        return values
    needed = size * (values.nbytes // max(len(values), 1))
    if needed > _MOST_BATCH_BYTES:
        raise DataError(
            f"the model takes {size} rows at once, {needed} bytes", "Export it for fewer, or for any number."
        )
    return np.concatenate([values, np.repeat(values[-1:], size - len(values), axis=0)])
