"""Every test model of the onnx package through load, canonical form, export and recipes: none may crash or go wrong.

    python benchmarks/anymodel.py [--only REGEX] [--part K/N] [--out FILE]

Of each model (and of each with its weights made constants) the canonical form must give what onnxruntime gives for the
model as it came. Then each recipe runs on the data that the test ships: what comes out must be a valid model with the
same interface that runs, or the model is left alone with a reason. An exception that is none of `EdgepressError` is a
crash. Exit code 1 where anything crashed or is wrong.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx_models import Case, cases

from common import machine, shown_command, versions, write_json
from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.cli.host import CheckedEngine
from edgepress.compressor.equality import same_outputs
from edgepress.compressor.errors import DeviceError, EdgepressError
from edgepress.compressor.export.onnx import save, verify
from edgepress.compressor.finish import LOSSLESS
from edgepress.compressor.model import load
from edgepress.compressor.normalize import normalize
from edgepress.compressor.observe import Streamer
from edgepress.compressor.passes import (
    Cluster,
    Dynamic,
    Half,
    LowRank,
    Pass,
    Prune,
    Quantize,
    Separable,
    Shrink,
    StoreWeights,
    ThresholdReLU,
    WeightOnly,
)
from edgepress.compressor.passes.base import Context, Skipped
from edgepress.compressor.protocols import Array, Feeds, Runner
from edgepress.compressor.serialize import Serialized, serialize
from edgepress.compressor.shapes import seen_shapes
from edgepress.compressor.sites import find_sites

Outputs = Mapping[str, Array]

RECIPES: Mapping[str, Callable[[ir.Model], tuple[Pass, ...]]] = {
    "8 bits": lambda _: (Quantize(), StoreWeights(min_elements=2)),
    "4 bits": lambda _: (Quantize(weight_bits=4), StoreWeights(4, min_elements=2)),
    "low rank": lambda m: (
        LowRank(tuple((s.name, max(1, min(s.matrix().shape) // 2)) for s in find_sites(m))),
    ),
    "shrink": lambda m: (
        Shrink(tuple((g.name, max(1, len(g.units) // 2)) for g in groups_of(m, analyse(m))[0])),
    ),
    "8 bits at run time": lambda _: (Dynamic(min_elements=2),),
    "4 bits in blocks": lambda _: (WeightOnly(min_elements=2),),
    "half precision": lambda _: (Half(min_elements=2),),
    "separable, pruned, clustered": lambda _: (
        Separable(multiplier=1),
        Prune(min_elements=2),
        ThresholdReLU(quantile=0.1),
        Cluster(min_elements=2),
    ),
}
"""Each technique, told to do as much as it can."""

_T = TypeVar("_T")

FAULTS = ("crash", "wrong")


@dataclass
class Record:
    """What came of one model.

    Attributes:
        name: of the case.
        stages: stage or recipe → what came of it: a word, and behind a colon the reason.
        seconds: that it took.
    """

    name: str
    stages: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def faults(self) -> dict[str, str]:
        """Stages that crashed or went wrong."""
        return {stage: what for stage, what in self.stages.items() if what.startswith(FAULTS)}


def examine(case: Case, folder: Path) -> Record:
    """Take one model through everything.

    Args:
        case: the model and its data.
        folder: for its file.
    """
    record, started = Record(case.name), time.monotonic()
    file = folder / "model.onnx"
    file.write_bytes(case.model.SerializeToString())
    engine = CheckedEngine()
    told, feeds, expected = _original(engine, case)
    record.stages["original"] = told
    model = _guarded(record, "load", lambda: load(file))
    if model is not None:
        normal = _guarded(
            record, "canonical form", lambda: _canonical(record, model, engine, feeds, expected)
        )
        if normal is not None:
            for name, make in RECIPES.items():
                record.stages[name] = "left alone"
                _guarded(
                    record, name, lambda n=name, m=make: _apply(record, n, m, model, normal, feeds, expected)
                )
    record.seconds = time.monotonic() - started
    return record


def _guarded(record: Record, stage: str, work: Callable[[], _T]) -> _T | None:
    """The result of some work, or None where it was refused or failed, which is noted."""
    try:
        result = work()
    except EdgepressError as error:
        ours = "report this" in error.hint  # a check of our own that failed: nobody else's fault
        record.stages[stage] = f"{'wrong' if ours else 'refused'}: {error}"
        return None
    except Exception as error:  # that is what is looked for
        record.stages[stage] = f"crash: {type(error).__name__}: {error}"
        return None
    record.stages.setdefault(stage, "done")
    return result


def _original(engine: CheckedEngine, case: Case) -> tuple[str, list[Feeds], list[Outputs]]:
    """Whether onnxruntime runs the model as it came, on which feeds, and what it gives."""
    feeds = [{name: value for name, value in ins.items() if value is not None} for ins, _ in case.sets]
    if not all(isinstance(value, np.ndarray) for each in feeds for value in each.values()):
        return "not run: inputs that are no tensors", [], []
    try:
        runner = engine.load(case.model.SerializeToString())
        expected = [runner(each) for each in feeds]
        again = [runner(each) for each in feeds]
    except DeviceError as error:
        return f"not run: {error}", [], []
    if not all(isinstance(value, np.ndarray) for each in expected for value in each.values()):
        return "not compared: outputs that are no tensors", [], []
    if not all(same_outputs(one, other, 0.0) for one, other in zip(expected, again, strict=True)):
        return "not compared: random outputs", [], []
    return ("runs", feeds, expected) if feeds else ("not compared: no data", [], [])


def _canonical(
    record: Record,
    model: ir.Model,
    engine: CheckedEngine,
    feeds: Sequence[Feeds],
    expected: Sequence[Outputs],
) -> ir.Model:
    """The canonical form, compared with what came."""

    def check(candidate: ir.Model) -> bool:
        try:
            return _agrees(engine.load(serialize(candidate)), feeds, expected)
        except DeviceError:
            return False

    if feeds:
        found = normalize(model, check, lambda candidate: seen_shapes(candidate, engine, feeds))
    else:
        found = normalize(model)
    if undone := [f"{s.name}: {s.why}" for s in found.steps if s.why.startswith("rolled back")]:
        record.stages["steps undone"] = "; ".join(undone)
    saved = save(found.model)
    verify(model, saved)
    same = not feeds or _agrees(engine.load(saved), feeds, expected)
    record.stages["canonical form"] = ("equal" if feeds else "valid") if same else "wrong: other outputs"
    return found.model


def _agrees(runner: Runner, feeds: Sequence[Feeds], expected: Sequence[Outputs]) -> bool:
    return all(same_outputs(want, runner(fed), LOSSLESS) for fed, want in zip(feeds, expected, strict=True))


def _apply(
    record: Record, name: str, make: Callable[[ir.Model], tuple[Pass, ...]],
    source: ir.Model, normal: ir.Model, feeds: Sequence[Feeds], expected: Sequence[Outputs],
) -> None:  # fmt: skip
    """Run a recipe on a copy, and look at what comes out."""
    engine = CheckedEngine()
    stream = Streamer(engine, normal, lambda: iter(feeds)) if feeds else None
    rows = sum(next((len(a) for a in each.values() if a.ndim), 1) for each in feeds)
    context = Context(stream, seed=0, rows=rows)
    model, modified, skipped = normal.clone(), False, list[Skipped]()
    for step in make(normal):
        outcome = step.apply(model, context)
        modified |= outcome.modified
        skipped += outcome.skipped
    if not modified:
        reasons = sorted({each.reason for each in skipped})
        record.stages[name] = (
            f"left alone: {reasons[0]}" if reasons else "left alone: no weights that it is for"
        )
        return
    saved = save(model)
    verify(source, saved)
    onnx.checker.check_model(saved, full_check=True)
    record.stages[name] = _judged(engine, saved, feeds, expected) if feeds else "changed, valid"


def _judged(
    engine: CheckedEngine, saved: Serialized, feeds: Sequence[Feeds], expected: Sequence[Outputs]
) -> str:
    """Whether a changed model runs and gives outputs of the same kind; how far the floats moved at most."""
    try:
        runner = engine.load(saved)
        found = [runner(fed) for fed in feeds]
    except DeviceError as error:
        return f"wrong: {error}"
    far = 0.0
    for want, got in zip(expected, found, strict=True):
        for name, array in want.items():
            other = got[name]
            if other.shape != array.shape or other.dtype != array.dtype:
                return f"wrong: {name!r} is {other.dtype}{other.shape}, not {array.dtype}{array.shape}"
            if array.dtype.kind != "f":
                continue
            wide, new = array.astype(np.float64), other.astype(np.float64)
            fine = np.isfinite(wide)
            if not np.isfinite(new[fine]).all():
                return f"wrong: {name!r} is not finite"
            far = max(
                far, float(np.linalg.norm(new[fine] - wide[fine]) / max(np.linalg.norm(wide[fine]), 1e-12))
            )
    return f"changed by {'more than half' if far > 0.5 else 'more than a tenth' if far > 0.1 else 'a tenth at most'}"


def kind_of(what: str) -> str:
    """An outcome without names and numbers, so that equal ones can be counted."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "…", what.splitlines()[0] if what else what)
    return re.sub(r"-?\d+(\.\d+)?", "n", re.sub(r"\([^)]*\)|\[[^\]]*\]", "", text))[:150]


def counted(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    """How often each stage had which outcome, the most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        for stage, what in record.stages.items():
            counts.setdefault(stage, Counter())[kind_of(what)] += 1
    return {stage: dict(counter.most_common()) for stage, counter in counts.items()}


def run(chosen: Iterable[Case]) -> Iterator[Record]:
    """Examine cases, one after another."""
    with tempfile.TemporaryDirectory() as folder:
        for case in chosen:
            yield examine(case, Path(folder))


def main(words: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description="Take onnx's test models through everything.")
    parser.add_argument("--only", default="", help="regular expression of names")
    parser.add_argument("--part", default="1/1", help="K/N: every N-th model from the K-th")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    given = parser.parse_args(words)
    os.environ.setdefault("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")  # the newest opsets, too
    part, parts = map(int, given.part.split("/"))
    chosen = [case for case in cases() if re.search(given.only, case.name)][part - 1 :: parts]
    about = {
        "command": shown_command("python benchmarks/anymodel.py", words or sys.argv[1:]),
        "machine": machine(),
    }
    started = time.monotonic()
    records = []
    for record in run(chosen):
        records.append(record)
        for stage, what in record.faults.items():
            print(f"{record.name}: {stage}: {what[:300]}")
    counts = counted(records)
    for stage, each in counts.items():
        print(f"\n{stage}: {sum(each.values())}")
        for what, count in each.items():
            print(f"{count:6} {what}")
    faults = {record.name: record.faults for record in records if record.faults}
    print(f"\n{len(records)} models in {time.monotonic() - started:.0f} s; {len(faults)} with faults")
    if given.out:
        document = {
            **about,
            "versions": versions(),
            "models": len(records),
            "faults": faults,
            "counts": counts,
        }
        write_json(document, given.out)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
