"""What the gate promises, by simulation and on files.

    python benchmarks/gate.py [--only PART …] [--models 40000] [--runs 200]

`calibration`: rows are drawn for candidates whose true drop is exactly the budget (how many are let through), is nil
(how many fail), or is twice the budget (how many fail), over base accuracies, budgets and shares of rows that change
beyond what the drop needs. They are judged many at a time by the same formulas, and in every cell some are held
against `budget.judge`, which gives `compress gate` its verdict. `bootstrap`: the same of skewed losses, whose rows are
no right or wrong. `rows`: an inconclusive candidate is drawn again with as many rows as were asked for. `latency`: two
identical small nets are gated in a row while all cores of the machine are busy. `speed`: ten thousand rows of a small
net, and the memory that more rows take.

Results go to `benchmarks/results/gate.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, norm

from common import write_json
from edgepress.compressor.budget import Budget, Scores, Verdict, judge
from edgepress.compressor.cli.gate_run import Board, time_session
from edgepress.compressor.cli.gate_settings import Settings
from edgepress.compressor.data import open_data
from edgepress.compressor.gate import judge_latency
from edgepress.compressor.model import input_specs, load
from edgepress.compressor.paired import CONTINUITY
from edgepress.compressor.protocols import Matrix
from edgepress.devices.local import LocalDevice
from edgepress.devices.profile import load_profile
from edgepress.runtime.environment import describe

RESULTS = Path(__file__).parent / "results" / "gate.json"
ZOO = Path(__file__).parent / "zoo"
ROWS = (200, 1000, 5000)
BASES = (0.6, 0.8, 0.9, 0.95, 0.99)
BUDGETS = (0.5, 1.0, 2.0, 5.0)
EXTRA = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Share of rows that are gained, and as many lost beyond the drop."""


@dataclass(frozen=True)
class Rate:
    """A metric of right and wrong, in percent."""

    name: str = "top1"
    whole: bool = False
    higher_is_better: bool = True
    scale: float | None = 100.0

    def finish(self, values: Matrix) -> float:
        """The score."""
        return (self.scale or 1.0) * float(np.mean(values))


RATE, LOSS = Rate(), Rate("mse", higher_is_better=False, scale=1.0)


def verdict(cells: Sequence[int], budget: float) -> tuple[Verdict, int | None]:
    """The gate's, and the rows it asks for."""
    base, ours = (np.repeat(right, cells) for right in ([1.0, 1, 0, 0], [1.0, 0, 1, 0]))
    found = judge(Budget(budget), RATE, Scores(base, ours), strict=True)
    return found.verdict, found.rows_to_decide


def verdicts(drawn: npt.NDArray[np.int64], budget: float) -> npt.NDArray[np.int64]:
    """The same of many candidates [k, 4] at once: 1 pass, -1 fail, 0 neither; `checked` holds it against `verdict`."""
    a, b, c, _ = drawn.T.astype(np.float64)
    rho, z = 1 - budget / 100, norm.ppf(0.95)
    total = a + b + c
    square = rho * (1 + rho) * total
    linear = a * (1 - rho**2) - b * rho**2 - c * (2 * rho**2 - 1)
    gained = (-linear + np.sqrt(np.maximum(linear**2 + 4 * square * c * rho * (1 - rho), 0))) / (2 * square)
    distance = (a + c) - rho * (a + b)
    distance = np.sign(distance) * np.maximum(np.abs(distance) - CONTINUITY, 0)
    statistic = distance / np.sqrt(total * rho * ((1 - rho) + (1 + rho) * gained))
    lost = binom.sf(b - 1, b + c, 0.5) <= 0.01
    return np.where(statistic >= z, 1, np.where((statistic < -z) & lost, -1, 0))


def shares(base: float, drop: float, extra: float) -> list[float] | None:
    """Cells of a candidate with that true drop (share of the base); None where there is none."""
    cells = [base * (1 - drop) - extra, base * drop + extra, extra, 1 - base - extra]
    return [max(cell, 0.0) for cell in cells] if min(cells) > -1e-12 else None


def checked(drawn: npt.NDArray[np.int64], said: npt.NDArray[np.int64], budget: float) -> None:
    """Raise where the gate says otherwise."""
    words = {1: Verdict.KEPT, -1: Verdict.BROKEN, 0: Verdict.INCONCLUSIVE}
    for cells, each in zip(drawn.tolist(), said.tolist(), strict=True):
        if verdict(cells, budget)[0] is not words[each]:
            raise RuntimeError(
                f"{cells}, budget {budget}: {verdict(cells, budget)[0]}, and not {words[each]}"
            )


def rates(
    rng: np.random.Generator, n: int, cells: Sequence[float], models: int, budget: float
) -> dict[str, float]:
    """Percent of candidates with those shares of rows that pass and fail; where that is near 5 %, of more of them."""
    passed = failed = done = 0
    while done < models or (done < 40 * models and 4.8 < 100 * passed / done < 5.3):
        drawn = rng.multinomial(n, np.array(cells) / sum(cells), models)
        said = verdicts(drawn, budget)
        if not done:
            checked(drawn[:20], said[:20], budget)
        passed, failed, done = (
            passed + int((said == 1).sum()),
            failed + int((said == -1).sum()),
            done + models,
        )
    return {"pass": round(100 * passed / done, 3), "fail": round(100 * failed / done, 3), "models": done}


def calibration(models: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    table = []
    for n, budget in product(ROWS, BUDGETS):
        for base, extra in product(BASES, EXTRA):
            row: dict[str, Any] = {"rows": n, "budget_percent": budget, "base": base, "extra": extra}
            for name, times in (("on_budget", 1), ("no_drop", 0), ("twice", 2)):
                cells = shares(base, times * budget / 100, extra)
                if cells is not None and (times or extra):
                    row[name] = rates(rng, n, cells, models, budget)
            table.append(row)
        print(f"{n} rows, budget {budget} %: done", flush=True)
    return table


def summary(table: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst cells of what may not happen, and how often what should happen does, with a budget of 2 %."""

    def worst(case: str, said: str, n: int) -> dict[str, Any]:
        row = max((r for r in table if case in r and r["rows"] == n), key=lambda r: r[case][said])
        return {"percent": row[case][said], **{key: row[key] for key in ("budget_percent", "base", "extra")}}

    def power(case: str, said: str, n: int, extras: Sequence[float]) -> dict[str, dict[str, float]]:
        rows = [r for r in table if case in r and (r["rows"], r["budget_percent"]) == (n, 2.0)]
        return {
            f"extra {extra:g}": {f"base {r['base']}": r[case][said] for r in rows if r["extra"] == extra}
            for extra in extras
        }

    return {
        "false_pass_on_budget": {n: worst("on_budget", "pass", n) for n in ROWS},
        "false_fail_at_no_drop": {n: worst("no_drop", "fail", n) for n in ROWS},
        "pass_at_no_drop": {n: power("no_drop", "pass", n, EXTRA[1:]) for n in ROWS},
        "fail_at_twice_the_budget": {n: power("twice", "fail", n, EXTRA) for n in ROWS},
    }


def bootstrap(models: int) -> list[dict[str, Any]]:
    """Lognormal losses, the candidate's larger by a factor with noise of its own."""
    rng = np.random.default_rng(1)
    table = []
    for n, spread in ((200, 0.5), (200, 1.0), (1000, 0.5), (1000, 1.0)):
        for name, share in (("on_budget", 0.98), ("no_drop", 1.0), ("twice", 0.96)):
            found: Counter[Verdict] = Counter()
            for _ in range(models):
                base = rng.lognormal(0, spread, n)
                noise = rng.lognormal(-0.005, 0.1, n)  # of mean 1
                found[judge(Budget(2), LOSS, Scores(base, base * noise / share), strict=True).verdict] += 1
            table.append(
                {
                    "rows": n,
                    "sigma": spread,
                    "case": name,
                    "models": models,
                    **{each.value: round(100 * found[each] / models, 2) for each in Verdict if found[each]},
                }
            )
        print(f"bootstrap, {n} rows: done", flush=True)
    return table


def rows_asked_for(models: int) -> list[dict[str, Any]]:
    """Candidates that cannot be told, then drawn anew, with the shares found, on the rows asked for."""
    rng = np.random.default_rng(2)
    table = []
    for cells, budget in (
        ((49, 1, 0, 50), 1.0),
        ((88, 2, 1, 9), 2.0),
        ((93, 0, 1, 6), 2.0),
        ((180, 8, 2, 10), 2.0),
    ):
        said, rows = verdict(cells, budget)
        if rows is None:
            raise RuntimeError(f"{cells}: {said}, and no number of rows")
        found = rates(rng, rows, cells, models, budget)
        decided = found["pass"] + found["fail"]
        table.append(
            {"cells": cells, "budget_percent": budget, "asked": rows, "decided_percent": round(decided, 2)}
        )
    return table


def _spin() -> None:
    while True:
        sum(range(10000))


@contextmanager
def busy() -> Iterator[None]:
    """Every core has a process that does nothing else."""
    context = get_context("spawn")
    spinning = [context.Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for each in spinning:
        each.start()
    try:
        yield
    finally:
        for each in spinning:
            each.kill()
            each.join()


def latency(runs: int) -> dict[str, Any]:
    """Each run is the criterion of `compress gate --max-latency-ratio 1`, on this machine."""
    model = ZOO / "digits_cnn" / "model.onnx"
    said: Counter[str] = Counter()
    sessions: Counter[int] = Counter()
    ratios = []
    with busy(), tempfile.TemporaryDirectory() as folder, LocalDevice() as device:
        copy = Path(folder) / "copy.onnx"
        copy.write_bytes(model.read_bytes())
        board = Board(device, load_profile("local"), (model, copy))
        feeds = next(
            iter(open_data(ZOO / "digits_cnn" / "test.npz", input_specs(load(model))).batches(1))
        ).feeds
        for run in range(runs):
            settings = Settings(seconds=0.5, seed=run)
            found, timed = judge_latency(
                partial(time_session, board, feeds, settings), 1.0, settings.confidence
            )
            said[found.verdict] += 1
            sessions[len(timed)] += 1
            ratios.append(found.found or 0.0)
            if run % 20 == 19:
                print(f"latency: {run + 1} runs, {dict(said)}", flush=True)
    return {
        "model": "digits_cnn", "runs": runs, "verdicts": dict(said), "sessions": dict(sessions),
        "lowest_ratio": round(min(ratios), 4), "highest_ratio": round(max(ratios), 4),
        "load_1min": round(os.getloadavg()[0], 1),
    }  # fmt: skip


PEAK = (
    "import resource, sys; from edgepress.compressor.cli.commands import execute; code = execute(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)


def speed() -> list[dict[str, Any]]:
    """Wall time and peak memory of the whole command, its start included."""
    table = []
    with tempfile.TemporaryDirectory() as folder:
        model = ZOO / "mnist_mlp" / "model.onnx"
        with np.load(ZOO / "mnist_mlp" / "test.npz") as arrays:
            rows = {name: arrays[name] for name in arrays.files}
        candidate = _nudged(model, Path(folder) / "candidate.onnx")
        for n in (10_000, 40_000):
            path = Path(folder) / f"{n}.npz"
            more: dict[str, Any] = {
                name: np.resize(array, (n, *array.shape[1:])) for name, array in rows.items()
            }
            np.savez(path, **more)
            words = ["gate", str(model), str(candidate), "--test", str(path), "--quiet"]
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", PEAK, *words],
                capture_output=True,
                text=True,
                check=False,
            )
            table.append(
                {
                    "rows": n,
                    "exit_code": done.returncode,
                    "seconds": round(time.monotonic() - started, 2),
                    "peak_kb": int(done.stdout.split()[-1]),
                    "file_bytes": path.stat().st_size,
                }
            )
            path.unlink()
    return table


def _nudged(model: Path, target: Path) -> Path:
    """A copy with other weights in the last digits, so that outputs differ."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            tensor.CopyFrom(
                numpy_helper.from_array((array * np.float32(1.001)).astype(np.float32), tensor.name)
            )
    onnx.save(proto, target)
    return target


PARTS = ("calibration", "bootstrap", "rows", "latency", "speed")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--models", type=int, default=40_000, help="candidates drawn for each cell")
    parser.add_argument("--runs", type=int, default=200, help="gates of two identical models")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found |= {"machine": asdict(describe()), "command": "python benchmarks/gate.py"}
    if "calibration" in options.only:
        table = calibration(options.models)
        found["calibration"] = {"models": options.models, **summary(table)}
        print(json.dumps(found["calibration"], indent=1))
    if "bootstrap" in options.only:
        found["bootstrap"] = bootstrap(2000)
    if "rows" in options.only:
        found["rows"] = rows_asked_for(2000)
    if "latency" in options.only:
        found["latency"] = latency(options.runs)
    if "speed" in options.only:
        found["speed"] = speed()
    write_json(found, RESULTS)


if __name__ == "__main__":
    main()
