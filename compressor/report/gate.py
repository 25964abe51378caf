"""What `compress gate` found, as one JSON record.

`python -m edgepress.compressor.report.gate` writes `gate.schema.json` beside this file.
"""

from pathlib import Path
from typing import Literal

from edgepress.compressor.report.fields import MaybeFloat, MaybeInterval, Record, schema_of

SCHEMA_VERSION = 1
Said = Literal["kept", "broken", "inconclusive"]
Kind = Literal["quality", "output", "drift", "latency", "size", "memory"]


class File(Record):
    """A model file.

    Attributes:
        name: as it was given.
        size_bytes: with external data.
        sha256: of the file itself.
    """

    name: str
    size_bytes: int
    sha256: str


class Criterion(Record):
    """One thing that was asked of the candidate.

    Attributes:
        name: what it is about, for people: `top1`, `output b`, `drift`, `latency`, `size`, `memory`.
        kind: what kind of thing that is.
        verdict: kept, broken, or cannot be told.
        unit: of baseline and candidate: that of the metric, `ns` or `bytes`.
        baseline: score, latency, size or memory of the baseline; candidate likewise.
        found: what is compared with the limit, in `limit_unit`; None where nothing could be measured.
        interval: of `found`; each end holds with the gate's confidence.
        limit: the largest `found` that is allowed.
        limit_unit: `%` of the baseline lost, `×` the baseline, or `bytes`.
        rows: of the test that it rests on; None for what needs none.
        rows_to_decide: how many rows would most likely bring a verdict if what was found is the truth; None where none
            are needed, no number would do, or it is unknown.
        rows_to_pass: how many would most likely pass a candidate that lost nothing.
        reason: why it is broken, or cannot be told; may be empty.
    """

    name: str
    kind: Kind
    verdict: Said
    unit: str
    baseline: MaybeFloat
    candidate: MaybeFloat
    found: MaybeFloat
    interval: MaybeInterval
    limit: float
    limit_unit: Literal["%", "×", "bytes"]
    rows: int | None = None
    rows_to_decide: int | None = None
    rows_to_pass: int | None = None
    reason: str = ""


class Session(Record):
    """Both models timed in one process, loaded anew.

    Attributes:
        baseline_ns: one sample a round; candidate_ns holds the same rounds.
        ratio: of the medians.
        ratio_interval: paired, with the gate's confidence at each end.
    """

    baseline_ns: tuple[int, ...]
    candidate_ns: tuple[int, ...]
    ratio: float
    ratio_interval: tuple[float, float]


class Past(Record):
    """One line of a history: what a later gate wants to know of this one.

    Attributes:
        when: UTC, ISO 8601.
        accepted: whether the gate let the candidate through.
        metric: None where the candidate could not be scored.
        test_sha256: of the samples.
        score: of the candidate.
        drop_percent: against its baseline.
        size_bytes: of its file.
        latency_ratio: to its baseline's; None where it was not measured.
        right: base64 of rows that are right or wrong, eight in a byte; None for other metrics.
    """

    schema_version: Literal[1] = 1
    when: str
    verdict: Said
    accepted: bool
    baseline_sha256: str
    candidate_sha256: str
    metric: str | None
    rows: int
    test_sha256: str
    score: MaybeFloat
    drop_percent: MaybeFloat
    size_bytes: int
    latency_ratio: MaybeFloat
    right: str | None = None


class Gate(Record):
    """Everything.

    Attributes:
        verdict: broken where a criterion is, else inconclusive where one is.
        exit_code: what the command ends with; differs from the verdict's own where `--inconclusive` says so.
        inconclusive: what was to be made of an inconclusive verdict.
        test: where the rows are from.
        rows: scored.
        metric: None where the candidate could not be scored.
        confidence: of each end of an interval.
        device: name of the profile.
        transport: how it was reached; empty where it was not.
        latency: the timings behind the criterion.
        history: earlier results and this one, oldest first, without their rows.
        warnings: what the user should know.
        reproduce: the command.
        version: of edgepress.
    """

    schema_version: Literal[1] = 1
    verdict: Said
    exit_code: int
    inconclusive: Literal["report", "pass", "fail"]
    baseline: File
    candidate: File
    test: str
    rows: int
    metric: str | None
    budget_percent: float
    confidence: float
    device: str
    transport: str
    criteria: tuple[Criterion, ...]
    latency: tuple[Session, ...] = ()
    history: tuple[Past, ...] = ()
    warnings: tuple[str, ...] = ()
    reproduce: str
    version: str


def overall(criteria: tuple[Criterion, ...]) -> Said:
    """Broken where one is, else inconclusive where one is; a drift that cannot be told from none stops nobody."""
    said = {each.verdict for each in criteria if each.kind != "drift" or each.verdict == "broken"}
    return "broken" if "broken" in said else "inconclusive" if "inconclusive" in said else "kept"


def exit_code(verdict: Said, inconclusive: str) -> int:
    """0, 1 or 4; `inconclusive` says what to make of the last: pass, fail, or anything else."""
    if verdict == "inconclusive":
        return {"pass": 0, "fail": 1}.get(inconclusive, 4)
    return 0 if verdict == "kept" else 1


def schema_text() -> str:
    """JSON schema of the record, as committed in `gate.schema.json`."""
    return schema_of(Gate, "gate", SCHEMA_VERSION)


if __name__ == "__main__":
    Path(__file__).with_name("gate.schema.json").write_text(schema_text(), encoding="utf-8")
