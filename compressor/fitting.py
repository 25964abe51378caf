"""Do arrays fit a model's inputs: names, shapes, dtypes and values, each refusal with its remedy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgepress.compressor.columns import Column, IndexArray
from edgepress.compressor.errors import DataError, nearest
from edgepress.compressor.model import InputSpec
from edgepress.compressor.protocols import Array

LABEL_NAMES = ("y", "labels")


@dataclass(frozen=True)
class Slot:
    """Where rows are fed: a model's input with its dynamic dimensions unnamed.

    Attributes:
        name: the input's name.
        dtype: element type that the model takes.
        shape: lengths, None where dynamic, rows first; None for an unknown rank.
        whole: a row is all that one run is fed: states, say, whose first axis is not the rows, or single numbers.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    whole: bool = False

    @property
    def batch_size(self) -> int | None:
        """Rows that the model wants at once, or None where it takes any number."""
        return self.shape[0] if self.shape else None


WHOLE = "Stack what single runs are fed instead: one array an input, [runs, *shape of the input]."


def slots(inputs: Sequence[InputSpec]) -> tuple[Slot, ...]:
    """A model's inputs as rows are fed to them along the first axis.

    Raises:
        DataError: where there is no input.
    """
    if not inputs:
        raise DataError("the model has no inputs, so there is nothing to feed it")
    return tuple(Slot(spec.name, np.dtype(spec.dtype), _unnamed(spec.shape)) for spec in inputs)


def settled(wanted: Sequence[Slot], columns: Sequence[Column]) -> tuple[Slot, ...]:
    """The slots that arrays are for: rows along the first axis of all inputs, or single runs, stacked.

    Args:
        wanted: of the model.
        columns: one for each.

    Raises:
        DataError: where they are rows, and an input has no axes, or fixed batch sizes differ.
    """
    stacked = [
        slot.shape is None or _matches(c.shape[1:], slot.shape)
        for slot, c in zip(wanted, columns, strict=True)
    ]
    if len(wanted) > 1 and all(stacked) and any(slot.shape is not None for slot in wanted):
        runs = (slot.shape and (None, *slot.shape) for slot in wanted)
        return tuple(
            replace(slot, shape=(None,) if shape == () else shape, whole=True)
            for slot, shape in zip(wanted, runs, strict=True)
        )
    fixed: dict[int, str] = {}
    for slot in wanted:
        if slot.shape == ():
            raise DataError(
                f"input {slot.name!r} is a single number; rows are fed along the first axis", WHOLE
            )
        if slot.batch_size is not None:
            fixed.setdefault(slot.batch_size, slot.name)
    if len(fixed) > 1:
        (size, name), (other_size, other) = list(fixed.items())[:2]
        raise DataError(
            f"inputs {name!r} and {other!r} have first axes of {size} and {other_size}: no common rows", WHOLE
        )
    return tuple(wanted)


def _unnamed(shape: tuple[int | str | None, ...] | None) -> tuple[int | None, ...] | None:
    if shape is None:
        return None
    return tuple(length if isinstance(length, int) and length > 0 else None for length in shape)


def pick_columns(
    found: Mapping[str, Column], wanted: Sequence[Slot], source: str
) -> tuple[list[Column], Column | None]:
    """Which array goes to which input, and which holds the labels.

    Args:
        found: arrays by name.
        wanted: the model's inputs.
        source: where the arrays are from, for messages.

    Returns:
        One column an input, in order; the labels or None.

    Raises:
        DataError: where an input has no array, or it is unclear which.
    """
    names = {slot.name for slot in wanted}
    label_names = [key for key in LABEL_NAMES if key in found and key not in names]
    if len(label_names) > 1:
        raise DataError(f"{source} has labels under both 'y' and 'labels'", "Keep one of them.")
    others = {key: column for key, column in found.items() if key not in label_names}
    labels = found[label_names[0]] if label_names else None
    if len(wanted) == 1 and wanted[0].name not in others:
        if len(others) == 1:
            return [*others.values()], labels
        held = ", ".join(sorted(others)) or "only labels"
        raise DataError(
            f"{source} holds {held}: no array for input {wanted[0].name!r}",
            f"Save the samples under the name {wanted[0].name!r}, labels under 'y'.",
        )
    for slot in wanted:
        if slot.name not in others:
            raise DataError(f"{source} has no array for input {slot.name!r}", nearest(slot.name, others))
    return [others[slot.name] for slot in wanted], labels


def check_rows(columns: Sequence[Column], labels: Column | None, source: str) -> None:
    """Raise a `DataError` where there are no rows, or arrays have different numbers of them."""
    first = columns[0]
    for column in [*columns, *([] if labels is None else [labels])]:
        if column.shape[0] != first.shape[0]:
            what = "labels" if column is labels else "array"
            raise DataError(
                f"{source}: array {first.name!r} has {first.shape[0]} rows, "
                f"{what} {column.name!r} has {column.shape[0]}",
                "The first axis of every array must be the same rows.",
            )
        if 0 in column.shape:
            raise DataError(
                f"{source}: array {column.name!r} is empty (shape {list(column.shape)})", "Add samples."
            )
    if labels is not None and labels.dtype.kind not in "biuf":
        raise DataError(
            f"{source}: labels {labels.name!r} are of type {labels.dtype}",
            "Labels are class numbers from 0, or target arrays.",
        )


def check_column(column: Column, slot: Slot, source: str) -> None:
    """Raise a `DataError` where an array's shape or dtype cannot be fed to an input."""
    _check_dtype(column.dtype, slot, f"{source}: array {column.name!r}")
    shape, wanted = column.shape, slot.shape
    if wanted is None or _matches(shape[1:], wanted[1:]):
        return
    raise DataError(
        f"{source}: array {column.name!r} has shape {list(shape)}, "
        f"input {slot.name!r} wants {_shape_text(wanted)}",
        _shape_hint(shape, wanted, column.name),
    )


def _matches(have: Sequence[int], want: Sequence[int | None]) -> bool:
    return len(have) == len(want) and all(w in (None, h) for h, w in zip(have, want, strict=True))


def _shape_hint(shape: tuple[int, ...], wanted: tuple[int | None, ...], name: str) -> str:
    if _matches(shape, wanted[1:]):
        return f"The axis of rows is missing: {name}[numpy.newaxis] for one sample, numpy.stack for several."
    if len(shape) == len(wanted) == 4:
        for axes in ((0, 3, 1, 2), (0, 2, 3, 1)):
            if _matches([shape[axis] for axis in axes[1:]], wanted[1:]):
                return f"Channels stand elsewhere: {name}.transpose{axes}."
    if None not in wanted[1:]:
        row = [length for length in wanted[1:] if length is not None]
        if int(np.prod(shape[1:], dtype=np.int64)) == int(np.prod(row, dtype=np.int64)):
            return f"The number of values fits: {name}.reshape({', '.join(map(str, [-1, *row]))})."
    return "The first axis is the rows; the others must be the model's (or fix dynamic ones with --shape)."


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return (
        "[" + ", ".join(["rows", *("any" if length is None else str(length) for length in shape[1:])]) + "]"
    )


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is a floating type, those of ml_dtypes included."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def _check_dtype(have: np.dtype[Any], slot: Slot, where: str) -> None:
    want = slot.dtype
    fits = (
        have == want
        or (is_float(want) and (have.kind in "biu" or is_float(have)))
        or (want.kind in "iu" and have.kind in "biu")
    )
    if have.kind in "OSUcMm" or not fits:
        raise DataError(
            f"{where} is of type {have}, input {slot.name!r} wants {want}",
            f"Convert it where it is made, if that keeps its meaning: .astype(numpy.{want}).",
        )


def cast(values: Array, slot: Slot, name: str, rows: IndexArray) -> Array:
    """Rows in the input's dtype.

    Args:
        values: [n, ...] as stored, of a dtype that `check_column` let pass.
        slot: the input.
        name: the array's name, for messages.
        rows: their numbers, [n].

    Returns:
        [n, ...] in `slot.dtype`, C-contiguous.

    Raises:
        DataError: where a value is NaN, infinite, or outside the input's integer range.
    """
    if slot.dtype.kind in "iu" and values.dtype != slot.dtype and values.dtype.kind in "iu":
        limits = np.iinfo(slot.dtype)
        bad = (values < limits.min) | (values > limits.max)
        if bad.any():
            raise DataError(
                f"array {name!r}, row {_first_row(bad, rows)}: {values[bad][0]} does not fit {slot.dtype} "
                f"of input {slot.name!r}"
            )
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused below
        converted = np.ascontiguousarray(values, dtype=slot.dtype)
    check_finite(converted, name, rows)
    return converted


def check_finite(values: Array, name: str, rows: IndexArray) -> None:
    """Raise a `DataError` naming the array and first row with NaN or infinity; `rows` are [n] numbers."""
    if not is_float(values.dtype):
        return
    finite = np.isfinite(values if values.dtype.kind == "f" else values.astype(np.float32))
    if not finite.all():
        row = _first_row(~finite, rows)
        raise DataError(
            f"array {name!r}, row {row} (counted from 0) holds NaN, infinity or a number too large for "
            f"{values.dtype}",
            "Remove or repair the row.",
        )


def _first_row(bad: Array, rows: IndexArray) -> int:
    return int(rows[np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0]])
