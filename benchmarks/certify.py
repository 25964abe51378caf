"""Certificates tried on the zoo: do bounds hold, how many weights go under them, which classes provably stay.

    python benchmarks/certify.py [--parts soundness again share top1] [--models NAME,NAME] [--images N] [--ideas IDEA …]

`soundness`: each net against itself with weights on 8-bit grids and the least tenth of them zero. The bound for all
inputs between the least and the largest value of its samples, in float32, is held against the largest change that
onnxruntime shows on 10 000 random inputs (half of them corners of the box) and on 200 that were searched for: corners
whose elements are flipped in groups, a flip being kept where the change grows. Large nets get fewer of both; the record
says how many.

`again`: the plain bound, in exact arithmetic, of that version and of the 8-bit one, beside the same in whole numbers by
the code that `--check` has for itself.

`share`: weights that go at 1 % of each logit's observed range, box [0, 1], idea by idea, plain to tight; with ranges
observed at every layer; each with the score on the test rows.

`top1`: of the test images (`--images`: the first so many) those whose class is provably the same in the net and in its
8-bit version (weights and activations, by the pass `quantize`), for all inputs within one grey level.

Numbers go, with machine and versions, to `benchmarks/results/certify.json`; each row has its command and how much
memory that had taken by then. Rows that were stored by older code have neither.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from common import known_models, samples, shown_command, write_json, zoo_folder
from edgepress.compressor.certify import recheck
from edgepress.compressor.certify.affine import Affine
from edgepress.compressor.certify.backward import tightened
from edgepress.compressor.certify.certificate import TIGHTEN_WORK, bound, proved_ranges
from edgepress.compressor.certify.choose import PLAIN, TIGHT, Chosen, Method, Task, choose
from edgepress.compressor.certify.intervals import UNIT32, Interval
from edgepress.compressor.certify.nodepair import TooHardError
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

PARTS = ("soundness", "again", "share", "top1")
RESULTS = Path(__file__).parent / "results" / "certify.json"
RANDOM, SEARCHED, GENERATIONS = 10_000, 200, 20
RANDOM_WORK, SEARCHED_WORK = 4e11, 8e9
"""Multiply-accumulates that all random inputs, or one step of all searched ones, may cost one net."""
NUMBERS = 10_000_000
"""Numbers that inputs of one run may hold."""
IDEAS: Mapping[str, tuple[Method, bool]] = {
    "plain: as described": (PLAIN, False),
    "sorted to the last": (Method(), False),
    "and biases re-centred": (Method(centred=True), False),
    "and linear bounds": (Method(centred=True, backward=True), False),
    "and ranges behind pools by hulls": (Method(centred=True, backward=True), True),
    "and prices": (replace(TIGHT, signs=False, exchanged=False), True),
    "and all signs at once": (replace(TIGHT, exchanged=False), True),
    "and exchanged (tight)": (TIGHT, True),
}
"""What is done, and whether ranges of the original are bounded by more than intervals."""


class Case:
    """A net of the zoo with its samples."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.model = normalize(load(folder / "model.onnx", shapes_of(folder))).model
        self.program = read(self.model)
        self.data, self.test = (
            open_data(str(folder.parent / where), input_specs(self.model)) for where in samples(folder)
        )

    @property
    def work(self) -> float:
        """Multiply-accumulates of one row."""
        ranges = self.program.ranges(self.box(0.0, 0.0))
        linear = [(s.output, s.rule.op.terms) for s in self.program.steps if isinstance(s.rule, Affine)]
        return float(sum(np.prod(ranges[name].shape) * terms for name, terms in linear))

    @property
    def rows_together(self) -> int:
        """How many rows the net takes at once, at most."""
        first = (input_specs(self.model)[0].shape or (None,))[0]
        return first if isinstance(first, int) else NUMBERS

    def rows(self, test: bool = False) -> Array:
        """All samples, [n, *row]."""
        parts = (self.test if test else self.data).batches(256, with_labels=False)
        return np.concatenate([batch.feeds[self.program.input] for batch in parts])

    def box(self, low: float, high: float) -> Interval:
        """The same for every element."""
        return Interval(np.full((1, *self.program.row), low), np.full((1, *self.program.row), high))


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Sizes for an input whose own are not known: those of its samples."""
    inputs = input_specs(load(folder / "model.onnx"))
    sizes = inputs[0].shape or ()
    known = all(isinstance(n, int) for n in sizes[1:])
    if known or len(inputs) != 1 or not (folder / "calib.npz").exists():
        return None
    with np.load(folder / "calib.npz", allow_pickle=False) as file:
        (rows,) = (file[name] for name in file.files if name not in ("y", "labels"))
    return {inputs[0].name: (1, *rows.shape[1:])}


def outputs(run: Runner, name: str, x: Array, most: int) -> Array:
    """All outputs of a batch side by side, [n, K]; at most so many rows together."""
    parts = []
    at_once = min(most, rows_at_once(x.shape[1:]))
    for start in range(0, len(x), at_once):
        found = run({name: x[start : start + at_once].astype(np.float32)})
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


def rows_at_once(row: tuple[int, ...]) -> int:
    """How many inputs run together."""
    return max(1, min(100, NUMBERS // int(np.prod(row)) // 10))


def inputs(box: Interval, count: int, rng: np.random.Generator) -> Iterator[Array]:
    """Random ones, uniform and corners in turns."""
    batch = rows_at_once(box.shape[1:])
    for number in range(count // batch):
        share = rng.random((batch, *box.shape[1:]))
        if number % 2:
            share = (share < rng.random((batch, *(1,) * (len(box.shape) - 1)))).astype(float)
        yield inside(box, share)


def inside(box: Interval, share: Array) -> Array:
    """Points of a box in float32, none of them outside."""
    x = (box.lo + share * (box.hi - box.lo)).astype(np.float32)
    return np.asarray(np.clip(x, box.lo.astype(np.float32), box.hi.astype(np.float32)))


class Seen:
    """Least and largest change of each output so far, [K]."""

    def __init__(self, case: Case, changed: ir.Model) -> None:
        self.name, self.most = case.program.input, case.rows_together
        self.runs = [OrtEngine().load(to_bytes(model)) for model in (case.model, changed)]
        self.lo: Array | float = np.inf
        self.hi: Array | float = -np.inf
        self.count = 0

    def change(self, x: Array) -> Array:
        """Of these inputs, [n, K]; counted."""
        one, other = (outputs(run, self.name, x, self.most) for run in self.runs)
        moved = other - one
        self.lo, self.hi = np.minimum(self.lo, moved.min(0)), np.maximum(self.hi, moved.max(0))
        self.count += len(x)
        return moved


def searched(seen: Seen, box: Interval, count: int, rng: np.random.Generator) -> None:
    """Corners whose elements are flipped in groups; a flip is kept where the change grows."""
    ones = (1,) * (len(box.shape) - 1)
    share = (rng.random((count, *box.shape[1:])) < rng.random((count, *ones))) * 1.0
    best = np.zeros(count)
    for _ in range(GENERATIONS):
        flips = rng.random(share.shape) < rng.choice([0.3, 0.1, 0.03, 0.01], (count, *ones))
        tried = np.where(flips & (best > 0).reshape(-1, *ones), 1 - share, share)
        size = np.abs(seen.change(inside(box, tried))).max(1)
        better = size > best
        share[better], best[better] = tried[better], size[better]


def soundness(case: Case, work: float) -> dict[str, Any]:
    """The largest change seen beside the largest that is proved, output by output."""
    x = case.rows()
    box = case.box(float(x.min()), float(x.max()))
    changed = coarser(case.model)
    started = time.monotonic()
    found = {}
    for tight in (False, True):
        known = tightened(case.program, box, UNIT32, work) if tight else None
        bounds = bound(case.program, read(changed), box, float32=True, tight=tight, known=known)
        found[tight] = [
            np.concatenate([getattr(p, end).reshape(-1) for p in bounds.changes]) for end in ("lo", "hi")
        ]
    seconds = time.monotonic() - started
    rng, seen = np.random.default_rng(0), Seen(case, changed)
    for batch in inputs(box, min(RANDOM, int(RANDOM_WORK / case.work)), rng):
        seen.change(batch)
    random = seen.count
    count = min(SEARCHED, int(SEARCHED_WORK / case.work))
    searched(seen, box, count, rng)
    holds = all((lo <= seen.lo).all() and (seen.hi <= hi).all() for lo, hi in found.values())
    largest = {tight: float(max(-lo.min(), hi.max())) for tight, (lo, hi) in found.items()}
    return {
        "holds": bool(holds),
        "random_inputs": random,
        "searched_inputs": count,
        "search_steps": GENERATIONS,
        "seen_change_max": float(max(-np.min(seen.lo), np.max(seen.hi))),
        "plain_change_max": largest[False],
        "tight_change_max": largest[True],
        "bound_seconds": seconds,
        "ranges_work": work,
    }


def accuracy(case: Case, model: ir.Model) -> float:
    """Right answers on the test rows, in percent."""
    run = OrtEngine().load(to_bytes(model))
    found = outputs(run, case.program.input, case.rows(test=True), case.rows_together)
    return float(100 * (found.argmax(1) == case.test.labels).mean())


def share(case: Case, ideas: Sequence[str]) -> dict[str, Any]:
    """Weights that go under 1 %, idea by idea, proved and observed."""
    box = case.box(0.0, 1.0)
    rows = case.rows()
    parts = (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE))
    seen = observed_ranges(case.program, parts)
    limit = 0.01 * np.concatenate(
        [(seen[name].hi - seen[name].lo).reshape(-1) for name in case.program.outputs]
    )
    record: dict[str, Any] = {"score_before": accuracy(case, case.model)}

    def tried(label: str, task: Task) -> None:
        started, cpu = time.monotonic(), time.process_time()
        found: Chosen = choose(task, np.random.default_rng(0))
        changed = case.model.clone()
        counts = rewrite(changed, found)
        record[label] = {
            "share_reset": found.count / found.of,
            "weights_reset": counts,
            "largest_change_of_limit": float((found.change.magnitude / limit).max()),
            "score": accuracy(case, changed),
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - cpu,
        }
        print(case.name, label, record[label], flush=True)

    for label in ideas:
        method, tight = IDEAS[label]
        started = time.process_time()
        ranges = proved_ranges(case.program, box, 0.0, tight=tight)
        record["ranges_cpu_seconds"] = time.process_time() - started
        tried(label, Task(case.program, box, ranges, limit, method))
    if list(ideas) != list(IDEAS):
        return record
    tried(
        "observed ranges, not proved",
        Task(case.program, seen[case.program.input], seen, limit, TIGHT),
    )
    return record


def eight_bit(case: Case) -> ir.Model:
    """Weights and activations in 8 bits, by the pass `quantize`."""

    def batches() -> Iterator[dict[str, Array]]:
        for batch in case.data.batches(32, with_labels=False):
            yield batch.feeds

    changed = case.model.clone()
    context = Context(stream=Streamer(OrtEngine(), case.model, batches), rows=case.data.rows)
    Quantize().apply(changed, context)
    return normalize(changed).model


def again(case: Case) -> dict[str, Any]:
    """Plain intervals beside the same in whole numbers, by the code of `--check`, for two versions of the net."""
    x = case.rows()
    box = case.box(float(x.min()), float(x.max()))
    record: dict[str, Any] = {}
    for label, changed in (("coarser weights", coarser(case.model)), ("8 bits", eight_bit(case))):
        fast = bound(case.program, read(changed), box, float32=False, tight=False).changes
        started = time.process_time()
        try:
            exact = [part.fractions() for part in recheck.changes(case.model, changed, box)]
        except TooHardError as error:
            record[label] = {"too_hard": str(error)}
            continue
        seconds = time.process_time() - started
        ends = [(low, high) for lo, hi in exact for low, high in zip(lo, hi, strict=True)]
        outer = [np.concatenate([getattr(part, end).reshape(-1) for part in fast]) for end in ("lo", "hi")]
        record[label] = {
            "holds": all(Fraction(a) <= b for a, (b, _) in zip(outer[0], ends, strict=True))
            and all(a <= Fraction(b) for b, (_, a) in zip(outer[1], ends, strict=True)),
            "exact_change_max": float(max(max(-low, high) for low, high in ends)),
            "plain_change_max": float(max(-outer[0].min(), outer[1].max())),
            "cpu_seconds": seconds,
        }
    return record


def top1(case: Case, images: int) -> dict[str, Any]:
    """Test images whose class provably stays within one grey level."""
    changed = eight_bit(case)
    x = case.rows(test=True)[:images].astype(np.float64)
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


def conditions() -> dict[str, Any]:
    """What is stored with each figure: the command, and the most memory that it took so far."""
    return {
        "command": shown_command("python benchmarks/certify.py", sys.argv[1:]),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def covered(folder: Path) -> Case | str:
    """A case, or why there is none."""
    try:
        return Case(folder)
    except EdgepressError as error:
        return str(error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", help="comma-separated; default: all for soundness and again, else two")
    parser.add_argument(
        "--ranges-work", type=float, default=TIGHTEN_WORK, help="of `soundness`: see certificate.TIGHTEN_WORK"
    )
    parser.add_argument("--ideas", nargs="+", choices=list(IDEAS), default=list(IDEAS), help="of `share`")
    parser.add_argument("--images", type=int, default=10_000, help="of `top1`, at most; default: all")
    given = parser.parse_args()
    zoo = zoo_folder()
    named = given.models.split(",") if given.models else None
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    parts: dict[str, Callable[[Case], dict[str, Any]]] = {
        "soundness": partial(soundness, work=given.ranges_work),
        "again": again,
        "share": partial(share, ideas=given.ideas),
        "top1": partial(top1, images=given.images),
    }
    for part in given.parts:
        wanted = named or (
            known_models(zoo) if part in ("soundness", "again") else ["mnist_lenet5", "fmnist_resnet8"]
        )
        for name in wanted:
            case = covered(zoo / name)
            rows = record.setdefault(part, {})
            rows[name] = {"not_covered": case} if isinstance(case, str) else parts[part](case) | conditions()
            print(part, name, rows[name], flush=True)
            record |= {"threads": 1, "environment": asdict(describe())}
            write_json(record, RESULTS)


if __name__ == "__main__":
    main()
