"""`pareto.json`: the front as a file of its own, and what `--pick` reads.

`python -m edgepress.compressor.report.pareto` writes `pareto.schema.json` beside this file.
"""

import hashlib
from pathlib import Path
from typing import Literal

from edgepress.compressor.choice import Candidate
from edgepress.compressor.errors import UsageError
from edgepress.compressor.job import Findings
from edgepress.compressor.recipe import Entry, digest, to_json
from edgepress.compressor.report import words
from edgepress.compressor.report.fields import Record, parse_record, schema_of
from edgepress.compressor.report.record import CostKind, FrontPoint, Report

FILE_NAME = "pareto.json"
SCHEMA_VERSION = 1


class Front(Record):
    """The models that no other beats in estimated drop, latency and size.

    Attributes:
        model: file name of the model that came in; its hash is in the manifest beside this file.
        metric: whose drop is estimated.
        budget_percent: of the run; points beyond it show what a larger one would bring.
        target: name of the device profile.
        cost_kind: where latencies come from.
        threads: of the engine.
        points: by drop, the original first.
    """

    schema_version: Literal[1] = 1
    model: str
    metric: str
    budget_percent: float
    target: str
    cost_kind: CostKind
    threads: int
    points: tuple[FrontPoint, ...]


def front_points(found: Findings) -> tuple[FrontPoint, ...]:
    """The front of a session as the report has it."""
    recipe = to_json(found.best.recipe) if found.best is not None else []
    return tuple(_point(found, number, each, recipe) for number, each in enumerate(found.front))


def _point(found: Findings, number: int, candidate: Candidate, best: list[Entry]) -> FrontPoint:
    estimate, recipe = candidate.estimate, to_json(candidate.recipe)
    count = found.counts.get(digest(candidate.recipe))
    as_bytes = candidate.data if candidate.recipe and isinstance(candidate.data, bytes) else None
    return FrontPoint(
        number=number,
        label=candidate.label if candidate.recipe else "original",
        chosen=recipe == best,
        within_budget=estimate is None or estimate.within(found.job.budget),
        drop_percent_estimated=estimate.drop_percent if estimate else 0.0,
        margin_percent=estimate.margin_percent if estimate else 0.0,
        score_estimated=estimate.score if estimate else None,
        latency_ns=candidate.latency_ns if count is None else None,
        instructions_total=None if count is None else count.total,
        size_bytes=len(candidate.data) if candidate.recipe else found.source_bytes,
        memory_peak_bytes=candidate.memory_bytes,
        sha256=hashlib.sha256(as_bytes).hexdigest() if as_bytes is not None else None,
        recipe=tuple(recipe),
    )


def dump_front(report: Report) -> str:
    """`pareto.json` of a report, newline at the end; equal reports give equal text."""
    front = Front(
        model=report.model,
        metric=report.metric,
        budget_percent=report.budget_percent,
        target=report.target,
        cost_kind=report.cost_kind,
        threads=report.threads,
        points=report.front,
    )
    return front.model_dump_json(indent=2) + "\n"


def load_front(path: Path) -> Front:
    """Read a `pareto.json`.

    Raises:
        UsageError: missing, unreadable, damaged, or written by another version of the schema.
    """
    return parse_record(Front, path, what="a front (pareto.json)")


def find(front: Front, wanted: str) -> FrontPoint:
    """The point with this number or label.

    Raises:
        UsageError: there is none; the points are listed.
    """
    for point in front.points:
        if wanted.strip() in (str(point.number), point.label):
            return point
    lines = "\n".join(f"  {point.number}  {words.point_text(point)}" for point in front.points)
    raise UsageError(f"--pick: no point {wanted!r} is on the front.", f"There are:\n{lines}")


def schema_text() -> str:
    """JSON schema of `pareto.json`, as committed in `pareto.schema.json`."""
    return schema_of(Front, "front", SCHEMA_VERSION)


if __name__ == "__main__":
    Path(__file__).with_name("pareto.schema.json").write_text(schema_text(), encoding="utf-8")
