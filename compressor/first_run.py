"""The model as it came, on the first samples: whether it runs, on what, and how many rows at a time."""

from edgepress.compressor.data import Batch
from edgepress.compressor.errors import DataError, DeviceError, ModelError
from edgepress.compressor.job import Findings
from edgepress.compressor.metrics import read_output
from edgepress.compressor.model import load
from edgepress.compressor.protocols import Feeds, Runner
from edgepress.compressor.samples import synthetic_feeds
from edgepress.compressor.scoring import Outputs
from edgepress.compressor.serialize import serialize
from edgepress.compressor.sizes import check_source


def first_batch(found: Findings, rows: int) -> Batch | None:
    """The first rows of the calibration samples, or None without."""
    return None if found.data is None else next(iter(found.data.batches(rows)))


def first_run(found: Findings) -> tuple[Feeds, Feeds]:
    """Outputs of the original on some feeds, and those feeds; both empty where it cannot be run.

    Raises:
        ModelError: the engine does not take the model, and there are samples to run it on; or memory has no room
            for one of its values.
        DataError: the model does not run on the samples.
    """
    engine, name = found.host.engine, found.job.model
    check_source(found.source)
    try:
        runner = engine.load(serialize(found.source), found.job.threads)
    except DeviceError as error:
        if found.data is not None:
            raise ModelError(f"{name}: {error}", error.hint) from error
        if found.job.shapes and _runs_without_shapes(found):
            raise ModelError(f"{name} with the sizes of --shape: {error}", "Leave --shape out.") from error
        found.warnings.append(
            _fate(found, f"The model cannot be run here, so it is handed back as it is: {error}")
        )
        return {}, {}
    batch, one = first_batch(found, 8), first_batch(found, 1)
    if batch is None or one is None:
        feeds = synthetic_feeds(found.source, runner, found.job.seed)
        found.one_row = feeds or {}
        if feeds is None:
            why = (
                "No input was found that the model accepts, so it is handed back as it is: "
                "fix its shape with --shape NAME=1,3,224,224, or give samples with --data."
            )
            found.warnings.append(_fate(found, why))
            return {}, {}
        return runner(feeds), feeds
    found.one_row = one.feeds
    outputs, feeds = _rows_together(found, runner, batch, one)
    return outputs, feeds


def _rows_together(found: Findings, runner: Runner, batch: Batch, one: Batch) -> tuple[Outputs, Feeds]:
    """Outputs of some rows and their feeds; from here on each row is run alone where it has to be.

    That is where a graph says that it takes any number and does not, or gives what is no longer row by row: detectors
    end in all boxes of a batch.
    """
    try:
        outputs = runner(batch.feeds)
    except DeviceError as error:
        try:
            outputs = runner(one.feeds)
        except DeviceError:
            raise DataError(
                f"The model does not run on these samples: {error}",
                "Compare their shape and the order of their axes with `compress inspect MODEL`.",
            ) from error
        found.warnings.append("The model does not run on several rows at once, so each is run by itself.")
    else:
        rows, value = len(batch.rows), read_output(outputs, found.job.output)
        if rows == 1 or value is None or (value.ndim and len(value) == len(next(iter(batch.feeds.values())))):
            return outputs, batch.feeds
        outputs = runner(one.feeds)
    found.data, found.test = (None if d is None else d.one_at_a_time() for d in (found.data, found.test))
    return outputs, one.feeds


def _fate(found: Findings, why: str) -> str:
    """What becomes of a model that does not run: a recipe is followed all the same."""
    followed = found.job.recipe is not None
    return (
        why.replace("it is handed back as it is", "nothing checks what the recipe makes of it")
        if followed
        else why
    )


def _runs_without_shapes(found: Findings) -> bool:
    try:
        found.host.engine.load(serialize(load(found.job.model)), found.job.threads)
    except DeviceError:
        return False
    return True
