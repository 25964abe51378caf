"""From what a session found out to the record, and the files that hold it."""

import importlib.metadata
import platform
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from edgepress.compressor.choice import Candidate
from edgepress.compressor.data import Source
from edgepress.compressor.export.releases import oldest_runtime
from edgepress.compressor.job import Findings
from edgepress.compressor.micro import fit_record
from edgepress.compressor.protocols import Count
from edgepress.compressor.recipe import digest, to_json
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report import pareto, words
from edgepress.compressor.report.fit import faults
from edgepress.compressor.report.html import MissingExtra, render
from edgepress.compressor.report.insight import bearings, layer_errors
from edgepress.compressor.report.record import (
    FILE_NAME,
    CandidateRow,
    CostKind,
    LatencySource,
    LeftAlone,
    OtherOutput,
    Report,
    dump_report,
)
from edgepress.compressor.report.sides import side
from edgepress.compressor.report.sites import site_rows
from edgepress.compressor.report.steps import step_rows
from edgepress.compressor.report.zeros import zero_rows
from edgepress.compressor.serialize import parse, write
from edgepress.compressor.userfunction import is_function_name

LIBRARIES = ("edgepress", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "scipy", "ai-edge-litert")
MODEL_FILE = "model.onnx"
TFLITE_FILE = "model.tflite"
SPARSE_FILE = "model-sparse.npz"
FROM_MEMORY = "arrays"
"""Name in the manifest of samples that came as arrays."""


def versions() -> dict[str, str]:
    """Releases of Python and of the libraries that shape the result."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_rss_bytes(hired: int) -> int:
    """Most memory that this process held and, at most, the others that worked for it.

    Args:
        hired: how many those were.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if hired:
        peak += hired * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def build_report(found: Findings) -> Report:
    """The record of a session."""
    job, host, best, judgement = found.job, found.host, found.best, found.judgement
    if best is None or best.model is None or judgement is None:
        raise ValueError("the session is not finished")
    metric = found.metric
    sites = tuple(site_rows(found, best.model, best.recipe))
    exported = parse(found.exported)
    return Report(
        model=job.model.name,
        verdict=judgement.verdict.value,
        verdict_reason=judgement.reason,
        exit_code=found.exit_code,
        budget_percent=job.budget,
        drop_percent=judgement.drop_percent,
        drop_interval_95=judgement.drop_percent_interval,
        metric=metric.name if metric else "none",
        metric_unit=metric.unit if metric else "",
        higher_is_better=metric.higher_is_better if metric else True,
        others=tuple(OtherOutput(output=name, kept_percent=kept) for name, kept in judgement.others.items()),
        target=host.target.name,
        objective=job.objective,
        cost_kind=_cost_kind(found),
        latency_source=_source(found),
        engine=f"{host.engine.name} {host.engine.version}",
        threads=job.threads,
        seed=job.seed,
        n_data=found.data.rows if found.data else 0,
        n_test=judgement.n,
        baseline=side(found, found.source, 0, MODEL_FILE, judgement.baseline_score),
        compressed=side(found, exported, 1, MODEL_FILE, judgement.compressed_score),
        steps=tuple(step_rows(found, best, sites)),
        left_alone=tuple(LeftAlone(site=s.site, reason=s.reason) for s in found.left_alone),
        sites=sites,
        zeros=tuple(zero_rows(found, best.model, best.recipe)),
        sensitivity=tuple(bearings(found, best.recipe)),
        layer_errors=tuple(layer_errors(found, best.model)),
        candidates=tuple(_candidate(c, found.counts.get(digest(c.recipe))) for c in found.candidates),
        front=pareto.front_points(found),
        max_size_bytes=job.max_size_bytes,
        max_latency_ns=job.max_latency_ns,
        limits_missed=tuple(_limits_missed(found)),
        recipe=tuple(to_json(best.recipe)),
        warnings=tuple(found.warnings),
        oldest_onnxruntime=oldest_runtime(exported),
        device=found.there,
        tflite=found.tflite,
        sparse=found.sparse,
        microcontroller=fit_record(found),
        seconds={name: round(s, 3) for name, s in found.seconds.items()},
        tool_peak_rss_bytes=peak_rss_bytes(found.hired),
        versions=versions(),
        environment=dict(host.environment),
        time_limit_hit=found.time_limit_hit,
    )


def _limits_missed(found: Findings) -> Iterable[str]:
    """A sentence for each limit that the result does not keep."""
    job, size, latency = found.job, len(found.exported), found.latency_ns
    reach = (
        f"nothing better was found within a budget of {job.budget:g} %"
        if found.data is not None
        else "without --data little can be done"
    )
    if job.recipe is not None:
        reach = "that is what the recipe makes"
    if job.needs_tflite and found.tflite_file is None and found.tflite is not None:
        yield f"there is no {TFLITE_FILE}: {found.tflite.reason}"
    if (fit := fit_record(found)) is not None:
        yield from (f"{fault} on {fit.device}: {reach}" for fault in faults(fit))
    if job.limits.excess(size, 0) > 0:
        yield (
            f"{words.quantity(size, 'bytes')} are more than the {words.quantity(job.max_size_bytes, 'bytes')} "
            f"of --max-size: {reach}"
        )
    if job.limits.excess(0, latency) > 0:
        kind = "predicted" if found.latencies[1] is None else "measured"
        yield (
            f"{words.quantity(latency, 'ns')} ({kind}) are more than the "
            f"{words.quantity(job.max_latency_ns, 'ns')} of --max-latency: {reach}"
        )


def _cost_kind(found: Findings) -> CostKind:
    if found.counted[0] is not None:
        return "instructions"
    return "predicted" if found.latencies[0] is None else "measured"


def _source(found: Findings) -> LatencySource:
    if found.latencies[0] is not None:
        return "measured"
    table = found.host.target.table
    if table is None:
        return "rates"
    return "counted" if table.counted else "table"


def _candidate(candidate: Candidate, count: Count | None) -> CandidateRow:
    estimate = candidate.estimate
    return CandidateRow(
        label=candidate.label,
        recipe=tuple(to_json(candidate.recipe)),
        damage_estimated=estimate.cautious if estimate else None,
        score=estimate.score if estimate else None,
        size_bytes=len(candidate.data) or None,
        latency_ns=candidate.latency_ns if count is None else None,
        instructions_total=None if count is None else count.total,
        memory_peak_bytes=candidate.memory_bytes,
        kept=candidate.kept,
        why=candidate.why,
    )


def write_result(
    found: Findings, report: Report, folder: Path, out: Path, recipe: Path | None = None
) -> None:
    """Write model, report and manifest into a staged folder.

    Args:
        found: by the session.
        report: its record.
        folder: the staged folder.
        out: where it will lie.
        recipe: the user's recipe file, if any.
    """
    job = found.job
    write(found.exported, folder / MODEL_FILE)
    if found.tflite_file is not None:
        (folder / TFLITE_FILE).write_bytes(found.tflite_file)
    if found.sparse_file:
        (folder / SPARSE_FILE).write_bytes(found.sparse_file)
    (folder / FILE_NAME).write_text(dump_report(report), encoding="utf-8")
    if report.front:
        (folder / pareto.FILE_NAME).write_text(pareto.dump_front(report), encoding="utf-8")
    try:
        (folder / "report.html").write_text(render(report), encoding="utf-8")
    except MissingExtra as error:
        found.warnings.append(str(error))
    inputs = [
        input_of("model", job.model, out),
        *(input_of("external_data", path, out) for path in found.external),
        *([] if job.data is None else [input_of("data", job.data, out)]),
        *([] if job.test is None else [input_of("test", job.test, out)]),
        *([] if recipe is None else [input_of("recipe", recipe, out)]),
    ]
    manifest = manifests.Manifest(
        tool_version=versions()["edgepress"],
        versions=report.versions,
        seed=job.seed,
        options={
            "budget": job.budget,
            "metric": job.metric,
            "target": found.host.target.name,
            "objective": job.objective,
            "max_size_bytes": job.max_size_bytes,
            "max_latency_ns": job.max_latency_ns,
            "output": job.output,
            "shapes": {name: list(dims) for name, dims in job.shapes.items()},
            "leave": list(job.leave),
            "threads": job.threads,
            "format": list(job.formats),
            "preprocess": None if job.preprocess is None else manifests.portable_name(job.preprocess, out),
        },
        recipe=report.recipe,
        inputs=tuple(inputs),
        files=manifests.hash_files(folder),
        tflite=report.tflite,
        instructions={name: count.total for name, count in found.counts.items()},
        timings_ns=found.timings,
    )
    manifests.write(manifest, folder)


Role = Literal["model", "external_data", "data", "test", "recipe"]


def input_of(role: Role, source: Source, out: Path) -> manifests.Input:
    """What the manifest says of an input; samples that are no file have a name and no hash."""
    if isinstance(source, str) and is_function_name(source):
        return manifests.Input(role=role, name=source, sha256=None)
    if not isinstance(source, str | Path):
        return manifests.Input(role=role, name=FROM_MEMORY, sha256=None)
    path = Path(source)
    return manifests.Input(
        role=role, name=manifests.portable_name(path, out), sha256=manifests.sha256_path(path)
    )
