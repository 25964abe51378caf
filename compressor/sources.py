"""What `--data` may be: which columns a file, a folder, a function or arrays in memory hold, by name."""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepress.compressor.columns import ArrayColumn, Column, npy_columns, npz_columns, spool
from edgepress.compressor.errors import DataError
from edgepress.compressor.fitting import Slot
from edgepress.compressor.images import (
    ImageColumn,
    find_preprocess,
    list_images,
    read_preprocess,
    require_pillow,
)
from edgepress.compressor.protocols import Array
from edgepress.compressor.userfunction import is_function_name, load_function

Source = str | Path | Mapping[str, Array] | npt.NDArray[Any] | Callable[[], Any]

_FUNCTION_HINT = (
    "It should give an array, a dict of arrays by input name, (arrays, labels), or yield such blocks of rows."
)


def find_columns(
    source: Source, wanted: tuple[Slot, ...], preprocess: Path | None
) -> tuple[str, tuple[Path, ...], dict[str, Column]]:
    """Look into a source.

    Args:
        source: see `open_data`.
        wanted: the model's inputs.
        preprocess: TOML file for images; None: the one beside them.

    Returns:
        The source's name for messages, the files it was read from, and its arrays by name.

    Raises:
        DataError: where it is missing, damaged, of no known kind, or the user's function raised.
    """
    if isinstance(source, np.ndarray):
        return "the array", (), _named(source, wanted, "the array")
    if isinstance(source, Mapping):
        return "the arrays", (), {key: ArrayColumn(key, np.asarray(value)) for key, value in source.items()}
    if isinstance(source, str) and is_function_name(source):
        return source, (), _spooled(load_function(source, DataError), source, wanted)
    if not isinstance(source, str | Path):
        name = getattr(source, "__name__", type(source).__name__)
        return name, (), _spooled(source, name, wanted)
    path = Path(source)
    if path.is_dir():
        return str(path), *_read_folder(path, wanted, preprocess)
    if not path.exists():
        raise DataError(f"{path} does not exist", "Give an npz file, a folder of images or module:function.")
    if zipfile.is_zipfile(path):
        return str(path), (path,), npz_columns(path)
    with path.open("rb") as stream:
        magic = stream.read(len(np.lib.format.MAGIC_PREFIX))
    if magic == np.lib.format.MAGIC_PREFIX:
        return str(path), (path,), npy_columns(path)
    raise DataError(
        f"{path} is neither an npz file nor an npy file, or is cut short",
        "Data is an npz file (numpy.savez), a folder of images, or module:function.",
    )


def _named(array: Array, wanted: tuple[Slot, ...], where: str) -> dict[str, Column]:
    if len(wanted) > 1:
        names = ", ".join(slot.name for slot in wanted)
        raise DataError(
            f"{where} is one array, the model has the inputs {names}", "Give a dict of arrays by name."
        )
    return {wanted[0].name: ArrayColumn(wanted[0].name, array)}


def _read_folder(
    folder: Path, wanted: tuple[Slot, ...], preprocess: Path | None
) -> tuple[tuple[Path, ...], dict[str, Column]]:
    if len(wanted) > 1:
        raise DataError(f"{folder}: the model has {len(wanted)} inputs, images feed one", "Use an npz file.")
    require_pillow()
    files, labels, _ = list_images(folder)
    settings = preprocess or find_preprocess(folder)
    column = ImageColumn(str(folder), files, read_preprocess(settings))
    found: dict[str, Column] = {wanted[0].name: column}
    if labels is not None:
        found["y" if wanted[0].name != "y" else "labels"] = ArrayColumn("class folders", labels)
    return (*files, settings), found


def _spooled(function: Callable[[], Any], name: str, wanted: tuple[Slot, ...]) -> dict[str, Column]:
    """Run the user's function once; its blocks go to disk, so that all later passes see the same rows."""
    try:
        found = spool(_blocks(function(), name, wanted))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{name} raised {type(error).__name__}: {error}",
            "Mend the function; --debug shows where it failed.",
        ) from error
    if not found:
        raise DataError(f"{name} gave no data", _FUNCTION_HINT)
    return found


def _blocks(result: Any, name: str, wanted: tuple[Slot, ...]) -> Iterator[dict[str, Array]]:
    if isinstance(result, Mapping | np.ndarray) or (isinstance(result, tuple) and len(result) == 2):
        result = [result]
    if not isinstance(result, Iterable) or isinstance(result, str | bytes):
        raise DataError(f"{name} gave {type(result).__name__}", _FUNCTION_HINT)
    for block in result:
        feeds, labels = block if isinstance(block, tuple) and len(block) == 2 else (block, None)
        if isinstance(feeds, Mapping):
            arrays = {str(key): np.asarray(value) for key, value in feeds.items()}
        elif isinstance(feeds, np.ndarray):
            _named(feeds, wanted, f"what {name} gives")
            arrays = {wanted[0].name: feeds}
        else:
            raise DataError(f"{name} gave a block of type {type(feeds).__name__}", _FUNCTION_HINT)
        if labels is not None:
            arrays["labels"] = np.asarray(labels)
        for key, array in arrays.items():
            if not array.ndim or array.dtype.hasobject:
                raise DataError(
                    f"{name} gave {key!r} as {array.dtype} of shape {array.shape}", _FUNCTION_HINT
                )
        yield arrays
