"""`compress inspect MODEL`: what is in it, and what could be compressed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.allocate import Knob
from edgepress.compressor.cli.host import make_host
from edgepress.compressor.cli.run import TIMING_SECONDS, progress_bar, shape_option
from edgepress.compressor.cost import NodeCost, node_costs, peak_activation_bytes, total_macs
from edgepress.compressor.export.releases import oldest_runtime
from edgepress.compressor.job import Findings, Job
from edgepress.compressor.knobs import TRIAL_ERRORS
from edgepress.compressor.model import dims, parameters, tensor_bytes
from edgepress.compressor.options import collect
from edgepress.compressor.parallel import within_memory
from edgepress.compressor.passes.shrink import shrinkable
from edgepress.compressor.passes.store import WEIGHTS
from edgepress.compressor.report.words import quantity
from edgepress.compressor.session import look
from edgepress.compressor.tasks import gauge_of

LITTLE = 0.01
"""Damage (relative change of the model's outputs) below which a site bears a change easily."""

WIDTH = 100
"""Columns of the table at most."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", help="Samples: adds what each site can bear.")
@click.option(
    "--target", "--device", default="local", show_default=True, help="Device profile for predicted latency."
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=shape_option,
    help="Fix dynamic dimensions: NAME=1,3,224,224.",
)
@click.option("--leave", multiple=True, help="Regular expression of sites not to touch.")
@click.option("--preprocess", type=click.Path(path_type=Path), help="preprocess.toml for images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def inspect(*, target: str, as_json: bool, debug: bool, **rest: Any) -> int:
    """Show inputs, outputs, parameters, MACs and bytes per site, and what can be compressed."""
    with progress_bar(as_json) as tell:
        host = make_host(target, 1, 0, TIMING_SECONDS, tell)
        found, trials = look(Job(**rest), host)
        knobs: Sequence[Knob] = ()
        if trials is not None:
            multiple = max(1, host.target.channel_multiple // 2)
            with within_memory(tensor_bytes(trials.original)):
                knobs = collect(gauge_of(trials, multiple, TRIAL_ERRORS), found.shapes).knobs
    facts = _facts(found, _rows(found, knobs))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print(facts)
        for warning in found.warnings:
            click.echo(f"warning: {warning}", err=True)
    return 0


def _rows(found: Findings, knobs: Sequence[Knob]) -> list[dict[str, Any]]:
    """A row a node that computes or holds weights."""
    canonical = found.normalized.model
    _, groups, stuck = shrinkable(canonical)
    reasons = {s.site: s.reason for s in (*found.normalized.left_alone, *stuck)}
    shrinks = {name: group.name for group in groups for name in group.producers}
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
            "bears": [
                {"kind": k.kind, "full": k.full, "values": k.values, "damage": k.damage}
                for k in knobs
                if k.name == cost.name
            ],
        }
        for cost in node_costs(canonical, found.shapes, found.host.target)
        if _shown(cost, reasons)
    ]


def _shown(cost: NodeCost, reasons: Mapping[str, str]) -> bool:
    return bool(cost.macs) or (cost.op in WEIGHTS and cost.parameters > 0) or cost.name in reasons


def _facts(found: Findings, rows: list[dict[str, Any]]) -> dict[str, Any]:
    source, canonical = found.source, found.normalized.model
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
    width = min(console.width, WIDTH)
    for kind in ("input", "output"):
        for name, (dtype, *shape) in facts[f"{kind}s"].items():
            console.print(
                Text(f"{kind:7}{name}  {dtype.lower()} [{', '.join(map(str, shape))}]"), width=width
            )
    numbers = (
        f"{quantity(facts['parameters'], 'count')} parameters",
        quantity(facts["size_bytes"], "bytes"),
        f"{quantity(facts['macs'], 'count')} MACs",
        f"{quantity(facts['activation_bytes'], 'bytes')} of activations",
        f"opset {facts['opset']}",
        f"onnxruntime ≥ {facts['oldest_onnxruntime']}",
    )
    console.print(Text(" · ".join(numbers)), width=width)
    console.print()
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
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table, width=width)


def _words(row: dict[str, Any]) -> str:
    """What can be done at a site; with samples, how far."""
    words = []
    if row["shrinks_with"]:
        alone = row["shrinks_with"] == row["site"]
        words.append("fewer channels" if alone else f"fewer channels, with {row['shrinks_with']}")
    for knob in row["bears"]:
        easy = [
            value for value, damage in zip(knob["values"], knob["damage"], strict=True) if damage < LITTLE
        ]
        if easy:
            words.append(f"{knob['kind']} {min(easy)} of {knob['full']} does little harm")
    if row["op"] in WEIGHTS:
        words.append("8 bits")
    if row["left_alone"] and not row["shrinks_with"]:
        words.append(row["left_alone"])
    return "; ".join(words)
