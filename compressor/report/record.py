"""The record of one run: what `report.json` holds; the web page and the tables are views of it.

Numbers carry their unit in the name. What could not be had is null, never a guess; an infinite or undefined
number (PSNR of equal images) is null too, since JSON has none. Written again, a record gives the same bytes.
`python -m edgepress.compressor.report.record` writes `schema.json` beside this file.
"""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, JsonValue

from edgepress.compressor.report.device import Instructions, OnDevice
from edgepress.compressor.report.fields import (
    SCHEMA_VERSION,
    MaybeFloat,
    MaybeInterval,
    Record,
    parse_record,
    schema_of,
)
from edgepress.compressor.report.micro import MicroFit
from edgepress.compressor.report.sparse import Sparse
from edgepress.compressor.report.tflite import Tflite

FILE_NAME = "report.json"

VerdictName = Literal["kept", "broken", "inconclusive", "unverified"]
CostKind = Literal["measured", "instructions", "predicted"]
LatencySource = Literal["measured", "table", "counted", "rates"]


class Side(Record):
    """One model, before or after.

    Attributes:
        score: quality on the test rows in the metric's own unit (`top1` in percent).
        size_bytes: all files of the model together.
        latency_ns_median: one inference, by `cost_kind` of the report; null where that is instructions.
        instructions: of one inference, where the target is emulated.
        latency_ns_ci95: 95 % interval of the median.
        latency_samples_ns: every kept round, in order.
        memory_peak_bytes: load and one run in a process of its own, less a null model.
        activation_bytes: largest sum of intermediate values alive at once.
        parameters: count of stored weights.
        macs: multiply-accumulates of one inference.
        files: file name → bytes.
    """

    score: MaybeFloat = None
    size_bytes: int
    latency_ns_median: MaybeFloat = None
    latency_ns_ci95: MaybeInterval = None
    latency_samples_ns: tuple[float, ...] = ()
    instructions: Instructions | None = None
    memory_peak_bytes: int | None = None
    activation_bytes: int | None = None
    parameters: int
    macs: int | None = None
    files: dict[str, int] = Field(default_factory=dict)


class Gain(Record):
    """What a step saves; negative where it costs.

    Attributes:
        bytes: of the file.
        macs: multiply-accumulates.
        latency_ns_predicted: from the target's profile.
        latency_ns_measured: by interleaved timing of the two models.
    """

    bytes: int | None = None
    macs: int | None = None
    latency_ns_predicted: MaybeFloat = None
    latency_ns_measured: MaybeFloat = None


class Step(Record):
    """One pass on one site (or on the whole model, where `site` is empty).

    Attributes:
        pass_: kind of the pass; `pass` in JSON.
        site: where.
        parameters: the pass's fields that matter here.
        damage: estimated loss of quality, as the search counts it.
        gain: what it saves.
        kept: whether the result holds it.
        why: the reason, in words.
    """

    pass_: str = Field(validation_alias=AliasChoices("pass", "pass_"), serialization_alias="pass")
    site: str = ""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    damage: MaybeFloat = None
    gain: Gain = Gain()
    kept: bool
    why: str = ""


class LeftAlone(Record):
    """A site that nothing touched, and the reason in words."""

    site: str
    reason: str


class SiteCost(Record):
    """What one site costs; `latency_ns` is predicted, from the target's profile."""

    parameters: int = 0
    bytes: int = 0
    macs: int | None = None
    latency_ns: MaybeFloat = None


class SiteRow(Record):
    """One site before and after: the sum of the nodes that it became; `after` is null where it is gone."""

    name: str
    op: str
    before: SiteCost
    after: SiteCost | None = None
    treatment: str = ""


class ZeroRow(Record):
    """How much of one layer's weights or activations is zero, in percent.

    Attributes:
        site: name of the layer, or of the activation.
        of: which of the two; activations are counted on samples.
        before: in the model that came in.
        after: in the one that went out; what was removed of an activation counts as zero. Null where it is split, or
            gone.
        values: how many were counted.
    """

    site: str
    of: Literal["weights", "activations"]
    before: float
    after: MaybeFloat = None
    values: int


class Bearing(Record):
    """What the search measured that a site bears in one respect.

    Attributes:
        site: the site, or the group of those that shrink together, by its first.
        kind: `width`, `rank`, or `bits` of its weights.
        form: of a rank, how the site would be split.
        full: the value at which nothing is changed.
        values: units, rank or bits that are left, from weak to strong.
        damage: how far the model's outputs move at each of them alone.
        chosen: what the result has; null where nothing of this was turned down.
    """

    site: str
    kind: Literal["width", "rank", "bits"]
    form: str | None = None
    full: int
    values: tuple[int, ...]
    damage: tuple[MaybeFloat, ...]
    chosen: int | None = None


class LayerError(Record):
    """How far a layer's outputs are from the original's: root mean square of the error in percent of the values'.

    Errors of the layers before it are in it; channels that were removed are not. Measured on a few samples.
    """

    site: str
    error_percent: MaybeFloat


class CandidateRow(Record):
    """One model that the search built: its trail.

    Attributes:
        label: short name, unique in the report.
        recipe: passes as JSON objects.
        damage_estimated: what the search expected.
        score: on rows held out of calibration, in the metric's unit.
        size_bytes: serialized.
        latency_ns: by `cost_kind`; null where that is instructions.
        instructions_total: of one inference, where the target is emulated.
        memory_peak_bytes: of one run, where the objective is memory.
        kept: whether this one is the result.
        why: the reason, in words.
    """

    label: str
    recipe: tuple[dict[str, JsonValue], ...] = ()
    damage_estimated: MaybeFloat = None
    score: MaybeFloat = None
    size_bytes: int | None = None
    latency_ns: MaybeFloat = None
    instructions_total: int | None = None
    memory_peak_bytes: int | None = None
    kept: bool = False
    why: str = ""


class FrontPoint(Record):
    """A model that no other beats in estimated drop, latency and size.

    Attributes:
        number: by which `--pick` knows it; 0 is the original.
        label: of the candidate.
        chosen: whether this one is the result.
        within_budget: whether the estimated drop and its margin together keep the run's budget.
        drop_percent_estimated: loss of the score in percent of it, on samples held out of calibration.
        margin_percent: one standard error of what unseen rows will show.
        score_estimated: on samples held out of calibration, in the metric's unit; null of the original.
        latency_ns: by `cost_kind` of the report; null where that is instructions.
        instructions_total: of one inference, where the target is emulated.
        size_bytes: of the file.
        memory_peak_bytes: of one run, where the objective is memory.
        sha256: of the file; null of the original, and over 2 GB.
        recipe: what makes it.
    """

    number: int
    label: str
    chosen: bool = False
    within_budget: bool
    drop_percent_estimated: MaybeFloat = None
    margin_percent: MaybeFloat = None
    score_estimated: MaybeFloat = None
    latency_ns: MaybeFloat = None
    instructions_total: int | None = None
    size_bytes: int
    memory_peak_bytes: int | None = None
    sha256: str | None = None
    recipe: tuple[dict[str, JsonValue], ...] = ()

    @property
    def cautious_drop_percent(self) -> float:
        """Drop and margin together: what the budget is held against."""
        return (self.drop_percent_estimated or 0.0) + (self.margin_percent or 0.0)


class OtherOutput(Record):
    """An output that the metric does not read, and percent of its fidelity to the original that is kept."""

    output: str
    kept_percent: MaybeFloat = None


class Report(Record):
    """Everything that a run found out.

    Attributes:
        schema_version: of this record; grows when a field changes its meaning or goes.
        model: file name of the model that came in.
        verdict: whether the budget was kept, on unseen rows.
        verdict_reason: why, in a sentence.
        exit_code: of the command.
        budget_percent: how much of the score may go, in percent of it.
        drop_percent: how much went, in percent of the baseline's score; negative where the score rose.
        drop_interval_95: paired 95 % interval of `drop_percent`.
        metric: name of the metric.
        metric_unit: unit of the scores, such as `%` or `dB`; may be empty.
        higher_is_better: false for losses.
        others: outputs that the metric does not read; each must keep as much.
        target: name of the device profile.
        objective: what was to become small.
        cost_kind: where latencies come from; `instructions`: they are counted instead, on an emulated target.
        latency_source: what they rest on: measured on the device, or predicted from the kernels measured there for its
            profile (`table`), from kernels whose instructions were counted under emulation (`counted`), or from
            multiply-accumulates and bytes by its rates. Where instructions are the cost, what predictions rest on.
        engine: runtime and version that ran the models.
        threads: of the engine.
        seed: of every random choice.
        n_data: rows for calibration and search.
        n_test: unseen rows behind the verdict.
        baseline: the model that came in.
        compressed: the model that went out.
        steps: what was tried, in order.
        left_alone: sites that nothing touched.
        sites: cost by layer.
        zeros: by layer; of weights where the recipe prunes or cuts activations off.
        sensitivity: by site and knob, where a search was run.
        layer_errors: by layer whose outputs are still there.
        candidates: the search's trail.
        front: those of them that no other beats, as `pareto.json` has them.
        max_size_bytes: what the result may take at most, where that was asked for.
        max_latency_ns: likewise.
        limits_missed: why a limit is not kept, a sentence each; empty where all are.
        recipe: what made the result.
        warnings: what the user should know.
        oldest_onnxruntime: oldest release that loads the result.
        device: the verdict's rows on the target itself, where it is not this machine and ran them; null elsewhere.
        tflite: the TFLite file beside the ONNX one; null where none was asked for.
        sparse: the file for the sparse engine, where the result is a perceptron of few weights; else null.
        microcontroller: what the result takes of the target where that is one; else null.
        seconds: wall time by stage.
        tool_peak_rss_bytes: most memory that this tool held; its processes together, at their peaks.
        versions: of the tool, Python and libraries.
        environment: machine facts that bear on timing (CPU model, features, load).
        time_limit_hit: whether `--time-limit` ended the search.
    """

    schema_version: Literal[1] = 1
    model: str
    verdict: VerdictName
    verdict_reason: str = ""
    exit_code: int
    budget_percent: float
    drop_percent: MaybeFloat = None
    drop_interval_95: MaybeInterval = None
    metric: str
    metric_unit: str = ""
    higher_is_better: bool = True
    others: tuple[OtherOutput, ...] = ()
    target: str
    objective: str
    cost_kind: CostKind
    latency_source: LatencySource | None = None
    engine: str
    threads: int
    seed: int
    n_data: int
    n_test: int
    baseline: Side
    compressed: Side
    steps: tuple[Step, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    sites: tuple[SiteRow, ...] = ()
    zeros: tuple[ZeroRow, ...] = ()
    sensitivity: tuple[Bearing, ...] = ()
    layer_errors: tuple[LayerError, ...] = ()
    candidates: tuple[CandidateRow, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    max_size_bytes: int | None = None
    max_latency_ns: MaybeFloat = None
    limits_missed: tuple[str, ...] = ()
    recipe: tuple[dict[str, JsonValue], ...] = ()
    warnings: tuple[str, ...] = ()
    oldest_onnxruntime: str | None = None
    device: OnDevice | None = None
    tflite: Tflite | None = None
    sparse: Sparse | None = None
    microcontroller: MicroFit | None = None
    seconds: dict[str, float]
    tool_peak_rss_bytes: int
    versions: dict[str, str]
    environment: dict[str, JsonValue] = Field(default_factory=dict)
    time_limit_hit: bool = False


def dump_report(report: Report) -> str:
    """The record as JSON text in declared order, newline at the end; equal records give equal text."""
    return report.model_dump_json(by_alias=True, indent=2) + "\n"


def load_report(path: Path) -> Report:
    """Read a `report.json`.

    Raises:
        UsageError: missing, unreadable, damaged, or written by another version of the schema.
    """
    return parse_record(Report, path, what="a report")


def schema_text() -> str:
    """JSON schema of `report.json`, as committed in `schema.json`."""
    return schema_of(Report, "report", SCHEMA_VERSION)


if __name__ == "__main__":
    Path(__file__).with_name("schema.json").write_text(schema_text(), encoding="utf-8")
