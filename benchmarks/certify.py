"""Certificates tried on the zoo: do bounds hold, how many weights go under them, which classes provably stay.

    python benchmarks/certify.py [--parts soundness share top1] [--models NAME,NAME]

`soundness`: each net against itself with weights on 8-bit grids and the least tenth of them zero. The bound for all
inputs between the least and the largest value of its samples, in float32, is held against the largest change that
onnxruntime shows on 10 000 random inputs (half of them corners of the box) and on 200 that were searched for: corners
whose elements are flipped in groups, a flip being kept where the change grows.

`share`: weights that go at 1 % of each logit's observed range, box [0, 1], idea by idea, plain to tight; with ranges
observed at every layer; each with the score on the test rows.

`top1`: of the first 200 test images those whose class is provably the same in the net and in its 8-bit version
(weights and activations, by the pass `quantize`), for all inputs within one grey level.

Numbers go, with machine, versions and command, to `benchmarks/results/certify.json`.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from common import known_models, write_json, zoo_folder
from edgepress.compressor.certify.certificate import bound, proved_ranges
from edgepress.compressor.certify.choose import Chosen, Method, Task, choose
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.observed import observed_ranges
from edgepress.compressor.certify.program import read
from edgepress.compressor.certify.rewrite import rewrite
from edgepress.compressor.certify.top1 import ROWS_AT_ONCE, margins
from edgepress.compressor.data import open_data
from edgepress.compressor.errors import EdgepressError
from edgepress.compressor.model import input_specs, load, to_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.observe import Streamer
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.protocols import Array, Runner
from edgepress.compressor.sites import find_sites, replace_constant
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.environment import describe

RESULTS = Path(__file__).parent / "results" / "certify.json"
RANDOM, SEARCHED, GENERATIONS = 10_000, 200, 20
IMAGES = 200
"""Test images of `top1`: the first so many."""
IDEAS: Mapping[str, Method] = {
    "plain: as described": Method(segments=True, centred=False, backward=False, rounds=1),
    "sorted to the last": Method(segments=False, centred=False, backward=False, rounds=1),
    "and biases re-centred": Method(segments=False, centred=True, backward=False, rounds=1),
    "and linear bounds": Method(segments=False, centred=True, backward=True, rounds=1),
    "and prices (tight)": Method(segments=False, centred=True, backward=True, rounds=6),
}


class Case:
    """A net of the zoo with its samples."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.model = normalize(load(folder / "model.onnx")).model
        self.program = read(self.model)
        self.data = open_data(str(folder / "calib.npz"), input_specs(self.model))
        self.test = open_data(str(folder / "test.npz"), input_specs(self.model))

    def rows(self, test: bool = False) -> Array:
        """All samples, [n, *row]."""
        parts = (self.test if test else self.data).batches(256, with_labels=False)
        return np.concatenate([batch.feeds[self.program.input] for batch in parts])

    def box(self, low: float, high: float) -> Interval:
        """The same for every element."""
        return Interval(np.full((1, *self.program.row), low), np.full((1, *self.program.row), high))


def outputs(run: Runner, name: str, x: Array) -> Array:
    """All outputs of a batch side by side, [n, K]."""
    parts = []
    for start in range(0, len(x), 100):
        found = run({name: x[start : start + 100].astype(np.float32)})
        parts.append(np.concatenate([y.reshape(len(y), -1) for y in found.values()], 1).astype(np.float64))
    return np.concatenate(parts)


def coarser(model: ir.Model) -> ir.Model:
    """Weights on 8-bit grids, and the least tenth of them zero."""
    changed = model.clone()
    for site in find_sites(changed):
        step = np.abs(site.weight).max() / 127 or 1.0
        weight = np.round(site.weight / step) * step
        weight[np.abs(weight) <= np.quantile(np.abs(weight), 0.1)] = 0.0
        replace_constant(site.node, 1, weight.astype(np.float32))
    return changed


def inputs(box: Interval, rng: np.random.Generator) -> Iterator[Array]:
    """Random ones, uniform and corners in turns."""
    for number in range(RANDOM // 100):
        share = rng.random((100, *box.shape[1:]))
        if number % 2:
            share = (share < rng.random((100, *(1,) * (len(box.shape) - 1)))).astype(float)
        yield inside(box, share)


def inside(box: Interval, share: Array) -> Array:
    """Points of a box in float32, none of them outside."""
    x = (box.lo + share * (box.hi - box.lo)).astype(np.float32)
    return np.asarray(np.clip(x, box.lo.astype(np.float32), box.hi.astype(np.float32)))


def soundness(case: Case) -> dict[str, Any]:
    """The largest change seen beside the largest that is proved, output by output."""
    x = case.rows()
    box = case.box(float(x.min()), float(x.max()))
    changed = coarser(case.model)
    started = time.monotonic()
    found = {}
    for tight in (False, True):
        bounds = bound(case.program, read(changed), box, float32=True, tight=tight)
        found[tight] = [
            np.concatenate([getattr(p, end).reshape(-1) for p in bounds.changes]) for end in ("lo", "hi")
        ]
    seconds = time.monotonic() - started
    runs = [OrtEngine().load(to_bytes(model)) for model in (case.model, changed)]

    def change(x: Array) -> Array:
        one, other = (outputs(run, case.program.input, x) for run in runs)
        return other - one

    rng = np.random.default_rng(0)
    seen_lo, seen_hi = np.full(found[True][0].shape, np.inf), np.full(found[True][0].shape, -np.inf)
    count = 0
    for x in inputs(box, rng):
        moved = change(x)
        seen_lo, seen_hi, count = (
            np.minimum(seen_lo, moved.min(0)),
            np.maximum(seen_hi, moved.max(0)),
            count + len(x),
        )
    share = (
        rng.random((SEARCHED, *case.program.row)) < rng.random((SEARCHED, *(1,) * len(case.program.row)))
    ) * 1.0
    best = np.zeros(SEARCHED)
    for _ in range(GENERATIONS):
        flips = rng.random(share.shape) < rng.choice(
            [0.3, 0.1, 0.03, 0.01], (SEARCHED, *(1,) * len(case.program.row))
        )
        tried = np.where(flips & (best > 0).reshape(-1, *(1,) * len(case.program.row)), 1 - share, share)
        moved = change(inside(box, tried))
        seen_lo, seen_hi = np.minimum(seen_lo, moved.min(0)), np.maximum(seen_hi, moved.max(0))
        better = np.abs(moved).max(1) > best
        share[better], best[better] = tried[better], np.abs(moved).max(1)[better]
    holds = all((lo <= seen_lo).all() and (seen_hi <= hi).all() for lo, hi in found.values())
    return {
        "holds": bool(holds),
        "random_inputs": count,
        "searched_inputs": SEARCHED,
        "search_steps": GENERATIONS,
        "seen_change_max": float(max(-seen_lo.min(), seen_hi.max())),
        "plain_change_max": float(max(-found[False][0].min(), found[False][1].max())),
        "tight_change_max": float(max(-found[True][0].min(), found[True][1].max())),
        "bound_seconds": seconds,
    }


def accuracy(case: Case, model: ir.Model) -> float:
    """Right answers on the test rows, in percent."""
    found = outputs(OrtEngine().load(to_bytes(model)), case.program.input, case.rows(test=True))
    return float(100 * (found.argmax(1) == case.test.labels).mean())


def share(case: Case) -> dict[str, Any]:
    """Weights that go under 1 %, idea by idea, proved and observed."""
    box = case.box(0.0, 1.0)
    seen = observed_ranges(case.program, (x[None] for x in case.rows()))
    limit = 0.01 * np.concatenate(
        [(seen[name].hi - seen[name].lo).reshape(-1) for name in case.program.outputs]
    )
    rows: dict[str, Any] = {"score_before": accuracy(case, case.model)}

    def tried(label: str, task: Task) -> None:
        started, cpu = time.monotonic(), time.process_time()
        found: Chosen = choose(task, np.random.default_rng(0))
        changed = case.model.clone()
        counts = rewrite(changed, found)
        rows[label] = {
            "share_reset": found.count / found.of,
            "weights_reset": counts,
            "largest_change_of_limit": float((found.change.magnitude / limit).max()),
            "score": accuracy(case, changed),
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - cpu,
        }
        print(case.name, label, rows[label], flush=True)

    for label, method in IDEAS.items():
        ranges = proved_ranges(case.program, box, 0.0, tight=method.backward)
        tried(label, Task(case.program, box, ranges, limit, method))
    tried(
        "observed ranges, not proved",
        Task(case.program, seen[case.program.input], seen, limit, IDEAS["and prices (tight)"]),
    )
    return rows


def top1(case: Case) -> dict[str, Any]:
    """Test images whose class provably stays within one grey level."""

    def batches() -> Iterator[dict[str, Array]]:
        for batch in case.data.batches(32, with_labels=False):
            yield batch.feeds

    changed = case.model.clone()
    context = Context(stream=Streamer(OrtEngine(), case.model, batches), rows=case.data.rows)
    Quantize().apply(changed, context)
    changed = normalize(changed).model
    x = case.rows(test=True)[:IMAGES].astype(np.float64)
    started, cpu = time.monotonic(), time.process_time()

    def boxes() -> Iterator[tuple[Array, Interval]]:
        for start in range(0, len(x), ROWS_AT_ONCE):
            rows = x[start : start + ROWS_AT_ONCE]
            near = Interval(np.nextafter(rows - 1 / 255, -np.inf), np.nextafter(rows + 1 / 255, np.inf))
            yield rows, Interval(np.clip(near.lo, 0, 1), np.clip(near.hi, 0, 1))

    found = margins((case.program, read(changed)), boxes())
    return {
        "rows": len(x),
        "share_certified": found.share,
        "median_margin": float(np.median(found.least)),
        "score_8bit": accuracy(case, changed),
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu,
    }


def covered(folder: Path) -> Case | str:
    """A case, or why there is none."""
    if not (folder / "calib.npz").exists():
        return "no npz samples"
    try:
        return Case(folder)
    except EdgepressError as error:
        return str(error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=("soundness", "share", "top1"), default=["soundness", "share", "top1"]
    )
    parser.add_argument("--models", help="comma-separated; default: all for soundness, else two")
    given = parser.parse_args()
    zoo = zoo_folder()
    named = given.models.split(",") if given.models else None
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    parts = {"soundness": soundness, "share": share, "top1": top1}
    for part in given.parts:
        wanted = named or (known_models(zoo) if part == "soundness" else ["mnist_lenet5", "fmnist_resnet8"])
        for name in wanted:
            case = covered(zoo / name)
            rows = record.setdefault(part, {})
            rows[name] = {"not_covered": case} if isinstance(case, str) else parts[part](case)
            print(part, name, rows[name], flush=True)
            record |= {
                "command": "python benchmarks/certify.py",
                "threads": 1,
                "environment": asdict(describe()),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
            write_json(record, RESULTS)


if __name__ == "__main__":
    main()
