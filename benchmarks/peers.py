"""Ours beside what an expert would use instead, from the same files and samples, model by model.

    EDGEPRESS_ZOO=DIR python benchmarks/peers.py [--models a,b] [--tools a,b] [--out FILE] [--work DIR]

For every model of the zoo: onnxruntime static and dynamic 8 bits and NNCF's post-training quantization, made in an
environment of their own (`.venv-peers`, set up on the first run from the extra `peers`), and `compress --target x86
--budget 2` for latency and for size. All get the same calibration rows, are scored on the same unseen rows by the
metric of `info.json` (outputs that it does not read by their fidelity, as `compress` does it), and are timed
interleaved with one thread, in three processes one after the other, of which the median counts. A peer's result
counts where it loads, runs and keeps the budget; beside them stands fp32, which an expert would ship where all else
is worse. Bars are those of `peer_bars.py`; exit code 1 where one is missed.

What was made is kept in `--work` (default `.cache/peers`) under digests of model, samples, versions and sources, so
that an interrupted run goes on where it ended. Latencies are never kept. The search of `compress` times, too: for
figures that count, start with an empty folder on a quiet machine.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common import (
    RESULTS,
    chosen_models,
    machine,
    shown_command,
    size_on_disk,
    versions,
    write_json,
    zoo_folder,
)
from peer_bars import (
    FP32,
    OURS,
    OURS_FOR_SIZE,
    Bar,
    Entry,
    Result,
    best_peer,
    hold,
    means,
    ratio,
    smaller,
    within,
)
from peer_runs import Made, Work, environment, score, time_all
from peer_tools import TOOLS

BUDGET = 2.0
ALL = (*TOOLS, OURS, OURS_FOR_SIZE)
EXPECTED = {"peer": 10.0, OURS: 60.0, OURS_FOR_SIZE: 60.0, "score": 5.0, "time": 20.0}
"""Seconds of a step, before any was seen: only their ratios matter later."""


class Progress:
    """A line per step on stderr, with the time left as those before went.

    Args:
        steps: kinds of all that is to be done, keys of `EXPECTED`.
    """

    def __init__(self, steps: Sequence[str]) -> None:
        self.steps, self.done = list(steps), 0
        self.expected = self.spent = 0.0

    def tell(self, what: str, seconds: float, kept: bool = False) -> None:
        """The next step is done; one that was kept from before says nothing of the speed."""
        kind = self.steps[self.done]
        self.done += 1
        if not kept:
            self.expected += EXPECTED[kind]
            self.spent += seconds
        rate = self.spent / self.expected if self.expected else 1.0
        left = rate * sum(EXPECTED[step] for step in self.steps[self.done :])
        took = "kept from before" if kept else f"{seconds:.0f} s"
        place = f"[{self.done}/{len(self.steps)}]"
        sys.stderr.write(f"{place} {what}: {took}; about {left / 60:.0f} min left\n")


def kinds(tools: Sequence[str]) -> list[str]:
    """The steps of one model."""
    return [*(tool if tool in EXPECTED else "peer" for tool in tools), "score", "time"]


def one_model(work: Work, tools: Sequence[str], seconds: float, progress: Progress) -> Entry:
    """Make, score and time everything for one model."""
    made: dict[str, Made] = {FP32: Made(work.model)}
    for tool in tools:
        made[tool] = work.ours(tool, BUDGET) if tool in (OURS, OURS_FOR_SIZE) else work.peer(tool)
        told = f" ({made[tool].failure})" if made[tool].failure else ""
        progress.tell(f"{work.name}, {tool}{told}", made[tool].seconds, made[tool].kept)
    began = time.monotonic()
    results, n_test = {}, 0
    for tool, one in made.items():
        result = results[tool] = Result(seconds=round(one.seconds, 2) or None, failure=one.failure)
        if one.failure == Work.LEFT_OUT:
            del results[tool]
            continue
        if one.path is None:
            continue
        result.size_bytes = size_on_disk(one.path)
        scored, result.failure = score(work, one.path)
        if scored is not None:
            n_test = scored["n_test"]
            for name in ("score", "kept_percent", "rows_lost", "agreement_percent", "others_kept_percent"):
                setattr(result, name, scored[name])
    progress.tell(f"{work.name}, scores", time.monotonic() - began)
    if results[FP32].failure:
        raise SystemExit(f"{work.name}: the original: {results[FP32].failure}")
    entry = Entry(work.name, work.metric, n_test, results)
    began = time.monotonic()
    runs = {tool: made[tool].path for tool, result in results.items() if not result.failure}
    failure = time_all(work, {tool: path for tool, path in runs.items() if path}, results, seconds)
    hold(entry, BUDGET)
    if failure:
        entry.misses.append(f"not timed: {failure}")
    progress.tell(f"{work.name}, latencies", time.monotonic() - began)
    work.finish()
    return entry


def row(entry: Entry) -> dict[str, Any]:
    """An entry as it is stored, with what follows from it."""
    counts = {name: within(entry, result, BUDGET) for name, result in entry.results.items()}
    return asdict(entry) | {
        "within_budget": counts,
        "best_latency": best_peer(entry, BUDGET, "latency_ns"),
        "best_size": best_peer(entry, BUDGET, "size_bytes"),
        "latency_ratio": ratio(entry, BUDGET, "latency_ns"),
        "size_ratio": ratio(entry, BUDGET, "size_bytes"),
        "smaller_for_size": smaller(entry),
    }


def details(entries: Sequence[Entry]) -> Table:
    """Every result, one a line."""
    made = Table(box=None, pad_edge=False)
    for name in ("model", "tool", "score", "kept %", "others %", "agrees %", "kB", "µs", ""):
        made.add_column(name, justify="left" if name in ("model", "tool", "") else "right")
    for entry in entries:
        for tool, result in entry.results.items():
            fine = within(entry, result, BUDGET)
            figures = (
                (result.score, "{:.2f}"),
                (result.kept_percent, "{:.2f}"),
                (result.others_kept_percent, "{:.2f}"),
                (result.agreement_percent, "{:.1f}"),
                (result.size_bytes and result.size_bytes / 1000, "{:.1f}"),
                (result.latency_ns and result.latency_ns / 1000, "{:.1f}"),
            )
            noisy = "noisy" if result.too_noisy else ""
            verdict = Text(
                result.failure or (noisy if fine else f"over the budget {noisy}"), style="" if fine else "red"
            )
            made.add_row(
                f"{entry.model} ({entry.metric}, {entry.n_test} rows)" if tool == FP32 else "",
                tool,
                *("" if value is None else form.format(value) for value, form in figures),
                verdict,
            )
    return made


def summary(entries: Sequence[Entry]) -> Table:
    """One line a model: ours against the best of the others."""
    made = Table(box=None, pad_edge=False)
    for name in ("model", "latency ×", "of", "size ×", "of", "fp32 / ours for size", ""):
        made.add_column(name, justify="left" if name in ("model", "of", "") else "right")
    for entry in entries:
        cells = []
        for what in ("latency_ns", "size_bytes"):
            value, best = ratio(entry, BUDGET, what), best_peer(entry, BUDGET, what)
            cells += ["" if value is None else f"{value:.3f}", best[0] if best else ""]
        size = smaller(entry)
        cells.append("" if size is None else f"{size:.1f}")
        style = "red" if entry.misses else "green"
        made.add_row(entry.model, *cells, Text("; ".join(entry.misses) or "pass", style=style))
    return made


def store(entries: Sequence[Entry], bars: Sequence[Bar], about: dict[str, Any], path: Path) -> None:
    """Write everything as JSON."""
    held = [asdict(bar) | {"met": bar.met} for bar in bars]
    write_json(about | {"budget": BUDGET, "bars": held, "rows": [row(entry) for entry in entries]}, path)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Ours beside the peers, model by model.")
    parser.add_argument("--models", help="comma-separated names (default: all of the zoo)")
    parser.add_argument("--tools", help=f"comma-separated, of: {', '.join(ALL)} (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json", help="JSON file")
    parser.add_argument("--work", type=Path, help="folder of what was made (default: .cache/peers)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time limit of one model's timing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    zoo = zoo_folder()
    models = chosen_models(zoo, given.models)
    tools = given.tools.split(",") if given.tools else list(ALL)
    if unknown := sorted(set(tools) - set(ALL)):
        raise SystemExit(f"no such tool: {', '.join(unknown)}; there are: {', '.join(ALL)}")
    words = list(sys.argv[1:] if argv is None else argv)
    command = shown_command("benchmarks/peers.py", words, ("--out", "--work"))
    python, found = environment(any(tool in TOOLS for tool in tools))
    about = {"command": command, "machine": machine(), "versions": versions(), "peers": found}
    folder = given.work or RESULTS.parent.parent / ".cache" / "peers"
    progress = Progress(kinds(tools) * len(models))
    entries = []
    for model in models:
        entries.append(
            one_model(Work(zoo / model, folder.resolve(), python, found), tools, given.seconds, progress)
        )
        store(entries, means(entries, BUDGET), about, given.out)
    bars = means(entries, BUDGET)
    console = Console(width=max(140, Console().width))
    console.print(details(entries))
    console.print(summary(entries))
    for bar in bars:
        sign = "≤" if bar.at_most else "≥"
        text = f"{bar.name}: {bar.value:.3f} over {bar.models} models, {sign} {bar.bound:g}: "
        console.print(Text(text + ("pass" if bar.met else "missed"), style="green" if bar.met else "red"))
    return int(any(entry.misses for entry in entries) or not all(bar.met for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
