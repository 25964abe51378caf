"""Where rows come from: arrays in memory, npy files, npz members (stored or deflated), and spooled blocks.

A column is one array whose first axis is the rows. `open` gives a function that takes ascending row numbers
and returns those rows; it only ever moves forward, so a deflated member costs one pass and a buffer of a
batch, however many rows there are.
"""

import math
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgepress.compressor.errors import DataError
from edgepress.compressor.protocols import Array

IndexArray = npt.NDArray[np.int64]
Take = Callable[[IndexArray], Array]

_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,  # numpy's readers of headers written by Python 2
    RecursionError,
)
_SPOOL_BYTES = 1 << 22
_MOST_TAKEN = 4 << 30
"""Bytes of rows in memory at once."""


class Column(Protocol):
    """One array on disk or in memory, read forward in blocks of rows."""

    @property
    def name(self) -> str:
        """How the user knows it."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type as stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, ...]."""

    def open(self) -> AbstractContextManager[Take]:
        """A reader of ascending row numbers; raises `DataError` where the bytes are damaged."""


@dataclass(frozen=True, eq=False)
class ArrayColumn:
    """Rows of an array in memory, or of a mapped file.

    Attributes:
        name: how the user knows it.
        values: [rows, ...].
    """

    name: str
    values: Array

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, ...]."""
        return tuple(self.values.shape)

    @contextmanager
    def open(self) -> Iterator[Take]:
        """A reader of any row numbers."""
        yield lambda rows: np.asarray(self.values[rows])


@dataclass(frozen=True)
class FileColumn:
    """Rows of a C-ordered array in an npy file or in a member of an npz file.

    Attributes:
        name: how the user knows it.
        path: the file.
        member: the deflated member to read through zipfile; None where the bytes lie in the file as they are.
        offset: where the first row begins, in bytes from the start of the file or of the member.
        dtype: element type.
        shape: [rows, ...].
    """

    name: str
    path: Path
    member: str | None
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @contextmanager
    def open(self) -> Iterator[Take]:
        """A reader that moves forward through the file; raises `DataError` on damaged bytes."""
        with _readable(self.path, self.name):
            archive = zipfile.ZipFile(self.path) if self.member is not None else None
        try:
            with _readable(self.path, self.name):
                stream: IO[bytes] = (
                    archive.open(self.member)
                    if archive is not None and self.member is not None
                    else self.path.open("rb")
                )
            with stream:
                yield lambda rows: self._take(stream, rows)
        finally:
            if archive is not None:
                archive.close()

    def _take(self, stream: IO[bytes], rows: IndexArray) -> Array:
        out = room(len(rows), self.shape[1:], self.dtype, f"array {self.name!r} of {self.path}")
        raw = out.reshape(-1).view(np.uint8)
        row_bytes = out.nbytes // max(len(rows), 1)
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        with _readable(self.path, self.name):
            for first, last in zip(starts, [*starts[1:], len(rows)], strict=True):
                stream.seek(self.offset + int(rows[first]) * row_bytes)
                _fill(stream, raw[first * row_bytes : last * row_bytes])
        return out


def room(rows: int, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> Array:
    """An array for some rows, not filled yet.

    Args:
        rows: how many.
        shape: of one.
        dtype: of its numbers.
        where: they come from, for the message.

    Raises:
        DataError: they would take more than rows of a model may.
    """
    needed = rows * math.prod(shape) * dtype.itemsize
    if needed > _MOST_TAKEN:
        raise DataError(
            f"{rows} rows of {where} unpack to {needed} bytes",
            "Rows that large are not what a model takes: check the file.",
        )
    return np.empty((rows, *shape), dtype)


def _fill(stream: IO[bytes], target: npt.NDArray[np.uint8]) -> None:
    done = 0
    while done < len(target):
        block = stream.read(min(len(target) - done, _SPOOL_BYTES))
        if not block:
            raise EOFError("the file ends before its last row")
        target[done : done + len(block)] = np.frombuffer(block, np.uint8)
        done += len(block)


@contextmanager
def _readable(path: Path, name: str = "") -> Iterator[None]:
    """Turn whatever reading a damaged file raises into a `DataError` that names it."""
    try:
        yield
    except DataError:
        raise
    except _READ_ERRORS as error:
        what = f"array {name!r} of {path}" if name else str(path)
        raise DataError(
            f"{what} cannot be read: {error}",
            "The file is damaged or cut short; write it again with numpy.savez.",
        ) from error


def _read_header(
    stream: IO[bytes], name: str, path: Path, stored_bytes: int
) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether Fortran-ordered, and dtype of the npy header at the stream's position.

    The declared size must be the size that is there: nothing is allocated on the word of a header.
    """
    where = f"array {name!r} of {path}"
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DataError(
            f"{where} is of npy version {version[0]}.{version[1]}",
            "Save plain arrays of numbers; structured arrays are not read.",
        )
    read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream)
    except MemoryError as error:  # of Python's parser, where brackets are nested deeply
        raise ValueError("its header is no table of shape and type") from error
    if not dtype.itemsize or any(length < 0 for length in shape):
        raise ValueError(f"its header says {dtype} of shape {shape}")
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects", "Save arrays of numbers; pickled objects are never loaded."
        )
    if not shape:
        raise DataError(f"{where} is a single number", "The first axis must be the rows.")
    size = dtype.itemsize
    for length in shape:
        size *= int(length)
    held = stored_bytes - stream.tell()
    if size != held:
        raise DataError(
            f"{where} declares {size} bytes ({dtype}, shape {shape}) and holds {held}",
            "The file is damaged; write it again with numpy.savez.",
        )
    return tuple(int(length) for length in shape), bool(fortran), dtype


def npy_columns(path: Path) -> dict[str, Column]:
    """The one array of an npy file.

    Args:
        path: the file.

    Returns:
        {file stem: column}.

    Raises:
        DataError: where the header is damaged, declares another size, or holds objects.
    """
    name = path.stem
    with _readable(path, name), path.open("rb") as stream:
        shape, fortran, dtype = _read_header(stream, name, path, path.stat().st_size)
        offset = stream.tell()
    if fortran and len(shape) > 1 and 0 not in shape:
        mapped = np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order="F")
        return {name: ArrayColumn(name, mapped)}
    return {name: FileColumn(name, path, None, offset, dtype, shape)}


def npz_columns(path: Path) -> dict[str, Column]:
    """The arrays of an npz file, none of them read yet.

    Args:
        path: the file.

    Returns:
        Name → column; members that are not arrays are passed over.

    Raises:
        DataError: where the archive or a header is damaged, encrypted, of another size, or holds objects.
    """
    columns: dict[str, Column] = {}
    with _readable(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                name = info.filename.removesuffix(".npy")
                with _readable(path, name):
                    columns[name] = _member_column(archive, info, name, path)
    if not columns:
        raise DataError(f"{path} holds no arrays", "Write it with numpy.savez(path, x=..., y=...).")
    return columns


def _member_column(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, path: Path) -> Column:
    with archive.open(info) as stream:
        shape, fortran, dtype = _read_header(stream, name, path, info.file_size)
        header_bytes = stream.tell()
        if fortran and len(shape) > 1 and 0 not in shape:
            # Columns lie together, so a row is all over the member: only a mapped copy can be read by rows.
            free = shutil.disk_usage(tempfile.gettempdir()).free
            if info.file_size > free:
                raise DataError(
                    f"array {name!r} of {path} unpacks to {info.file_size} bytes; {free} are free for temporary files",
                    "Save it by rows (numpy.ascontiguousarray), or let TMPDIR name another folder.",
                )
            return ArrayColumn(name, _spool_raw(stream, dtype, shape))
    if info.compress_type != zipfile.ZIP_STORED:
        return FileColumn(name, path, info.filename, header_bytes, dtype, shape)
    with path.open("rb") as raw:
        raw.seek(
            info.header_offset + 26
        )  # lengths of name and extra field in the local header, which may differ
        lengths = raw.read(4)
    local = 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    return FileColumn(name, path, None, info.header_offset + local + header_bytes, dtype, shape)


def _spool_raw(stream: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    with tempfile.TemporaryFile() as spool:
        while block := stream.read(_SPOOL_BYTES):
            spool.write(block)
        spool.flush()
        return np.memmap(spool, dtype, mode="r", shape=shape, order="F")


def spool(parts: Iterable[dict[str, Array]]) -> dict[str, Column]:
    """Write a stream of blocks to unnamed temporary files, to be read again by rows in little memory.

    Args:
        parts: blocks {name: [rows, ...]}, all with the names, row shapes and dtypes of the first.

    Returns:
        Name → column over all rows; empty where there was no block. The disk space is freed with the column.

    Raises:
        DataError: where a block differs from the first.
    """
    kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    files: dict[str, IO[bytes]] = {}
    rows: dict[str, int] = {}
    try:
        for number, part in enumerate(parts):
            found = {name: (block.dtype, tuple(block.shape[1:])) for name, block in part.items()}
            if number == 0:
                kinds = found
                files = {name: tempfile.TemporaryFile() for name in kinds}  # noqa: SIM115 closed below
                rows = dict.fromkeys(kinds, 0)
            if found != kinds:
                raise DataError(
                    f"block {number} has {_kinds_text(found)}, the first has {_kinds_text(kinds)}"
                )
            for name, block in part.items():
                files[name].write(np.ascontiguousarray(block).data)
                rows[name] += len(block)
        return {name: ArrayColumn(name, _mapped(files[name], kinds[name], rows[name])) for name in kinds}
    finally:
        for file in files.values():
            file.close()


def _mapped(file: IO[bytes], kind: tuple[np.dtype[Any], tuple[int, ...]], rows: int) -> Array:
    dtype, row_shape = kind
    file.flush()
    if rows == 0 or 0 in row_shape:
        return np.empty((rows, *row_shape), dtype)
    return np.memmap(file, dtype, mode="r", shape=(rows, *row_shape))


def _kinds_text(kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} [rows, {', '.join(map(str, s))}]" for name, (dtype, s) in kinds.items())
