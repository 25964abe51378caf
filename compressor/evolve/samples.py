"""Training samples in memory, as they are stored, and batches of them as the net wants them.

Every feature is centred and scaled by what the training rows show; `result` folds that into the first layer, so that
the finished model takes samples as they come.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepress.compressor.data import Dataset, Source, open_data
from edgepress.compressor.errors import DataError
from edgepress.compressor.evolve.topology import Floats, Keys
from edgepress.compressor.model import InputSpec

LEAST = 0.1
"""Features that vary less than this share of the usual are scaled as if they varied so much: their rare outliers would
else be worth hundreds of deviations."""

BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows with classes.

    Attributes:
        rows: [samples, …], as stored.
        labels: [samples], from 0.
    """

    rows: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.rows.shape[1:]

    @property
    def features(self) -> int:
        """Numbers in one sample."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Scaling:
    """(x − mean) · factor, feature by feature; both are [features]."""

    mean: Floats
    factor: Floats

    @classmethod
    def of(cls, rows: npt.NDArray[Any]) -> "Scaling":
        """What makes features of training rows [samples, …] comparable."""
        flat = rows.reshape(len(rows), -1)
        total = np.zeros(flat.shape[1])
        for start in range(0, len(flat), BLOCK):
            total += flat[start : start + BLOCK].sum(axis=0, dtype=np.float64)
        mean = total / len(flat)
        square = np.zeros_like(mean)
        for start in range(0, len(flat), BLOCK):
            square += np.square(flat[start : start + BLOCK] - mean).sum(axis=0)
        deviation = np.sqrt(square / len(flat))
        usual = float(np.sqrt(np.mean(np.square(deviation)))) or 1.0
        factor = 1 / np.maximum(deviation, LEAST * usual)
        return cls(mean.astype(np.float32), factor.astype(np.float32))

    def apply(self, rows: npt.NDArray[Any], out: Floats) -> Floats:
        """Write rows [batch, …] as [features, batch]."""
        np.subtract(rows.reshape(len(rows), -1).T, self.mean[:, None], out=out)
        out *= self.factor[:, None]
        return out


def batches(order: Keys, size: int) -> Iterator[Keys]:
    """Cut numbers of rows into batches, the last one perhaps smaller."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def open_samples(
    source: Source, shape: tuple[int | None, ...] | None = None, preprocess: Path | None = None
) -> Dataset:
    """Look into a source of samples.

    Args:
        source: npz file, folder of images or `module:function`, as everywhere.
        shape: of a sample, where a model says so; None: any.
        preprocess: TOML file for images; None: the one beside them.

    Raises:
        DataError: it is missing, damaged, without classes, or of another shape.
    """
    wanted = None if shape is None else ("N", *shape)
    data = open_data(source, (InputSpec("input", np.dtype(np.float32), wanted),), preprocess)
    labels = data.labels
    if labels is None:
        raise DataError(f"{data.name} has no classes.", "Save the class of each row, from 0, under 'y'.")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(f"{data.name}: labels are no classes from 0 on.", "Number the classes 0, 1, 2, …")
    return data


def read(data: Dataset) -> Samples:
    """Read a dataset whole, in the type in which it is stored where that is small."""
    column = data.columns[0]
    small = column.dtype.kind in "bu" and column.dtype.itemsize == 1
    rows = np.empty((data.rows, *column.shape[1:]), np.uint8 if small else np.float32)
    done = 0
    for batch in data.batches(BLOCK, with_labels=False):
        values = batch.feeds["input"]
        rows[done : done + len(values)] = values
        done += len(values)
    return Samples(rows, np.asarray(data.labels, np.int64))
