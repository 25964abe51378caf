"""A search as a session sees it: who does the work, what is kept of it, and what comes out."""

from edgepress.compressor.cache import Cache
from edgepress.compressor.finish import make_scale, make_timer
from edgepress.compressor.front import points
from edgepress.compressor.job import Findings
from edgepress.compressor.knobs import half_lanes
from edgepress.compressor.limits import search_within
from edgepress.compressor.micro import arena_scale, make_fitting, without_bits
from edgepress.compressor.options import Options
from edgepress.compressor.precision import settle
from edgepress.compressor.search import Search
from edgepress.compressor.tasks import collect_with
from edgepress.compressor.trials import Stopped, Trials
from edgepress.compressor.workers import Crew, identity


def search_for(found: Findings, trials: Trials, deadline: float) -> None:
    """Search, and note in `found` what was found.

    Args:
        found: of the session so far.
        trials: of its model and samples.
        deadline: `time.monotonic()` after which nothing new is begun.
    """
    host, job = found.host, found.job
    # Nobody else asks, and to hash all samples takes a while.
    named = host.cache is not None or bool(host.scheduler)
    name = identity(trials.original, trials.setup) if named else ""
    found.stored = Cache.open(host.cache, name) if host.cache is not None else None
    crew = Crew(trials, host.workers, name, found.stored, host.stopped, scheduler=host.scheduler)
    glance = crew.alone(make_timer(found, glance=True))
    fitting = make_fitting(found)
    scale = make_scale(found) if fitting is None else arena_scale(fitting)
    search = Search(
        trials,
        Options((), (), ()),
        host.target,
        job.objective,
        job.budget,
        found.shapes,
        crew.alone(make_timer(found)),
        host.progress,
        deadline,
        glance,
        scale,
        found.limits,
        fitting,
        exact=host.counter is not None,
    )
    crew.late, crew.progress = search.late, host.progress
    with crew.at_work():
        try:
            with found.stage("precision"):
                settle(search)
            if trials.setup.folds > 1:
                with found.stage("options"):
                    multiple = half_lanes(host.target) if job.objective == "latency" else 4
                    small = job.objective == "size"
                    search.options = collect_with(trials, found.shapes, multiple, indices=small)
                    if fitting is not None:
                        search.options = without_bits(search.options)
            else:
                found.warnings.append(
                    f"{trials.setup.data.rows} samples say too little of what a structure loses: only 8 bits were "
                    "tried. A few hundred give the search something to go by."
                )
        except Stopped:
            search.broken_off = True
        with found.stage("search"):
            search_within(search)
        with found.stage("front"):
            found.front = points(search, glance)
    found.candidates = list(search.seen.values())
    found.time_limit_hit, found.stopped, found.hired = search.time_limit_hit, search.broken_off, crew.hired
    if found.stopped:
        found.warnings.append("Interrupted: this is the best that was found until then.")
    if name := search.binding_output():
        found.warnings.append(
            f"Output {name!r}, which the metric does not read, is held to fidelity, and that ended the search: "
            "a larger --budget, or a metric of your own (module:function reads all outputs), gives it more room."
        )
    found.options = search.options
    found.best = next(c for c in found.candidates if c.kept)
    left = {s.site: s for s in (*found.options.skipped, *found.best.skipped)}
    found.left_alone = (*found.normalized.left_alone, *left.values())
