"""Whether a model takes several rows at once, and gives them back row by row: looked at on its first samples."""

from dataclasses import dataclass

import numpy as np

from edgepress.compressor.data import Batch, Dataset
from edgepress.compressor.errors import DataError, DeviceError
from edgepress.compressor.metrics import read_output
from edgepress.compressor.protocols import Array, Feeds, Runner
from edgepress.compressor.scoring import Outputs

FIRST_ROWS, SPREAD_ROWS = 8, 5
"""The first rows, and others from all over the samples: two numbers, so that no size fits both by chance."""


@dataclass(frozen=True)
class Trial:
    """What came of the first runs.

    Attributes:
        outputs: of some rows.
        feeds: those rows.
        one: feeds of one row; of several where the model does not take one.
        alone: each row has to be run by itself.
        refused: the model does not run on several rows, though it says that it takes any number.
    """

    outputs: Outputs
    feeds: Feeds
    one: Feeds
    alone: bool = False
    refused: bool = False


def ran(run: Runner, feeds: Feeds, what: str = "model") -> dict[str, Array]:
    """Outputs on samples of the user's.

    Args:
        run: the model.
        feeds: one batch.
        what: what messages call the model.

    Raises:
        DataError: it does not run on them.
    """
    try:
        return run(feeds)
    except DeviceError as error:
        raise DataError(
            f"The {what} does not run on these samples: {error}",
            f"Compare their shape and the order of their axes with `compress inspect {what.upper()}`.",
        ) from error


def tried(run: Runner, data: Dataset, output: str | None, what: str = "model") -> Trial:
    """Run a model on some rows of the samples, and see how many it bears at a time.

    Each row has to be run by itself where a graph says that it takes any number and does not, or gives what is no
    longer row by row: detectors end in all boxes of a batch.

    Args:
        run: the model.
        data: its samples, a row at least.
        output: that is read; None: the first of numbers.
        what: what messages call the model.

    Raises:
        DataError: it runs neither on several rows nor on one, or on one number of them only.
    """
    batch = next(iter(data.batches(FIRST_ROWS)))
    if len(batch.rows) == 1 or data.batch_size is not None:
        one = next(iter(data.batches(1))).feeds
        return Trial(ran(run, batch.feeds, what), batch.feeds, one)
    one = next(iter(data.batches(1, rows=batch.rows[:1]))).feeds
    several, single = _or_error(run, batch.feeds), _or_error(run, one)
    others = _others(data)
    spread = several if others is None else _or_error(run, others.feeds)
    if isinstance(single, DeviceError):
        if isinstance(several, DeviceError):
            several = ran(run, batch.feeds, what)
        if isinstance(spread, DeviceError):
            raise DataError(
                f"The {what} runs on {len(batch.rows)} rows at once, and not on others: {spread}",
                "Export it with that number of rows in its inputs, or for any.",
            ) from spread
        return Trial(several, batch.feeds, batch.feeds)
    if isinstance(several, DeviceError) or isinstance(spread, DeviceError):
        return Trial(single, one, one, alone=True, refused=True)
    row = read_output(single, output)
    by_row = _by_row(several, len(batch.rows), row, output) and (
        others is None or _by_row(spread, len(others.rows), row, output)
    )
    return Trial(several, batch.feeds, one) if by_row else Trial(single, one, one, alone=True)


def _others(data: Dataset) -> Batch | None:
    """Some rows from all over the samples, fewer than the first batch has; None where that leaves none or one."""
    count = min(SPREAD_ROWS, data.rows - 1)
    if count < 2:
        return None
    rows = np.linspace(data.rows - 1, 0, count).astype(np.int64)
    return next(iter(data.batches(count, rows=rows)))


def _by_row(outputs: Outputs, rows: int, row: Array | None, output: str | None) -> bool:
    """Whether what is read has so many rows, each as large as the one that was run alone; or holds no numbers."""
    value = read_output(outputs, output)
    if value is None or row is None:
        return True
    return value.ndim > 0 and len(value) == rows and value[0].size == row.size


def _or_error(run: Runner, feeds: Feeds) -> dict[str, Array] | DeviceError:
    try:
        return run(feeds)
    except DeviceError as error:
        return error
