"""The main job: a model and samples in, a smaller model, a judgement and a trail out, stage by stage."""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgepress.compressor.budget import Budget, Scores, judge
from edgepress.compressor.choice import Candidate
from edgepress.compressor.companion import make_tflite, refuse_early
from edgepress.compressor.cost import node_costs
from edgepress.compressor.data import Dataset, open_data, split, without_overlap
from edgepress.compressor.equality import same_outputs
from edgepress.compressor.errors import DataError, DeviceError, MetricError, UsageError, nearest
from edgepress.compressor.export.onnx import save
from edgepress.compressor.finish import (
    LOSSLESS,
    export,
    judged,
    make_timer,
    measure,
    original,
    take_back_if_slower,
    verdict,
)
from edgepress.compressor.first_run import first_run
from edgepress.compressor.folds import Answering, Setup
from edgepress.compressor.inputs import said_of_large
from edgepress.compressor.job import Findings, Host, Job
from edgepress.compressor.metrics import (
    BUILT_IN,
    answers,
    is_user_metric,
    resolve_metric,
    said_of_labels,
    unread,
)
from edgepress.compressor.model import input_specs, load, on_disk, tensor_bytes
from edgepress.compressor.normalize import Normalized, normalize
from edgepress.compressor.parallel import one_thread_each, within_memory
from edgepress.compressor.passes import Pass, StoreWeights
from edgepress.compressor.passes.base import Context, Skipped, site_name
from edgepress.compressor.recipe import check_names, digest
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.scoring import Metric, Watched, score_all
from edgepress.compressor.searching import search_for
from edgepress.compressor.serialize import serialize
from edgepress.compressor.shapes import Seen, seen_shapes
from edgepress.compressor.sparse import make_sparse
from edgepress.compressor.trials import Trials, make_trials

__all__ = ["Findings", "Host", "Job", "look", "run"]

SEARCH_ROWS = 1024
"""Samples that the search works on at most; more make it slower rather than better."""

FOLDS = 4
"""Candidates are fitted to three quarters of the samples, which shows little less than what all of them make."""

DEAR_MACS = 2e10
"""Multiply-accumulates for all samples together from which on a layer-by-layer refit is judged on one fold only."""

DEAR_MINUTES = 2.5
"""Default time limit there: after so long no new candidate is begun, and the best one is fitted and judged."""


def run(job: Job, host: Host) -> Findings:
    """Do the whole job, short of writing files.

    The linear algebra keeps to one thread: with more of them sums come out in other orders, and a manifest that was
    written on one number of cores would not give the same bytes on another.

    Raises:
        EdgepressError: with what is wrong, where, and what to do.
    """
    with one_thread_each():
        return _run(job, host)


def _run(job: Job, host: Host) -> Findings:
    started = time.monotonic()
    found = _chosen(job, host, started)
    with found.stage("export"):
        export(found)
        take_back_if_slower(found, make_timer(found))
    with found.stage("measure"):
        measure(found)
    with found.stage("judge"):
        found.judgement = verdict(found)
    with found.stage("tflite"):
        make_tflite(found)
        make_sparse(found)
    if found.on_device and found.test is not None:
        found.judgement = judged(found, found.original_scores, found.on_device, found.test.rows)
    found.seconds["total"] = time.monotonic() - started
    return found


def _chosen(job: Job, host: Host, started: float) -> Findings:
    """Everything up to the choice; what was only needed to get there, models above all, is let go."""
    deadline = math.inf if job.time_limit_minutes is None else started + 60 * job.time_limit_minutes
    found, trials = look(job, host)
    refuse_early(found)
    if job.data is not None and job.test is None:
        found.warnings.append("No --test: half of --data was set aside for the verdict before the search.")
    context = trials.full if trials is not None else Context(None, host.target, job.seed, job.leave)
    if job.recipe is not None:
        _follow_recipe(found, job.recipe, context)
    elif trials is None:
        _without_data(found, context)
    else:
        if trials.dear and job.time_limit_minutes is None:
            deadline = started + 60 * DEAR_MINUTES
        with within_memory(tensor_bytes(trials.original)):
            search_for(found, trials, deadline)
    return found


def look(job: Job, host: Host, unseen: bool = True) -> tuple[Findings, Trials | None]:
    """Load, normalise and open the samples, without changing anything; for `inspect`, and the start of a run.

    What can be wrong with the user's input comes to light here, before any long work. `unseen`: samples are set aside.

    Raises:
        EdgepressError: with what is wrong, where, and what to do.
    """
    Budget(job.budget)
    _check_names(job)
    started = time.monotonic()
    source = load(job.model, job.shapes or None)
    size, external = on_disk(job.model)
    found = Findings(job, host, source, size, external, Normalized(source, (), ()))
    found.warnings += host.notes
    found.seconds["load"] = time.monotonic() - started
    if job.output is not None and job.output not in (names := [v.name or "" for v in source.graph.outputs]):
        raise MetricError(f"--output: the model has no output {job.output!r}.", nearest(job.output, names))
    with found.stage("samples"):
        found.data, found.test = open_samples(job, source, found.warnings, unseen)
    with found.stage("normalise"):
        _normalise(found)
    with found.stage("samples"):
        told = _settle_metrics(found)
        if found.metric is None:
            return found, None
        _score_original(found, found.metric)
        return found, _trials(found, found.metric, told)


def _check_names(job: Job) -> None:
    """Names and patterns that can be judged without the model."""
    name = job.metric
    if name is not None and name.partition(":")[0] not in BUILT_IN and not is_user_metric(name):
        raise MetricError(f"unknown metric {name!r}", nearest(name, BUILT_IN) + " Or module:function.")
    for pattern in job.leave:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(
                f"--leave: {pattern!r} is no regular expression: {error}.",
                "Brackets and the like in names are escaped with a backslash.",
            ) from error


def open_samples(
    job: Job, model: ir.Model, warnings: list[str], unseen: bool = True
) -> tuple[Dataset | None, Dataset | None]:
    """Calibration samples and unseen ones, apart from each other.

    Args:
        job: names them.
        model: whose inputs they feed.
        warnings: what the user should know is added.
        unseen: whether some are set aside where there is no `--test`.

    Raises:
        DataError: they are damaged, do not fit, or share rows.
    """
    if job.data is None:
        if job.test is not None:
            raise UsageError(
                "--test without --data: there is nothing to calibrate on.", "Give samples with --data."
            )
        return None, None
    specs = input_specs(model)
    data = open_data(job.data, specs, job.preprocess)
    if job.test is None and not unseen:
        return data, None
    if job.test is None:
        kept, test = split(_without_copies(data, warnings), 0.5, job.seed)
        return kept, test
    test = open_data(job.test, specs, job.preprocess)
    data, dropped = without_overlap(data, test)
    if dropped:
        warnings.append(f"{dropped} rows of --test were found in --data and dropped from it.")
    return data, test


def _without_copies(data: Dataset, warnings: list[str]) -> Dataset:
    """Each row once, so that no row comes to lie on both sides when the data are split."""
    first = {row: number for number, row in reversed(list(enumerate(data.row_hashes())))}
    copies = data.rows - len(first)
    if not copies:
        return data
    if len(first) < 2:
        raise DataError(f"All {data.rows} rows of {data.name} are the same.", "Give different samples.")
    warnings.append(f"{copies} rows of --data are copies of others; each row is used once.")
    return data.subset(sorted(first.values()))


def _normalise(found: Findings) -> None:
    """Canonical form, each lossless step checked on samples (or on synthetic input where there are none)."""
    engine, threads = found.host.engine, found.job.threads
    expected, feeds = first_run(found)

    def check(candidate: ir.Model) -> bool:
        try:
            return same_outputs(expected, engine.load(serialize(candidate), threads)(feeds), LOSSLESS)
        except DeviceError:
            return False

    def observe(candidate: ir.Model) -> Mapping[str, Seen]:
        return seen_shapes(candidate, engine, [feeds])

    found.normalized = normalize(found.source, check, observe) if feeds else normalize(found.source)
    found.shapes = shapes_in_one_run(found.normalized.model, engine, found.one_row)
    found.left_alone = found.normalized.left_alone
    for step in found.normalized.steps:
        if step.changed and not step.kept:
            found.warnings.append(f"Normalisation step {step.name!r}: {step.why}.")
    sites = [site_name(node) for node in found.normalized.model.graph]
    for pattern in found.job.leave:
        if not any(re.search(pattern, site) for site in sites):
            found.warnings.append(f"--leave {pattern!r} matches no site; `compress inspect` names them.")
    if found.data is not None:
        found.warnings += said_of_large(found.normalized.model)


def _settle_metrics(found: Findings) -> Answering:
    """Find the metric of the budget, those of outputs that it does not read, and what tells changed answers."""
    data, job = found.data, found.job
    if data is None:
        return None
    batch = next(iter(data.batches(64)))
    outputs = found.host.engine.load(serialize(found.source), job.threads)(batch.feeds)
    metric = found.metric = resolve_metric(job.metric, outputs, batch, job.output)
    found.others = unread(metric, outputs)
    if metric.whole or metric.name not in ("top1", "top5", "agreement"):
        return None
    return answers(outputs, batch, job.output)


def _score_original(found: Findings, metric: Metric) -> None:
    """Score the original on the unseen rows, so that wrong labels or a useless score are told at once.

    Kept for the verdict: the search learns nothing of those rows.
    """
    if found.test is None:
        return
    original = Watched(found.host.engine.load(serialize(found.source), found.job.threads))
    found.original_scores = score_all([metric, *found.others], original, found.test.batches(found.batch))
    rows, count = found.original_scores[0], found.test.rows
    said = [
        f"output {name!r} of the original is NaN or infinite in {min(n, count)} of {count} unseen rows"
        for name, n in original.broken.items()
    ]
    try:
        judge(Budget(found.job.budget), metric, Scores(rows, rows), rows=count)
    except MetricError as error:
        if not said:
            raise
        hint = "Logarithms and roots of negative numbers, divisions by zero and overflow give that."
        raise MetricError(
            f"{said[0]}: {error}", f"{hint} Mend the model, or name another --output."
        ) from error
    found.warnings += [f"{each[0].upper()}{each[1:]}; such rows count as wrong." for each in said]
    if metric.name == "top1" and (labels := found.test.labels) is not None:
        found.warnings += said_of_labels(labels, rows)


def _trials(found: Findings, metric: Metric, told: Answering) -> Trials:
    """Folds of the calibration samples, at most `SEARCH_ROWS` of them."""
    data, job, host = found.data, found.job, found.host
    if data is None:
        raise ValueError("trials need samples")
    if data.rows > SEARCH_ROWS:
        data = data.subset(np.random.default_rng(job.seed).permutation(data.rows)[:SEARCH_ROWS])
    macs = sum(c.macs for c in node_costs(found.normalized.model, found.shapes, None))
    dear = macs * data.rows > DEAR_MACS
    setup = Setup(
        host.engine,
        metric,
        told,
        data,
        host.target,
        job.seed,
        job.leave,
        found.batch,
        folds=1 if data.rows < 8 else FOLDS,
        dear=dear,
        others=found.others,
        unseen=np.inf if found.test is None else found.test.rows,
    )
    return make_trials(found.normalized.model, setup)


def _follow_recipe(found: Findings, recipe: tuple[Pass, ...], context: Context) -> None:
    """Apply what the user wrote, nothing else."""
    skipped: list[Skipped] = []
    with found.stage("rewrite"):
        model = found.normalized.model.clone()
        for place, step in enumerate(recipe, start=1):
            if found.job.strict:
                check_names(place, step, (found.normalized.model, model))
            found.host.progress("rewrite", 0.0, step.kind)
            skipped += step.apply(model, context).skipped
    found.best = Candidate(
        "recipe", recipe, model=model, data=save(model), kept=True, why="as the recipe says"
    )
    found.candidates = [found.best]
    found.left_alone = (*found.normalized.left_alone, *skipped)


def _without_data(found: Findings, context: Context) -> None:
    """Steps that need no samples: weights stored in 8 bits, where that pays."""
    before = original(found)
    model = found.normalized.model.clone()
    step = StoreWeights()
    with found.stage("rewrite"):
        outcome = step.apply(model, context)
        after = Candidate("weights in 8 bits", (step,), model=model, data=save(model))
    smaller = outcome.modified and len(after.data) < min(len(before.data), found.source_bytes)
    pays, why = (
        False,
        "saves nothing" if found.one_row else "could not be checked: the model does not run here",
    )
    if smaller and found.one_row:
        times = make_timer(found)([(digest(c.recipe), c.data) for c in (before, after)])
        before, after = replace(before, latency_ns=times[0]), replace(after, latency_ns=times[1])
        pays = times[1] <= 1.01 * times[0]
        why = "smaller, and needs no samples" if pays else "slower than the original"
    before = replace(before, kept=not pays, why="" if pays else "nothing that needs no samples pays")
    after = replace(after, kept=pays, why=why)
    found.best = after if pays else before
    found.candidates = [before, after]
    found.left_alone = (*found.normalized.left_alone, *outcome.skipped)
