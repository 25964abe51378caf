"""How many rows a model bears at a time, found on its first samples."""

from collections.abc import Callable

import numpy as np
import pytest

from edgepress.compressor.data import Dataset, InputSpec, open_data
from edgepress.compressor.errors import DataError, DeviceError
from edgepress.compressor.protocols import Array, Feeds
from edgepress.compressor.together import tried


def data(x: Array, rows: int | None = None) -> Dataset:
    return open_data({"x": x}, [InputSpec("x", np.dtype(np.float32), (rows, *x.shape[1:]))])


def runner(compute: Callable[[Array], Array], takes: Callable[[int], bool] = lambda n: True) -> object:
    def run(feeds: Feeds) -> dict[str, Array]:
        if not takes(len(feeds["x"])):
            raise DeviceError(f"cannot be reshaped: {len(feeds['x'])} rows")
        return {"y": compute(feeds["x"])}

    return run


def boxes(x: Array) -> Array:
    """All of a batch, one for each positive number."""
    return x[x > 0]


ROWS = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
ONE_BOX = np.where(np.arange(6) == 0, 1.0, -1.0).astype(np.float32)
CHANCE = np.where(np.arange(40)[:, None] < 8, ONE_BOX, np.abs(ROWS))
"""The first eight pictures have one box each, the others six."""
UNEVEN = ONE_BOX.repeat(40).reshape(6, 40).T.copy()
UNEVEN[:8] = -1
UNEVEN[0, :6], UNEVEN[1, :2] = 1, 1
"""The first eight pictures have eight boxes in all, and any others one each; the first alone has six."""


@pytest.mark.parametrize(
    ("compute", "x", "alone"),
    [
        (lambda x: x[:, :3], ROWS, False),
        (lambda x: np.squeeze(x[:, :3]), ROWS, False),
        (lambda x: x.sum(1), ROWS, False),
        (lambda x: np.asarray(x.sum()), ROWS, True),
        (boxes, ROWS, True),
        (boxes, CHANCE, True),
        (boxes, UNEVEN, True),
        (lambda x: np.zeros((8, len(x), 3)), ROWS, True),
        (lambda x: np.zeros((len(x), int((x > 0).sum(1).max()), 4)), UNEVEN[::-1], True),
        (lambda x: x[:, :3], ROWS[:2], False),
        (boxes, CHANCE[6:10], True),
    ],
)
def test_rows_are_run_alone_where_they_do_not_come_back_row_by_row(
    compute: Callable[[Array], Array], x: Array, alone: bool
) -> None:
    trial = tried(runner(compute), data(x), None)  # type: ignore[arg-type]
    assert (trial.alone, trial.refused) == (alone, False)
    assert len(trial.feeds["x"]) == (1 if alone else min(8, len(x)))
    np.testing.assert_array_equal(trial.outputs["y"], compute(trial.feeds["x"]))


@pytest.mark.parametrize("rows", [40, 1])
def test_a_model_that_takes_one_row_only_is_given_one(rows: int) -> None:
    trial = tried(runner(lambda x: x, lambda n: n == 1), data(ROWS[:rows]), None)  # type: ignore[arg-type]
    assert (trial.alone, trial.refused) == (rows > 1, rows > 1)
    assert len(trial.one["x"]) == len(trial.feeds["x"]) == 1


def test_a_model_that_takes_several_rows_and_not_one_goes_on_with_several() -> None:
    run = runner(lambda x: x, lambda n: n > 1)
    trial = tried(run, data(ROWS), None)  # type: ignore[arg-type]
    assert (trial.alone, len(trial.one["x"]), len(trial.feeds["x"])) == (False, 8, 8)
    with pytest.raises(DataError, match=r"does not run on these samples: .*1 rows"):
        tried(run, data(ROWS[:1]), None)  # type: ignore[arg-type]


def test_a_model_of_eight_rows_that_says_any_is_refused() -> None:
    with pytest.raises(DataError, match=r"runs on 8 rows at once, and not on others: .*5 rows"):
        tried(runner(lambda x: x, lambda n: n == 8), data(ROWS), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [None, 1, 4])
def test_a_model_that_runs_on_none_of_the_rows_is_an_error_of_the_samples(rows: int | None) -> None:
    with pytest.raises(DataError, match="The baseline does not run on these samples: cannot") as caught:
        tried(runner(boxes, lambda n: False), data(ROWS, rows), None, "baseline")  # type: ignore[arg-type]
    assert "inspect BASELINE" in caught.value.hint


def test_a_fixed_batch_is_run_as_it_is() -> None:
    trial = tried(runner(boxes, lambda n: n == 4), data(ROWS, 4), None)  # type: ignore[arg-type]
    assert (trial.alone, len(trial.feeds["x"]), len(trial.one["x"])) == (False, 4, 4)
