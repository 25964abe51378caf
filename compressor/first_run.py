"""The model as it came, on the first samples: whether it runs, and on what."""

from edgepress.compressor.errors import DeviceError, ModelError
from edgepress.compressor.job import Findings
from edgepress.compressor.model import load
from edgepress.compressor.protocols import Feeds
from edgepress.compressor.samples import synthetic_feeds
from edgepress.compressor.serialize import serialize
from edgepress.compressor.sizes import check_source
from edgepress.compressor.together import tried


def first_run(found: Findings) -> tuple[Feeds, Feeds]:
    """Outputs of the original on some feeds, and those feeds; both empty where it cannot be run.

    From here on each row is run alone where it has to be.

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
    if found.data is None:
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
    trial = tried(runner, found.data, found.job.output)
    found.one_row = trial.one
    if trial.refused:
        found.warnings.append("The model does not run on several rows at once, so each is run by itself.")
    if trial.alone:
        found.data, found.test = (None if d is None else d.one_at_a_time() for d in (found.data, found.test))
    return trial.outputs, trial.feeds


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
