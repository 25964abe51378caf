"""From what a session found out to the record, and the files that hold it."""

import importlib.metadata
import platform
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from edgepress.compressor.budget import Judgement
from edgepress.compressor.cost import NodeCost, node_costs, peak_activation_bytes, total_macs
from edgepress.compressor.export.releases import oldest_runtime
from edgepress.compressor.model import parameters, size_bytes
from edgepress.compressor.options import Options
from edgepress.compressor.passes import Pass
from edgepress.compressor.recipe import to_json
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report.html import MissingExtra, render
from edgepress.compressor.report.record import (
    CandidateRow,
    Gain,
    LeftAlone,
    Report,
    Side,
    SiteCost,
    SiteRow,
    Step,
    dump_report,
)
from edgepress.compressor.samples import observed_shapes
from edgepress.compressor.search import Candidate
from edgepress.compressor.session import Result

LIBRARIES = ("edgepress", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Releases of Python and of the libraries that shape the result."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_rss_bytes() -> int:
    """Most memory that this process held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def build_report(result: Result) -> Report:
    """The record of a session."""
    job, host, best, judgement = result.job, result.host, result.best, result.judgement
    if best is None or best.model is None or judgement is None:
        raise ValueError("the session is not finished")
    base = judgement.baseline_score
    interval = judgement.drop_interval_95
    relative = None if interval is None or not base else (100 * interval[0] / base, 100 * interval[1] / base)
    measured = result.latencies[0] is not None
    metric = result.metric
    return Report(
        model=job.model.name,
        verdict=judgement.verdict.value,
        verdict_reason=judgement.reason,
        exit_code=result.exit_code,
        budget_percent=job.budget,
        drop_percent=judgement.drop_percent,
        drop_interval_95=relative,
        metric=metric.name if metric else "none",
        metric_unit=metric.unit if metric else "",
        higher_is_better=metric.higher_is_better if metric else True,
        target=host.target.name,
        objective=job.objective,
        cost_kind="measured" if measured else "predicted",
        engine=f"{host.engine.name} {host.engine.version}",
        threads=job.threads,
        seed=job.seed,
        n_data=result.data.rows if result.data else 0,
        n_test=judgement.n,
        baseline=_side(result, result.source, 0, judgement),
        compressed=_side(result, best.model, 1, judgement),
        steps=tuple(_steps(result, best)),
        left_alone=tuple(LeftAlone(site=s.site, reason=s.reason) for s in result.left_alone),
        sites=tuple(_site_rows(result, best)),
        candidates=tuple(_candidate(c) for c in result.candidates),
        recipe=tuple(to_json(best.recipe)),
        warnings=tuple(result.warnings),
        oldest_onnxruntime=oldest_runtime(
            ir.from_proto(ir.serde.onnx.ModelProto.FromString(result.exported))
        ),
        seconds={name: round(s, 3) for name, s in result.seconds.items()},
        tool_peak_rss_bytes=peak_rss_bytes(),
        versions=versions(),
        time_limit_hit=result.time_limit_hit,
    )


def _side(result: Result, model: ir.Model, which: int, judgement: Judgement) -> Side:
    latency = result.latencies[which]
    shapes = observed_shapes(model, result.host.engine, result.one_row)
    size = size_bytes(model) if which == 0 else len(result.exported)
    if which == 0 and result.job.model.is_file():
        size = (
            max(size, result.job.model.stat().st_size)
            if size > (2 << 30)
            else result.job.model.stat().st_size
        )
    return Side(
        score=judgement.baseline_score if which == 0 else judgement.compressed_score,
        size_bytes=size,
        latency_ns_median=latency.median_ns if latency else result.predicted_ns[which] or None,
        latency_ns_ci95=latency.ci95_ns if latency else None,
        latency_samples_ns=tuple(latency.samples_ns) if latency else (),
        memory_peak_bytes=result.memory[which],
        activation_bytes=peak_activation_bytes(model, shapes) if shapes else None,
        parameters=parameters(model),
        macs=total_macs(model, shapes) if shapes else None,
        files={result.job.model.name if which == 0 else "model.onnx": size},
    )


def _steps(result: Result, best: Candidate) -> Sequence[Step]:
    """What was done: normalisation, then each pass at each site with the damage that was predicted for it."""
    steps = [
        Step(pass_="normalise", site="", parameters={"step": s.name}, kept=s.kept, why=s.why)
        for s in result.normalized.steps
        if s.changed
    ]
    for step in best.recipe:
        per_site = [*getattr(step, "widths", ()), *getattr(step, "ranks", ())]
        for name, value in per_site:
            damage, full = _predicted(result.options, name, value)
            word = "width" if getattr(step, "widths", ()) else "rank"
            steps.append(
                Step(
                    pass_=step.kind,
                    site=name,
                    parameters={word: value, "from": full},
                    damage=damage,
                    gain=Gain(),
                    kept=True,
                    why=best.why,
                )
            )
        if not per_site:
            steps.append(Step(pass_=step.kind, parameters=_fields(step), kept=True, why=best.why))
    return steps


def _fields(step: Pass) -> dict[str, object]:  # type: ignore[type-arg]
    return {k: v for k, v in to_json((step,))[0].items() if k != "kind"}


def _predicted(options: Options | None, name: str, value: int) -> tuple[float | None, int | None]:
    for knob in options.knobs if options else ():
        if knob.name == name and value in knob.values:
            return knob.damage[knob.values.index(value)], knob.full
    return None, None


def _candidate(candidate: Candidate) -> CandidateRow:
    estimate = candidate.estimate
    return CandidateRow(
        label=candidate.label,
        recipe=tuple(to_json(candidate.recipe)),
        damage_estimated=estimate.drop_percent + estimate.margin_percent if estimate else None,
        score=estimate.score if estimate else None,
        size_bytes=len(candidate.data) or None,
        latency_ns=candidate.latency_ns,
        kept=candidate.kept,
        why=candidate.why,
    )


def _site_rows(result: Result, best: Candidate) -> Sequence[SiteRow]:
    """Cost by site, before and after; a site that was split is the sum of its parts."""
    if best.model is None:
        return []
    engine, target = result.host.engine, result.host.target
    before = node_costs(result.normalized.model, result.shapes, target)
    after = node_costs(best.model, observed_shapes(best.model, engine, result.one_row), target)
    by_name: dict[str, list[NodeCost]] = {}
    weights = _weights_by_node(best.model)
    for cost in after:
        name = cost.name.removesuffix("_v")
        by_name.setdefault(name, []).append(cost)
    rows = []
    for cost in before:
        if not cost.macs:
            continue
        parts = by_name.get(cost.name, [])
        old = SiteCost(
            parameters=cost.parameters, bytes=cost.weight_bytes, macs=cost.macs, latency_ns=cost.latency_ns
        )
        new = None
        if parts:
            stored = [weights.get(p.name, (p.parameters, p.weight_bytes)) for p in parts]
            new = SiteCost(
                parameters=sum(s[0] for s in stored),
                bytes=sum(s[1] for s in stored),
                macs=sum(p.macs for p in parts),
                latency_ns=sum(p.latency_ns for p in parts),
            )
        rows.append(
            SiteRow(
                name=cost.name, op=cost.op, before=old, after=new, treatment=_treatment(cost, parts, best)
            )
        )
    return rows


def _weights_by_node(model: ir.Model) -> dict[str, tuple[int, int]]:
    """Parameters and bytes of each node's constants, seen through the nodes that only unpack them."""
    found = {}
    for node in model.graph:
        count = size = 0
        stack = [v for v in node.inputs if v is not None]
        while stack:
            value = stack.pop()
            if value.const_value is not None:
                count += value.const_value.size
                size += value.const_value.nbytes
                continue
            maker = value.producer()
            if (
                maker is not None
                and maker.op_type in ("DequantizeLinear", "Cast", "Mul")
                and _constant_only(maker)
            ):
                stack += [v for v in maker.inputs if v is not None]
        found[node.name or ""] = (count, size)
    return found


def _constant_only(node: ir.Node) -> bool:
    for value in node.inputs:
        maker = None if value is None or value.const_value is not None else value.producer()
        if value is not None and value.const_value is None and (maker is None or not _constant_only(maker)):
            return False
    return True


def _treatment(cost: NodeCost, parts: Sequence[NodeCost], best: Candidate) -> str:
    words = []
    for step in best.recipe:
        width, rank = (
            dict(getattr(step, "widths", ())).get(cost.name),
            dict(getattr(step, "ranks", ())).get(cost.name),
        )
        words += [f"{width} channels"] if width else []
        words += [f"rank {rank}"] if rank else []
        if step.kind == "quantize" and cost.name not in getattr(step, "leave", ()):
            words.append("8-bit arithmetic")
        elif step.kind == "store" and "8-bit arithmetic" not in words:
            words.append("weights stored in 8 bits")
    if (
        parts
        and sum(p.macs for p in parts) < cost.macs
        and not any("channels" in w or "rank" in w for w in words)
    ):
        words.insert(0, "fewer inputs")
    return ", ".join(words) or "as it was"


def write_result(result: Result, report: Report, folder: Path, out: Path, recipe: Path | None = None) -> None:
    """Write model, report and manifest into a staged folder.

    Args:
        result: of the session.
        report: its record.
        folder: the staged folder.
        out: where it will lie.
        recipe: the user's recipe file, if any.
    """
    job = result.job
    (folder / "model.onnx").write_bytes(result.exported)
    (folder / "report.json").write_text(dump_report(report), encoding="utf-8")
    try:
        (folder / "report.html").write_text(render(report), encoding="utf-8")
    except MissingExtra as error:
        result.warnings.append(str(error))
    given = [("model", job.model), ("data", job.data), ("test", job.test), ("recipe", recipe)]
    inputs = [_input(role, source, out) for role, source in given if isinstance(source, str | Path)]
    manifest = manifests.Manifest(
        tool_version=versions()["edgepress"],
        versions=report.versions,
        seed=job.seed,
        options={
            "budget": job.budget,
            "metric": job.metric,
            "target": result.host.target.name,
            "objective": job.objective,
            "output": job.output,
            "shapes": {k: list(v) for k, v in job.shapes.items()},
            "leave": list(job.leave),
            "threads": job.threads,
        },
        recipe=report.recipe,
        inputs=tuple(inputs),
        files=manifests.hash_files(folder),
        timings_ns=result.timings,
    )
    manifests.write(manifest, folder)


def _input(role: str, source: str | Path, out: Path) -> manifests.Input:
    path = Path(source)
    if not path.exists():  # module:function
        return manifests.Input(role=role, name=str(source), sha256=None)  # type: ignore[arg-type]
    return manifests.Input(
        role=role, name=manifests.portable_name(path, out), sha256=manifests.sha256_path(path)
    )  # type: ignore[arg-type]
