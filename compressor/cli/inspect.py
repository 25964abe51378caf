"""`compress inspect MODEL`: what is in it, and what could be compressed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.cli.host import make_host
from edgepress.compressor.cli.run import progress_bar, shape_option
from edgepress.compressor.cost import node_costs, peak_activation_bytes, total_macs
from edgepress.compressor.export.releases import oldest_runtime
from edgepress.compressor.model import dims, parameters, size_bytes
from edgepress.compressor.options import collect
from edgepress.compressor.passes.shrink import shrinkable
from edgepress.compressor.session import Job, look


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", help="Samples: adds what each site can bear.")
@click.option("--target", default="local", show_default=True, help="Device profile for predicted latency.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=shape_option,
    help="Fix dynamic dimensions: NAME=1,3,224,224.",
)
@click.option("--preprocess", type=click.Path(path_type=Path), help="preprocess.toml for images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def inspect(
    model: Path,
    data: str | None,
    target: str,
    shapes: dict[str, tuple[int, ...]],
    preprocess: Path | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Show inputs, outputs, parameters, MACs and bytes per site, and what can be compressed."""
    with progress_bar(as_json) as tell:
        host = make_host(target, 1, 0, 10.0, tell)
        result, trials = look(Job(model, data=data, shapes=shapes, preprocess=preprocess), host)
        knobs = ()
        if trials is not None:
            multiple = max(1, host.target.channel_multiple // 2)
            knobs = collect(
                trials.original,
                trials.folds[0].context,
                result.shapes,
                multiple,
                lambda s, w: tell("options", s, w),
            ).knobs
    canonical = result.normalized.model
    _, groups, stuck = shrinkable(canonical)
    reasons = {s.site: s.reason for s in (*result.normalized.left_alone, *stuck)}
    shrinks = {name: g.name for g in groups for name in g.producers}
    rows = [
        {
            "site": c.name,
            "op": c.op,
            "parameters": c.parameters,
            "bytes": c.weight_bytes,
            "macs": c.macs,
            "latency_ns_predicted": round(c.latency_ns),
            "shrinks_with": shrinks.get(c.name),
            "left_alone": reasons.get(c.name),
            "bears": [
                {"kind": k.kind, "full": k.full, "values": k.values, "damage": k.damage}
                for k in knobs
                if k.name == c.name
            ],
        }
        for c in node_costs(canonical, result.shapes, host.target)
        if c.macs or c.parameters > 64
    ]
    facts: dict[str, Any] = {
        "model": model.name,
        "inputs": {v.name: _shape(v) for v in result.source.graph.inputs},
        "outputs": {v.name: _shape(v) for v in result.source.graph.outputs},
        "parameters": parameters(result.source),
        "size_bytes": size_bytes(result.source),
        "macs": total_macs(canonical, result.shapes),
        "activation_bytes": peak_activation_bytes(canonical, result.shapes),
        "opset": result.source.opset_imports.get(""),
        "ir_version": result.source.ir_version,
        "oldest_onnxruntime": oldest_runtime(result.source),
        "warnings": result.warnings,
        "sites": rows,
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print(facts, rows)
    return 0


def _shape(value: ir.Value) -> list[Any]:
    return [
        str(value.dtype),
        *(d if isinstance(d, int) else str(d) if d is not None else "?" for d in dims(value) or ()),
    ]


def _print(facts: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    console = Console()
    for name in ("inputs", "outputs"):
        for value, shape in facts[name].items():
            console.print(Text(f"{name[:-1]} {value}: {shape[0]} {shape[1:]}"))
    console.print(
        Text(
            f"{facts['parameters']:,} parameters · {facts['size_bytes']:,} bytes · {facts['macs']:,} MACs · "
            f"{facts['activation_bytes']:,} bytes of activations · opset {facts['opset']} · onnxruntime ≥ {facts['oldest_onnxruntime']}"
        )
    )
    table = Table(box=None, pad_edge=False)
    for heading, justify in (
        ("site", "left"),
        ("op", "left"),
        ("parameters", "right"),
        ("MACs", "right"),
        ("can be compressed", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(
            Text(row["site"]), row["op"], f"{row['parameters']:,}", f"{row['macs']:,}", Text(_bears(row))
        )
    console.print(table)
    for warning in facts["warnings"]:
        console.print(Text(f"warning: {warning}"))


def _bears(row: dict[str, Any]) -> str:
    words = []
    if row["shrinks_with"]:
        words.append(
            "channels" if row["shrinks_with"] == row["site"] else f"channels, with {row['shrinks_with']}"
        )
    for knob in row["bears"]:
        fine = [v for v, d in zip(knob["values"], knob["damage"], strict=True) if d < 0.01]
        if fine:
            words.append(f"{knob['kind']} {min(fine)} of {knob['full']} at little damage")
    if row["left_alone"] and not words:
        words.append(row["left_alone"])
    return "; ".join(words) or "weights in 8 bits"
