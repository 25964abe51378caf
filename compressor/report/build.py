"""From what a session found out to the record, and the files that hold it."""

import importlib.metadata
import platform
import resource
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import onnx_ir as ir
from pydantic import JsonValue

from edgepress.compressor.budget import Judgement
from edgepress.compressor.choice import Candidate
from edgepress.compressor.cost import peak_activation_bytes, total_macs
from edgepress.compressor.data import Source
from edgepress.compressor.export.releases import oldest_runtime
from edgepress.compressor.job import Findings
from edgepress.compressor.model import parameter_tensors, parameters
from edgepress.compressor.options import Options
from edgepress.compressor.passes import Pass
from edgepress.compressor.passes.constants import packed
from edgepress.compressor.predict import computed_at_load
from edgepress.compressor.recipe import to_json
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report import pareto, words
from edgepress.compressor.report.html import MissingExtra, render
from edgepress.compressor.report.record import (
    FILE_NAME,
    CandidateRow,
    Gain,
    LatencySource,
    LeftAlone,
    OtherOutput,
    Report,
    Side,
    SiteRow,
    Step,
    dump_report,
)
from edgepress.compressor.report.sites import in_blocks, site_rows
from edgepress.compressor.report.zeros import zero_rows
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.serialize import files, parse, write
from edgepress.compressor.userfunction import is_function_name

LIBRARIES = ("edgepress", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "scipy", "ai-edge-litert")
MODEL_FILE = "model.onnx"
TFLITE_FILE = "model.tflite"
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
        drop_interval_95=interval_percent(judgement, metric.higher_is_better if metric else True),
        metric=metric.name if metric else "none",
        metric_unit=metric.unit if metric else "",
        higher_is_better=metric.higher_is_better if metric else True,
        others=tuple(OtherOutput(output=name, kept_percent=kept) for name, kept in judgement.others.items()),
        target=host.target.name,
        objective=job.objective,
        cost_kind="predicted" if found.latencies[0] is None else "measured",
        latency_source=_source(found),
        engine=f"{host.engine.name} {host.engine.version}",
        threads=job.threads,
        seed=job.seed,
        n_data=found.data.rows if found.data else 0,
        n_test=judgement.n,
        baseline=_side(found, found.source, 0, judgement.baseline_score),
        compressed=_side(found, exported, 1, judgement.compressed_score),
        steps=tuple(_steps(found, best, sites)),
        left_alone=tuple(LeftAlone(site=s.site, reason=s.reason) for s in found.left_alone),
        sites=sites,
        zeros=tuple(zero_rows(found, best.model, best.recipe)),
        candidates=tuple(_candidate(c) for c in found.candidates),
        front=pareto.front_points(found),
        max_size_bytes=job.max_size_bytes,
        max_latency_ns=job.max_latency_ns,
        limits_missed=tuple(_limits_missed(found)),
        recipe=tuple(to_json(best.recipe)),
        warnings=tuple(found.warnings),
        oldest_onnxruntime=oldest_runtime(exported),
        tflite=found.tflite,
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


def interval_percent(judgement: Judgement, higher_is_better: bool) -> tuple[float, float] | None:
    """The interval of the drop on the scale of the budget: percent of what the original scores.

    The share kept is compressed / original, for losses original / compressed; a loss that may vanish
    altogether has no such share, and no interval.
    """
    base, interval = judgement.baseline_score, judgement.drop_interval_95
    if interval is None or not base:
        return None
    if higher_is_better:
        return 100 * interval[0] / base, 100 * interval[1] / base
    if base + interval[0] <= 0:
        return None
    return 100 * (1 - base / (base + interval[0])), 100 * (1 - base / (base + interval[1]))


def _source(found: Findings) -> LatencySource:
    if found.latencies[0] is not None:
        return "measured"
    return "rates" if found.host.target.table is None else "table"


def _side(found: Findings, model: ir.Model, which: Literal[0, 1], score: float | None) -> Side:
    """One model's numbers; `which` is 0 for what came in and 1 for what goes out."""
    latency, memory = found.latencies[which], found.memory[which]
    shapes = shapes_in_one_run(model, found.host.engine, found.one_row)
    at_load = computed_at_load(model)
    unpacked = {value.name for node in at_load for value in node.outputs}
    passing = {value: shape for value, shape in shapes.items() if value not in unpacked}
    size, names = found.source_bytes, {found.job.model.name: found.source_bytes}
    if which == 1:
        size, names = len(found.exported), dict(files(found.exported, MODEL_FILE))
    elif found.external:
        names = {path.name: path.stat().st_size for path in (found.job.model, *found.external)}
    return Side(
        score=score,
        size_bytes=size,
        latency_ns_median=latency.median_ns if latency else found.predicted_ns[which] or None,
        latency_ns_ci95=latency.ci95_ns if latency else None,
        latency_samples_ns=tuple(latency.samples_ns) if latency else (),
        memory_peak_bytes=memory,
        activation_bytes=peak_activation_bytes(model, passing) if shapes else None,
        parameters=parameters(model) - _scales(at_load) + _packed_away(model, at_load),
        macs=total_macs(model, shapes) if shapes else None,
        files=names,
    )


def _scales(at_load: Iterable[ir.Node]) -> int:
    """Scales of stored weights: like those of a DequantizeLinear, they are no parameters of the net."""
    found: dict[str, int] = {}
    for node in at_load:
        makers = [maker for value in node.inputs if value is not None and (maker := value.producer())]
        if node.op_type == "Mul" and any(m.op_type == "Cast" or packed(m) is not None for m in makers):
            for value in node.inputs:
                if value is not None and value.const_value is not None:
                    found[value.name or ""] = value.const_value.size
    return sum(found.values())


def _packed_away(model: ir.Model, at_load: Iterable[ir.Node]) -> int:
    """How many more weights there are than constants that hold them, several to a word."""
    found = [what for node in at_load if (what := packed(node)) is not None]
    words = {value.name for _, _, constants in found for value in constants}
    count = sum(count for count, _, _ in found)
    for node in model.graph:
        weights = node.inputs[1] if (blocks := in_blocks(node)) is not None else None
        if blocks is not None and weights is not None and weights.name not in words:
            words, count = words | {weights.name}, count + blocks[0]
    return count - sum(tensor.size for name, tensor in parameter_tensors(model) if name in words)


PER_SITE = (
    ("width", "widths"),
    ("rank", "ranks"),
    ("multiplier", "multipliers"),
    ("sparsity", "amounts"),
    ("threshold", "thresholds"),
    ("bits", "bits"),
    ("bits", "site_bits"),
)
"""What a step of the report calls a parameter, and the passes' fields with (site, value) pairs of it."""


def _steps(found: Findings, best: Candidate, sites: Sequence[SiteRow]) -> Sequence[Step]:
    """What was done: normalisation, then each pass at each site with the damage that was predicted for it.

    A site's gain is told once, at the first pass that names it: it is of all passes there together. The
    measured gain, of all sites together, stands at the last pass.
    """
    steps = [
        Step(pass_="normalise", parameters={"step": s.name}, kept=s.kept, why=s.why)  # noqa: S106
        for s in found.normalized.steps
        if s.changed
    ]
    gains = {row.name: _gain(row) for row in sites}
    told: set[tuple[str, str]] = set()
    for step in best.recipe:
        fields = _fields(step)
        per_site = [
            (word, name, value)
            for word, attribute in PER_SITE
            if isinstance(pairs := getattr(step, attribute, ()), tuple)  # bits of a cluster are of all sites
            for name, value in pairs
            if (word, name) not in told
        ]
        told |= {(word, name) for word, name, _ in per_site}
        for word, name, value in per_site:
            damage, full = _predicted(found.options, name, word, value)
            steps.append(
                Step(
                    pass_=step.kind,
                    site=name,
                    parameters={word: value, "from": full},
                    damage=damage,
                    gain=gains.pop(name, Gain()),
                    kept=True,
                    why=best.why,
                )
            )
        if not per_site or step.kind in ("quantize", "store", "cluster"):
            steps.append(Step(pass_=step.kind, parameters=fields, kept=True, why=best.why))
    if best.recipe:
        before, after = found.latencies
        steps[-1] = steps[-1].model_copy(
            update={
                "gain": Gain(
                    bytes=found.source_bytes - len(found.exported),
                    latency_ns_measured=before.median_ns - after.median_ns if before and after else None,
                )
            }
        )
    return steps


def _gain(row: SiteRow) -> Gain:
    """What a site costs less than before."""
    before, after = row.before, row.after
    if after is None:
        return Gain(bytes=before.bytes, macs=before.macs, latency_ns_predicted=before.latency_ns)
    return Gain(
        bytes=before.bytes - after.bytes,
        macs=(before.macs or 0) - (after.macs or 0),
        latency_ns_predicted=(before.latency_ns or 0.0) - (after.latency_ns or 0.0),
    )


def _fields(step: Pass) -> dict[str, JsonValue]:
    return {name: value for name, value in to_json((step,))[0].items() if name != "kind"}


def _predicted(options: Options | None, name: str, kind: str, value: int) -> tuple[float | None, int | None]:
    """Predicted damage of a knob's value, and the full value."""
    for knob in options.knobs if options else ():
        if knob.name == name and knob.kind == kind and value in knob.values:
            return knob.damage[knob.values.index(value)], knob.full
    return None, None


def _candidate(candidate: Candidate) -> CandidateRow:
    estimate = candidate.estimate
    return CandidateRow(
        label=candidate.label,
        recipe=tuple(to_json(candidate.recipe)),
        damage_estimated=estimate.cautious if estimate else None,
        score=estimate.score if estimate else None,
        size_bytes=len(candidate.data) or None,
        latency_ns=candidate.latency_ns,
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
    (folder / FILE_NAME).write_text(dump_report(report), encoding="utf-8")
    if report.front:
        (folder / pareto.FILE_NAME).write_text(pareto.dump_front(report), encoding="utf-8")
    try:
        (folder / "report.html").write_text(render(report), encoding="utf-8")
    except MissingExtra as error:
        found.warnings.append(str(error))
    inputs = [
        _input("model", job.model, out),
        *(_input("external_data", path, out) for path in found.external),
        *([] if job.data is None else [_input("data", job.data, out)]),
        *([] if job.test is None else [_input("test", job.test, out)]),
        *([] if recipe is None else [_input("recipe", recipe, out)]),
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
        timings_ns=found.timings,
    )
    manifests.write(manifest, folder)


Role = Literal["model", "external_data", "data", "test", "recipe"]


def _input(role: Role, source: Source, out: Path) -> manifests.Input:
    """What the manifest says of an input; samples that are no file have a name and no hash."""
    if isinstance(source, str) and is_function_name(source):
        return manifests.Input(role=role, name=source, sha256=None)
    if not isinstance(source, str | Path):
        return manifests.Input(role=role, name=FROM_MEMORY, sha256=None)
    path = Path(source)
    return manifests.Input(
        role=role, name=manifests.portable_name(path, out), sha256=manifests.sha256_path(path)
    )
