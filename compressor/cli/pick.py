"""`compress MODEL --pick N`: another point of an earlier run's front, built and judged without searching again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgepress.compressor.cli.again import job_of, options_of
from edgepress.compressor.errors import UsageError
from edgepress.compressor.job import Findings, Job
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report import pareto
from edgepress.compressor.report.manifest import Manifest
from edgepress.compressor.report.record import FrontPoint, Report
from edgepress.compressor.userfunction import is_function_name

OPEN = frozenset(
    {"model", "data", "test", "metric", "preprocess", "budget", "max_size_bytes", "max_latency_ns", "formats"}
    | {"out", "pick", "earlier", "force", "as_json", "quiet", "debug"}
    | {"workers", "scheduler", "cache", "no_cache", "no_device", "device_rows"}
)
"""What may be said anew; all else is as it was in the earlier run, and so are functions, which must be said."""


class Picked:
    """A point of an earlier front, and the run that it belongs to.

    Attributes:
        folder: of the earlier run.
        record: its manifest.
        front: its front.
        point: the one that is wanted.
    """

    def __init__(self, wanted: str, folder: Path) -> None:
        """Read the earlier run.

        Raises:
            UsageError: there is none, it has no front, or no such point is on it.
        """
        self.folder = folder
        if not (folder / pareto.FILE_NAME).is_file():
            raise UsageError(
                f"--pick: {folder} holds no {pareto.FILE_NAME}.",
                "Compress the model first, and name the folder of that run with --from DIR.",
            )
        self.record: Manifest = manifests.read(folder)
        self.front = pareto.load_front(folder / pareto.FILE_NAME)
        self.point: FrontPoint = pareto.find(self.front, wanted)

    @property
    def target(self) -> str:
        """Device profile of the earlier run."""
        return options_of(self.record).target

    def job(self, given: dict[str, Any]) -> Job:
        """The earlier run's job with the point's recipe.

        Args:
            given: what may be said anew, by name; None where nothing was said.

        Raises:
            UsageError: model or samples are others, or missing.
        """
        for role in ("data", "test"):
            name = given.get(role)
            entry = next((i.name for i in self.record.inputs if i.role == role), None)
            function = isinstance(name, str) and is_function_name(name)
            if name is not None and (entry is None or (function and name != entry)):
                raise UsageError(
                    f"--pick: the earlier run had {f'--{role} {entry}' if entry else f'no --{role}'}.",
                    f"Leave --{role} out, or compress again.",
                )
        record = self.record.model_copy(update={"recipe": self.point.recipe, "timings_ns": {}})
        anew = {
            name: given.get(name)
            for name in ("budget", "max_size_bytes", "max_latency_ns", "formats", "device_rows")
        }
        job = job_of(record, self.folder, given)
        return replace(job, **{name: value for name, value in anew.items() if value is not None})

    def report(self, report: Report, found: Findings) -> Report:
        """The report of the picked point with the front that it comes from."""
        size = len(found.exported)
        if self.point.recipe and size != self.point.size_bytes:
            found.warnings.append(
                f"The model has {size} bytes, but the front says {self.point.size_bytes}: "
                "other releases of the libraries, or another machine, made it."
            )
        points = tuple(
            point.model_copy(
                update={
                    "chosen": point.number == self.point.number,
                    "within_budget": point.cautious_drop_percent <= report.budget_percent,
                }
            )
            for point in self.front.points
        )
        return report.model_copy(update={"front": points, "warnings": tuple(found.warnings)})


def picked(wanted: str, earlier: Path | None, places: list[Path]) -> Picked:
    """The point that the user wants.

    Args:
        wanted: its number or label.
        earlier: folder of the earlier run, or None.
        places: where to look for it then.

    Raises:
        UsageError: an option contradicts the earlier run, or `Picked` says so.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT
        if given and parameter.name not in OPEN:
            raise UsageError(
                f"--pick goes on from an earlier run: {parameter.opts[0]} is as it was there.",
                f"Leave {parameter.opts[0]} out, or compress again without --pick.",
            )
    there = [place for place in places if (place / pareto.FILE_NAME).is_file()]
    return Picked(wanted, earlier or (there or places)[0])
