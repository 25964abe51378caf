"""What is known of single layers beyond their cost: what each could bear, and how far each is from the original."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.errors import EdgepressError
from edgepress.compressor.job import Findings
from edgepress.compressor.observe import KEPT, NEW, Streamer, kept_channels
from edgepress.compressor.passes import Pass
from edgepress.compressor.protocols import Array, Feeds
from edgepress.compressor.report.record import Bearing, LayerError
from edgepress.compressor.report.steps import PER_SITE
from edgepress.compressor.sites import Site, find_sites

_KNOBS = {"multiplier": "rank"}
"""What the search calls a parameter, where steps have another word."""

ROWS = 16
"""Most samples that layers are compared on: enough for two digits, and soon done."""


def bearings(found: Findings, recipe: Sequence[Pass]) -> Iterator[Bearing]:
    """The search's knobs with the damage of each setting, and what the result has of them.

    Args:
        found: by the session.
        recipe: what made the result.
    """
    chosen = {
        (_KNOBS.get(word, word), name): value
        for step in recipe
        for word, field in PER_SITE
        if isinstance(pairs := getattr(step, field, ()), tuple)
        for name, value in pairs
    }
    for knob in found.options.knobs if found.options else ():
        yield Bearing.model_validate(
            {
                "site": knob.name,
                "kind": knob.kind,
                "form": knob.form if knob.kind == "rank" else None,
                "full": knob.full,
                "values": knob.values,
                "damage": knob.damage,
                "chosen": chosen.get((knob.kind, knob.name)),
            }
        )


def layer_errors(found: Findings, model: ir.Model) -> list[LayerError]:
    """Error of each site's outputs against the original's, on a few samples.

    Args:
        found: by the session, for the normalised original.
        model: the result, its nodes still named.

    Returns:
        Sites whose outputs are still there, in the order of the net; none where there are no samples.
    """
    data = found.test or found.data
    pairs = list(_pairs(found.normalized.model, model))
    if data is None or not pairs or (found.best is not None and not found.best.recipe):
        return []

    def batches() -> Iterator[Feeds]:
        chosen = np.arange(min(data.rows, ROWS))
        return (batch.feeds for batch in data.batches(min(found.batch, ROWS), chosen, with_labels=False))

    names = [site.y.name or "" for site, _ in pairs]
    sums = np.zeros((len(pairs), 2))
    stream = Streamer(found.host.engine, found.normalized.model, batches, found.job.threads)
    try:
        for now, then in stream(model, names, names):
            for place, (site, value) in enumerate(pairs):
                sums[place] += _squares(site, value, now[names[place]], then[names[place]])
    except EdgepressError:  # an engine that will not show a value: the result is as good without the table
        return []
    return [
        LayerError(site=site.name, error_percent=100 * float(np.sqrt(error / power)) if power else None)
        for (site, _), (error, power) in zip(pairs, sums, strict=True)
    ]


def _pairs(original: ir.Model, model: ir.Model) -> Iterator[tuple[Site, ir.Value]]:
    """Sites of the original, and the value that their outputs have become."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    for site in find_sites(original):
        value = values.get(site.y.name)
        if value is not None and NEW not in value.meta:
            yield site, value


def _squares(site: Site, value: ir.Value, now: Array, then: Array) -> tuple[float, float]:
    """Sums of squares: of the error, and of the original's values that are still there; (0, 0) where none compare."""
    axis = 1 if site.weight.ndim > 2 else -1
    if KEPT in value.meta and now.ndim == then.ndim:
        then = np.take(then, kept_channels(value, now.shape[axis]), axis)
    if now.shape != then.shape:
        return 0.0, 0.0
    then = then.astype(np.float64)
    error = float(np.sum((now - then) ** 2))
    return (error, float(np.sum(then**2))) if np.isfinite(error) else (0.0, 0.0)
