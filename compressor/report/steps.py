"""What was done, step by step, with what each step was expected to cost and what it saves."""

from collections.abc import Sequence

from pydantic import JsonValue

from edgepress.compressor.choice import Candidate
from edgepress.compressor.job import Findings
from edgepress.compressor.options import Options
from edgepress.compressor.passes import Pass
from edgepress.compressor.recipe import to_json
from edgepress.compressor.report.record import Gain, SiteRow, Step

PER_SITE = (
    ("width", "widths"),
    ("rank", "ranks"),
    ("multiplier", "multipliers"),
    ("sparsity", "amounts"),
    ("threshold", "thresholds"),
    ("bits", "bits"),
    ("bits", "site_bits"),
)
"""What a step of the report calls a parameter, and the passes' fields with (site, value) pairs of it."""


def step_rows(found: Findings, best: Candidate, sites: Sequence[SiteRow]) -> Sequence[Step]:
    """What was done: normalisation, then each pass at each site with the damage that was predicted for it.

    A site's gain is told once, at the first pass that names it: it is of all passes there together. The
    measured gain, of all sites together, stands at the last pass.
    """
    steps = [
        Step(pass_="normalise", parameters={"step": s.name}, kept=s.kept, why=s.why)  # noqa: S106
        for s in found.normalized.steps
        if s.changed
    ]
    gains = {row.name: _gain(row) for row in sites}
    told: set[tuple[str, str]] = set()
    for step in best.recipe:
        fields = _fields(step)
        per_site = [
            (word, name, value)
            for word, attribute in PER_SITE
            if isinstance(pairs := getattr(step, attribute, ()), tuple)  # bits of a cluster are of all sites
            for name, value in pairs
            if (word, name) not in told
        ]
        told |= {(word, name) for word, name, _ in per_site}
        for word, name, value in per_site:
            damage, full = _predicted(found.options, name, word, value)
            steps.append(
                Step(
                    pass_=step.kind,
                    site=name,
                    parameters={word: value, "from": full},
                    damage=damage,
                    gain=gains.pop(name, Gain()),
                    kept=True,
                    why=best.why,
                )
            )
        if not per_site or step.kind in ("quantize", "store", "cluster"):
            steps.append(Step(pass_=step.kind, parameters=fields, kept=True, why=best.why))
    if best.recipe:
        before, after = found.latencies
        steps[-1] = steps[-1].model_copy(
            update={
                "gain": Gain(
                    bytes=found.source_bytes - len(found.exported),
                    latency_ns_measured=before.median_ns - after.median_ns if before and after else None,
                )
            }
        )
    return steps


def _gain(row: SiteRow) -> Gain:
    """What a site costs less than before."""
    before, after = row.before, row.after
    if after is None:
        return Gain(bytes=before.bytes, macs=before.macs, latency_ns_predicted=before.latency_ns)
    return Gain(
        bytes=before.bytes - after.bytes,
        macs=(before.macs or 0) - (after.macs or 0),
        latency_ns_predicted=(before.latency_ns or 0.0) - (after.latency_ns or 0.0),
    )


def _fields(step: Pass) -> dict[str, JsonValue]:
    return {name: value for name, value in to_json((step,))[0].items() if name != "kind"}


def _predicted(options: Options | None, name: str, kind: str, value: int) -> tuple[float | None, int | None]:
    """Predicted damage of a knob's value, and the full value."""
    for knob in options.knobs if options else ():
        if knob.name == name and knob.kind == kind and value in knob.values:
            return knob.damage[knob.values.index(value)], knob.full
    return None, None
