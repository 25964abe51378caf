"""The table of `compress bench`, with a histogram of each model's samples."""

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.printable import printable
from edgepress.compressor.report.bench import Bench, ModelTimes
from edgepress.compressor.report.console import encodable
from edgepress.compressor.report.fit import KERNELS, exactly, fit_text
from edgepress.compressor.report.words import UNKNOWN, number, quantity

_BARS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"
_COLUMNS = 24
_TAIL = 0.95
"""Samples beyond this quantile are left out of the histogram: one of them would press all others together."""
_COLOURS = {"faster": "green", "slower": "red", "too noisy to tell": "yellow"}


def show(record: Bench, console: Console) -> None:
    """Print the table, the histograms, and what may have spoilt the times."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(encodable(console, printable(text)), style=style), soft_wrap=True)

    where = f"{record.device}: {record.cpu}" if record.cpu != "unknown" else record.device
    one = record.models[0]
    engine = " ".join(word for word in (one.engine, one.engine_version) if word != "unknown")
    say(f"{where}, {record.threads} thread{'' if record.threads == 1 else 's'}, {engine}")
    timed = any(row.latency_ns_median is not None for row in record.models)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    fitted = any(row.microcontroller is not None for row in record.models)
    headings, of = (_TIMED, _timed) if timed else (_FITTED, _fitted) if fitted else (_COUNTED, _counted)
    for heading in headings:
        table.add_column(
            heading,
            overflow="fold",
            justify="left" if heading in _TEXT else "right",
            no_wrap=heading != "model",
        )
    for row in record.models:
        cells = [encodable(console, printable(cell)) for cell in of(row)]
        table.add_row(*map(Text, cells[:-1]), Text(cells[-1], style=_COLOURS.get(row.verdict or "", "")))
    console.print(table)
    if timed:
        for line in _histograms(record.models, console):
            say(line)
    if fitted and (fit := record.models[0].microcontroller) is not None:
        flash, arena = (exactly(size) for size in (fit.flash_available_bytes, fit.arena_available_bytes))
        say(f"{fit.device} has {flash} bytes of flash and {arena} of arena. {KERNELS}")
    for warning in record.warnings:
        say(f"Note: {warning}", "yellow")


_TEXT = ("model", "verdict", "fit")
_TIMED = ("model", "median [95 %]", "p90", "× the first [95 %]", "verdict")
_COUNTED = ("model", "size", "instructions", "FMA", "dot products", "heap")


_FITTED = ("model", "flash", "arena", "floats", "fit")


def _fitted(row: ModelTimes) -> list[str]:
    fit = row.microcontroller
    if fit is None:
        return [row.model, *[UNKNOWN] * 4]
    floats = str(sum(fit.float_operators.values()) or "none")
    return [row.model, exactly(fit.flash_bytes), exactly(fit.arena_bytes), floats, fit_text(fit)]


def _timed(row: ModelTimes) -> list[str]:
    ratio = UNKNOWN
    if row.ratio is not None and row.ratio_ci95 is not None and row.verdict != "first":
        ratio = f"{number(row.ratio)} [{number(row.ratio_ci95[0])}, {number(row.ratio_ci95[1])}]"
    interval = ""
    if row.latency_ns_ci95 is not None:
        interval = f" [{', '.join(quantity(end, 'ns') for end in row.latency_ns_ci95)}]"
    return [
        row.model,
        quantity(row.latency_ns_median, "ns") + interval,
        quantity(row.latency_ns_p90, "ns"),
        ratio,
        row.verdict or UNKNOWN,
    ]


def _counted(row: ModelTimes) -> list[str]:
    counts = (row.instructions_total, row.instructions_fma, row.instructions_dot)
    return [
        row.model,
        quantity(row.size_bytes, "bytes"),
        *(quantity(count, "count") for count in counts),
        quantity(row.heap_bytes, "bytes"),
    ]


def _histograms(rows: Sequence[ModelTimes], console: Console) -> list[str]:
    """One line a model, over a common logarithmic axis."""
    samples = [np.log(np.maximum(np.array(row.samples_ns, np.float64), 1)) for row in rows if row.samples_ns]
    if not samples:
        return []
    low = min(float(each.min()) for each in samples)
    high = max(float(np.quantile(each, _TAIL)) for each in samples)
    if high <= low:
        return []
    bars = _BARS if encodable(console, _BARS) == _BARS else _ASCII
    width = max(len(row.model) for row in rows)
    lines = []
    for row, each in zip(rows, samples, strict=True):
        counts, _ = np.histogram(each, bins=_COLUMNS, range=(low, high))
        tallest = max(int(counts.max()), 1)
        # Rounded up, so that a single sample is seen.
        line = "".join(bars[-(-int(count) * (len(bars) - 1) // tallest)] for count in counts)
        lines.append(f"{row.model:{width}}  {line}")
    ends = f"{quantity(math.exp(low), 'ns')} … {quantity(math.exp(high), 'ns')}"
    return [*lines, f"{'':{width}}  {ends}"]
