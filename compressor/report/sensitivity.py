"""What sites can bear, for people: a sentence, a table for the terminal, and a page with a heat map.

Facts come as the rows of `compress inspect --json`; names in them are a stranger's, so the page escapes them and the
terminal sees no control characters.
"""

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.context import exactly
from edgepress.compressor.printable import printable
from edgepress.compressor.report.console import encodable
from edgepress.compressor.report.heatmap import Cell, Row, heatmap, level, setting, small, what
from edgepress.compressor.report.html import template
from edgepress.compressor.report.words import UNKNOWN, Kind, number, quantity
from edgepress.compressor.sensitivity import LITTLE, Bearing, Sensitivity

WIDTH = 100
"""Columns of the table at most."""

MEANING = (
    "Damage is how far the model's outputs move when this alone is done. 0.01: class probabilities move by 7 points "
    "at most on average; other outputs err by a tenth of their spread."
)
"""Pinsker's inequality: of distributions with divergence d, no event's probabilities differ by more than √(d / 2)."""


def bears(found: Sensitivity, site: str, size: int) -> list[dict[str, Any]]:
    """What a site bears, for the JSON; lists run from weak to strong.

    Args:
        found: all that was measured.
        site: the name of one.
        size: bytes of the whole file, for shares.
    """
    return [_bearing(each, found.ns, size) for each in found.bearings if each.site == site]


def _bearing(each: Bearing, ns: float, size: int) -> dict[str, Any]:
    easy = each.easy
    return {
        "kind": each.kind,
        "form": each.form,
        "full": each.full,
        "values": [s.value for s in each.strengths],
        "damage": [s.damage for s in each.strengths],
        "latency_ns_saved": [s.ns for s in each.strengths],
        "bytes_saved": [s.size for s in each.strengths],
        "gain_is_least": each.partly,
        "bears": None if easy is None else easy.value,
        "latency_share": None if easy is None else easy.ns / max(ns, 1e-9),
        "size_share": None if easy is None else easy.size / max(size, 1),
    }


def harm(row: Row) -> float:
    """What 8 bits do at a site: in its arithmetic, else in its weights; −1 where neither was measured."""
    first = {knob["kind"]: knob["damage"][0] for knob in row["bears"]}
    return float(first.get("arithmetic", first.get("bits", -1.0)))


def gain(row: Row) -> float:
    """The most that a site brings with little harm: shares of latency and size together."""
    return max(
        (k["latency_share"] + k["size_share"] for k in row["bears"] if k["bears"] is not None), default=0.0
    )


def sort(rows: Sequence[Row], by: str) -> list[Row]:
    """Rows as in the net (`net`), by what they bring (`gain`), or by what hurts (`harm`); most first."""
    if by == "net":
        return list(rows)
    return sorted(rows, key=lambda row: -(gain(row) if by == "gain" else harm(row)))


def worst(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The site that 8 bits hurt most: kind, damage, times the next, and what to give `--leave`."""
    for kind in ("arithmetic", "bits"):
        damages = {
            row["site"]: float(knob["damage"][0])
            for row in rows
            for knob in row["bears"]
            if knob["kind"] == kind and knob["full"] > 8 and knob["values"][0] <= 8
        }
        if damages:
            site = max(damages, key=lambda name: damages[name])
            others = [damage for name, damage in damages.items() if name != site]
            ratio = damages[site] / max(others) if others and max(others) > 0 else None
            leave = exactly(site)
            return {"site": site, "kind": kind, "damage": damages[site], "times_next": ratio, "leave": leave}
    return None


def sentence(rows: Sequence[Row]) -> str:
    """Which site hurts most, and what to do about it."""
    found = worst(rows)
    if found is None:
        return "No site has weights that could be measured in 8 bits."
    what = "8-bit arithmetic" if found["kind"] == "arithmetic" else "8-bit weights"
    site, damage = printable(found["site"]), small(found["damage"])
    if found["damage"] < LITTLE:
        return f"No site is hurt by {what}: {site} minds it most, with a damage of {damage}."
    ratio = found["times_next"]
    times = (
        f", {number(ratio, 2)} times as much as anywhere else" if ratio is not None and ratio >= 1.5 else ""
    )
    mend = f"--leave {shlex.quote(printable(found['leave']))}"
    return (
        f"{site} hurts most: {what} there alone does a damage of {damage}{times}. `compress` spares it where the "
        f"budget demands that; {mend} always does."
    )


def saved(amount: float, share: float, kind: Kind, least: bool) -> str:
    """What is saved, with its share of the whole net; a dash where nothing is."""
    if abs(amount) < 0.5:
        return UNKNOWN
    text = ("≥ " if least else "") + quantity(round(amount), kind).replace("-", "−")
    return f"{text} {percent(share):>7}"


def percent(share: float) -> str:
    """A share of the whole: `3.2 %`."""
    return f"{100 * share:.1f} %".replace("-", "−")


def show(facts: Mapping[str, Any], console: Console) -> None:
    """Print sentence, meaning and table; no line is longer than `WIDTH`."""
    width, plain = min(console.width, WIDTH), partial(encodable, console)
    console.print(Text(plain(facts["summary"]), style="bold"), width=width)
    console.print(Text(plain(MEANING), style="dim"), width=width)
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("site", overflow="fold", max_width=26)
    for heading in ("what", "bears", "damage", "saves latency", "and size"):
        left = heading in ("what", "bears")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in facts["sites"]:
        if not row["bears"]:
            continue
        lines = [_line(knob) for knob in row["bears"]]
        cells = [Text(plain("\n".join(cell))) for cell in zip(*lines, strict=True)]
        cost = quantity(row["parameters"], "count")
        shares = f"\nwith {printable(row['shrinks_with'])}" if shrinks_along(row) else ""
        name = Text(plain(printable(row["site"])))
        name.append(plain(f"\n{printable(row['op'])}, {cost}{shares}"), style="dim")
        table.add_row(name, *cells)
    if any(row["bears"] for row in facts["sites"]):
        console.print(table, width=width)
        console.print()
    for reason, sites in left_alone(facts["sites"]).items():
        said = plain(f"{printable(reason)}: {', '.join(map(printable, sites))}")
        console.print(Text(said, style="dim"), width=width)


def shrinks_along(row: Row) -> bool:
    """Whether a site's channels go with those of another, under whose name they were measured."""
    return bool(row["shrinks_with"]) and row["shrinks_with"] != row["site"]


def left_alone(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Sites that are left alone, or in part, by reason."""
    found: dict[str, list[str]] = {}
    for row in rows:
        reasons = [row["not_measured"], None if row["shrinks_with"] else row["left_alone"]]
        if not any(reasons) and not row["bears"]:
            reasons = ["nothing to turn down"]
        for reason in filter(None, reasons):
            found.setdefault(reason, []).append(row["site"])
    return found


def _line(knob: Row) -> tuple[str, str, str, str, str]:
    """A knob at its strongest setting that does little harm; where there is none, its weakest."""
    if knob["bears"] is None:
        return what(knob), "nothing", small(knob["damage"][0]), UNKNOWN, UNKNOWN
    at = knob["values"].index(knob["bears"])
    return (
        what(knob),
        setting(knob, knob["bears"]),
        small(knob["damage"][at]),
        saved(knob["latency_ns_saved"][at], knob["latency_share"], "ns", knob["gain_is_least"]),
        saved(knob["bytes_saved"][at], knob["size_share"], "bytes", knob["gain_is_least"]),
    )


def _cell(facts: Mapping[str, Any], row: Row, knob: Row, at: int) -> Cell:
    damage = knob["damage"][at]
    ns, size = knob["latency_ns_saved"][at], knob["bytes_saved"][at]
    latency = saved(ns, ns / max(facts["latency_ns_predicted"], 1e-9), "ns", knob["gain_is_least"])
    weight = saved(size, size / max(facts["size_bytes"], 1), "bytes", knob["gain_is_least"])
    title = (
        f"{row['site']}, {what(knob)}, {setting(knob, knob['values'][at])}: damage {small(damage)}; "
        f"saves in latency {latency}, in size {weight}"
    )
    return Cell(level(damage), small(damage), " ".join(title.split()))


def check() -> None:
    """Whether `page` can be had.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    template("sensitivity.html", "The page")


def page(facts: Mapping[str, Any]) -> str:
    """The self-contained page.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    rows = facts["sites"]
    return template("sensitivity.html", "The page").render(
        facts=facts,
        summary=facts["summary"],
        meaning=MEANING,
        map=heatmap(rows, partial(_cell, facts)),
        table=[
            (row, [_line(knob) for knob in row["bears"]], shrinks_along(row)) for row in rows if row["bears"]
        ],
        left_alone=left_alone(rows),
        quantity=quantity,
    )
