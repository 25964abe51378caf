"""What `compress certify` does: chooses weights, bounds the difference of two files, proves a certificate again."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgepress.compressor.certify import certificate as proofs
from edgepress.compressor.certify.certificate import Box, Certificate, Top1
from edgepress.compressor.certify.choose import METHODS, Task, choose
from edgepress.compressor.certify.intervals import UNIT32, Interval
from edgepress.compressor.certify.observed import hull_of, observed_ranges, with_margin
from edgepress.compressor.certify.program import Program
from edgepress.compressor.certify.rewrite import rewrite
from edgepress.compressor.certify.top1 import ROWS_AT_ONCE, margins
from edgepress.compressor.cli.certify_options import Net, Options
from edgepress.compressor.data import Dataset, open_data
from edgepress.compressor.errors import DataError, UsageError
from edgepress.compressor.export.onnx import save
from edgepress.compressor.model import input_specs
from edgepress.compressor.outdir import staged
from edgepress.compressor.protocols import Array, Tell
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report.build import MODEL_FILE, versions
from edgepress.compressor.serialize import write


def box_of(net: Net, options: Options) -> tuple[Interval, Box]:
    """The inputs, and how the certificate tells of them."""
    words = str(options.given).split(",")
    shape = (1, *net.program.row)
    if len(words) == 2:
        try:
            low, high = map(float, words)
        except ValueError:
            raise UsageError(f"--box {options.given}: these are no numbers.", "Write --box 0,1.") from None
        if not -np.inf < low <= high < np.inf:
            raise UsageError(f"--box {options.given}: the least comes first.", "Write --box 0,1.")
        return Interval(np.full(shape, low), np.full(shape, high)), Box(source="given", low=low, high=high)
    seen = with_margin(
        hull_of(net.rows(open_data(str(options.given), input_specs(net.source)))), options.margin
    )
    told = Box(
        source="statistical", low=float(seen.lo.min()), high=float(seen.hi.max()), margin=options.margin
    )
    return seen, told


def limits_of(net: Net, options: Options) -> Array | None:
    """Of each element of each output, [K]."""
    if options.limit is None:
        return None
    number, relative = options.limit
    program = net.program
    if not relative:
        point = program.ranges(Interval(*2 * (np.zeros((1, *program.row)),)))
        return np.full(sum(int(np.prod(point[name].shape[1:])) for name in program.outputs), number)
    seen = observed_ranges(program, net.rows(_required(net.samples(options.data))))
    widths = np.concatenate([(seen[name].hi - seen[name].lo).reshape(-1) for name in program.outputs])
    if not (widths > 0).all():
        raise DataError(
            "An output is the same for all samples of --data; a share of its range is 0.", "Add samples."
        )
    return np.asarray(number * widths)


def _required(data: Dataset | None) -> Dataset:
    if data is None:
        raise UsageError("--data is missing.", "Give samples with --data.")
    return data


def known_ranges(net: Net, box: Interval, options: Options) -> tuple[Interval, dict[str, Interval]]:
    """Box and ranges of the original's values: proved, or observed."""
    if options.ranges == "observed":
        seen = observed_ranges(net.program, net.rows(_required(net.samples(options.data))))
        return seen[net.program.input], seen
    unit = UNIT32 if options.arithmetic == "float32" else 0.0
    return box, dict(proofs.proved_ranges(net.program, box, unit, tight=options.tight))


def pruned(original: Net, options: Options, force: bool, tell: Tell) -> Certificate:
    """Choose weights, write the model, and bound what was written."""
    tell("ranges", 0.0, "")
    box, told = box_of(original, options)
    limit = limits_of(original, options)
    if limit is None:
        raise UsageError("--limit is missing.", "Add --limit 1%.")
    if options.out is None or not any(step.tunable for step in original.program.steps):
        raise UsageError(
            "The model has no weights that may become zero.", "Compare it with a candidate instead."
        )
    inside, known = known_ranges(original, box, options)
    task = Task(original.program, inside, known, limit, METHODS[options.method])
    found = choose(task, np.random.default_rng(options.seed), lambda detail: tell("choose", 0.0, detail))
    changed = original.canonical.clone()
    counts = rewrite(changed, found)
    inputs = [options.model, *(Path(str(p)) for p in (options.data, options.given) if p and Path(p).exists())]
    with staged(options.out, force, inputs) as folder:
        write(save(changed), folder / MODEL_FILE)
        tell("bound", 0.0, "")
        candidate = Net.of(folder / MODEL_FILE, {})
        made = proof(original, candidate, (inside, told), limit, known, options, tell)
        made = made.model_copy(update={"weights_reset": counts, "share_reset": found.count / found.of})
        _fill(folder, made, inside, options)
    return made


def compared(original: Net, options: Options, force: bool, tell: Tell) -> Certificate:
    """Bound the difference of two models; with --out the certificate is written."""
    if options.candidate is None:
        raise UsageError("CANDIDATE is missing.", "Name the changed model.")
    candidate = Net.of(options.candidate, options.shapes)
    tell("ranges", 0.0, "")
    box, told = box_of(original, options)
    limit = limits_of(original, options)
    made = proof(original, candidate, (box, told), limit, None, options, tell)
    if options.out is not None:
        with staged(options.out, force, [options.model, options.candidate]) as folder:
            _fill(folder, made, box, options)
    return made


def proof(
    original: Net,
    candidate: Net,
    where: tuple[Interval, Box],
    limit: Array | None,
    known: dict[str, Interval] | None,
    options: Options,
    tell: Tell,
) -> Certificate:
    """The certificate of two files."""
    box, told = where
    tell("bound", 0.0, "")
    observed = options.ranges == "observed"
    seen = None if known is None else renamed(original.program, candidate.program, known)
    bounds = proofs.bound(
        original.program,
        candidate.program,
        box,
        float32=options.arithmetic == "float32",
        tight=options.tight,
        known=seen,
    )
    made = Certificate(
        tool_version=versions()["edgepress"],
        kind="observed" if observed else "certified",
        arithmetic="float32" if options.arithmetic == "float32" else "exact",
        compared="together" if bounds.together else "apart",
        method="tight" if options.tight else "plain",
        original=original.file,
        candidate=candidate.file,
        box=told,
        limit=None if options.limit is None else _said(options.limit),
        certified_change_max=None if observed else bounds.largest,
        observed_change_max=bounds.largest if observed else None,
        share_reset=None,
        weights_reset={},
        outputs=bounds.rows(original.program.outputs, limit),
    )
    return (
        made
        if options.test is None
        else made.model_copy(update={"top1": _top1(original, candidate, options, tell)})
    )


def renamed(original: Program, candidate: Program, known: dict[str, Interval]) -> dict[str, Interval] | None:
    """Ranges by the candidate's names, where the two have the same steps; saving a model shortens names."""
    if len(original.steps) != len(candidate.steps):
        return None
    pairs = zip(original.steps, candidate.steps, strict=True)
    return {ours.output: known[theirs.output] for theirs, ours in pairs} | {
        candidate.input: known[original.input]
    }


def _said(limit: tuple[float, bool]) -> str:
    return f"{100 * limit[0]:g}%" if limit[1] else f"{limit[0]:g}"


def _top1(original: Net, candidate: Net, options: Options, tell: Tell) -> Top1:
    """Samples whose class provably stays, in float32."""
    data = _required(original.samples(options.test))
    ranges = original.program.ranges(Interval(*2 * (np.zeros((1, *original.program.row)),)))
    if int(np.prod(ranges[original.program.outputs[0]].shape[1:])) < 2:
        raise UsageError("--test is for classifiers: the first output has one element.", "Leave --test out.")
    done = 0

    def boxes() -> Iterator[tuple[Array, Interval]]:
        nonlocal done
        for batch in data.batches(ROWS_AT_ONCE, with_labels=False):
            x = batch.feeds[original.program.input][: len(batch.rows)].astype(np.float64)
            tell("top1", done / data.rows, f"{done} of {data.rows} samples")
            done += len(x)
            yield x, around_samples(x, options)

    found = margins((original.program, candidate.program), boxes())
    count = int((found.least > 0).sum())
    return Top1(
        name=Path(data.name).name,
        rows=len(found.least),
        near=options.near,
        rows_certified=count,
        share_certified=found.share,
        arithmetic="float32",
    )


def around_samples(x: Array, options: Options) -> Interval:
    """All inputs near samples; of a box that was given, those inside it."""
    lo, hi = np.nextafter(x - options.near, -np.inf), np.nextafter(x + options.near, np.inf)
    words = str(options.given).split(",")
    if len(words) == 2:
        low, high = map(float, words)
        lo, hi = np.minimum(np.maximum(lo, low), x), np.maximum(np.minimum(hi, high), x)
    return Interval(lo, hi) if options.near else Interval(x, x)


def _fill(folder: Path, made: Certificate, box: Interval, options: Options) -> None:
    """What stands beside the model: the certificate, the box where it needs a file, and the manifest."""
    if made.box.source == "statistical" or made.kind == "observed":
        proofs.save_box(box, folder / proofs.BOX_NAME)
        sha256 = manifests.sha256_file(folder / proofs.BOX_NAME)
        made = made.model_copy(update={"box": made.box.model_copy(update={"sha256": sha256})})
    text = json.dumps(made.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    (folder / proofs.FILE_NAME).write_text(text, encoding="utf-8")
    manifests.write(
        manifests.Manifest(
            tool_version=versions()["edgepress"],
            versions=versions(),
            seed=options.seed,
            options={
                "command": "certify",
                "method": options.method,
                "limit": made.limit,
                "ranges": options.ranges,
            },
            recipe=(),
            inputs=(manifests.Input(role="model", name=options.model.name, sha256=made.original.sha256),),
            files=manifests.hash_files(folder),
        ),
        folder,
    )
