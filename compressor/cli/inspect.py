"""`compress inspect MODEL`: what is in it, and what could be compressed."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.cli.host import make_host
from edgepress.compressor.cli.remaining import INSPECT, START
from edgepress.compressor.cli.run import TIMING_SECONDS, input_paths, progress_bar
from edgepress.compressor.cost import NodeCost, node_costs, peak_activation_bytes, total_macs
from edgepress.compressor.errors import OutputError, UsageError
from edgepress.compressor.export.releases import oldest_runtime
from edgepress.compressor.job import Findings, Job
from edgepress.compressor.knobs import half_lanes
from edgepress.compressor.model import dims, parameters
from edgepress.compressor.outdir import write_file
from edgepress.compressor.passes.shrink import shrinkable
from edgepress.compressor.passes.store import WEIGHTS
from edgepress.compressor.printable import printable, showable
from edgepress.compressor.report import sensitivity as told
from edgepress.compressor.report.console import encodable
from edgepress.compressor.report.html import MissingExtra
from edgepress.compressor.report.words import quantity
from edgepress.compressor.sensitivity import LITTLE, Sensitivity, measure
from edgepress.compressor.session import look
from edgepress.compressor.workers import Crew


def inspect(
    *,
    target: str,
    by: str,
    html: Path | None,
    time_limit: float | None,
    as_json: bool,
    debug: bool,
    **rest: Any,
) -> int:
    """Do it, and return the exit code; arguments as the options in `options/inspect.py`."""
    job = Job(**rest)
    if html is not None:
        _check_page(html, job)
    elif job.data is None and by != "net":
        raise UsageError(f"--sort {by} without --data: nothing is measured.", "Give samples with --data.")
    deadline = math.inf if time_limit is None else time.monotonic() + 60 * time_limit

    def late() -> bool:
        return time.monotonic() > deadline

    with progress_bar(as_json, START if job.data is None else INSPECT, time_limit) as tell:
        host = make_host(target, 1, 0, TIMING_SECONDS, tell, device=False)
        found, trials = look(job, host, unseen=False)
        measured = None
        if trials is not None:
            multiple = half_lanes(host.target)
            with Crew(trials, host.workers, late=late, progress=tell).at_work():
                measured = measure(trials, found.shapes, host.target, multiple, tell, late)
            if late():
                found.warnings.append(
                    f"After {time_limit:g} min some was left unmeasured: raise --time-limit."
                )
    facts = _facts(found, measured, by)
    if html is not None:
        write_file(html, told.page(facts), "Name another file.")
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return 0
    _print(facts)
    for warning in found.warnings:
        click.echo(showable(f"warning: {warning}"), err=True)
    return 0


def _check_page(path: Path, job: Job) -> None:
    """Refuse at once what would fail after minutes of measuring.

    Raises:
        UsageError: there would be nothing to draw, or nothing to draw it with.
        OutputError: the file cannot be written, or is one that is read.
    """
    if job.data is None:
        raise UsageError("--html without --data: there is nothing to draw.", "Give samples with --data.")
    try:
        told.check()
    except MissingExtra as error:
        raise UsageError(str(error)) from error
    if any(path.resolve() == source.resolve() for source in input_paths(job)):
        raise OutputError(f"--html: {path} is an input of this run.", "Name another file.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(f"--html: {path} is no file in a folder that exists.", "Name a file.")


def _rows(found: Findings, measured: Sensitivity | None) -> list[dict[str, Any]]:
    """A row a node that computes, holds weights, or was measured."""
    canonical = found.normalized.model
    _, groups, stuck = shrinkable(canonical)
    reasons = {s.site: s.reason for s in (*found.normalized.left_alone, *stuck)}
    shrinks = {name: group.name for group in groups for name in group.producers}
    skipped = {s.site: s.reason for s in measured.skipped} if measured is not None else {}
    return [
        {
            "site": cost.name,
            "op": cost.op,
            "parameters": cost.parameters,
            "bytes": cost.weight_bytes,
            "macs": cost.macs,
            "latency_ns_predicted": round(cost.latency_ns),
            "shrinks_with": shrinks.get(cost.name),
            "left_alone": reasons.get(cost.name),
            "not_measured": skipped.get(cost.name),
            "bears": [] if measured is None else told.bears(measured, cost.name, found.source_bytes),
        }
        for cost in node_costs(canonical, found.shapes, found.host.target)
        if _shown(cost, reasons)
    ]


def _shown(cost: NodeCost, reasons: Mapping[str, str]) -> bool:
    return bool(cost.macs) or (cost.op in WEIGHTS and cost.parameters > 0) or cost.name in reasons


def _facts(found: Findings, measured: Sensitivity | None, by: str) -> dict[str, Any]:
    source, canonical = found.source, found.normalized.model
    rows = told.sort(_rows(found, measured), by)
    return {
        "model": found.job.model.name,
        "inputs": {value.name: _shape(value) for value in source.graph.inputs if not value.is_initializer()},
        "outputs": {value.name: _shape(value) for value in source.graph.outputs},
        "parameters": parameters(source),
        "size_bytes": found.source_bytes,
        "macs": total_macs(canonical, found.shapes) if found.shapes else None,
        "activation_bytes": peak_activation_bytes(canonical, found.shapes) if found.shapes else None,
        "opset": source.opset_imports.get(""),
        "ir_version": source.ir_version,
        "oldest_onnxruntime": oldest_runtime(source),
        "rows": None if found.data is None else found.data.rows,
        "warnings": found.warnings,
        "target": found.host.target.name,
        "latency_ns_predicted": None if measured is None else measured.ns,
        "little": LITTLE,
        "hurts_most": None if measured is None else told.worst(rows),
        "summary": None if measured is None else told.sentence(rows),
        "sites": rows,
    }


def _shape(value: ir.Value) -> list[Any]:
    """[dtype, dimension, …]; `?` where a dimension has no name, `…` where not even their number is known."""
    shape = dims(value)
    if shape is None:
        return [str(value.dtype), "…"]
    return [str(value.dtype), *("?" if dim is None else dim for dim in shape)]


def _print(facts: dict[str, Any]) -> None:
    console = Console()
    width = min(console.width, told.WIDTH)

    def text(said: str) -> Text:
        return Text(encodable(console, printable(said)))

    for kind in ("input", "output"):
        for name, (dtype, *shape) in facts[f"{kind}s"].items():
            console.print(
                text(f"{kind:7}{name}  {dtype.lower()} [{', '.join(map(str, shape))}]"), width=width
            )
    numbers = (
        f"{quantity(facts['parameters'], 'count')} parameters",
        quantity(facts["size_bytes"], "bytes"),
        f"{quantity(facts['macs'], 'count')} MACs",
        f"{quantity(facts['activation_bytes'], 'bytes')} of activations",
        f"opset {facts['opset']}",
        f"onnxruntime ≥ {facts['oldest_onnxruntime']}",
    )
    console.print(text(" · ".join(numbers)), width=width)
    console.print()
    if facts["summary"] is not None:
        told.show(facts, console)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("site", overflow="fold", max_width=30)
    table.add_column("op", no_wrap=True)
    for heading in ("params", "bytes", "MACs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("can be compressed", overflow="fold")
    for row in facts["sites"]:
        cells = (
            row["site"],
            row["op"],
            quantity(row["parameters"], "count"),
            quantity(row["bytes"], "bytes"),
            quantity(row["macs"], "count"),
            _words(row),
        )
        table.add_row(*map(text, cells))
    console.print(table, width=width)


def _words(row: dict[str, Any]) -> str:
    """What can be done at a site."""
    words = []
    if row["shrinks_with"]:
        alone = row["shrinks_with"] == row["site"]
        words.append("fewer channels" if alone else f"fewer channels, with {row['shrinks_with']}")
    if row["op"] in WEIGHTS:
        words.append("8 bits")
    if row["left_alone"] and not row["shrinks_with"]:
        words.append(row["left_alone"])
    return "; ".join(words)
