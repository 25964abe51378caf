"""How much of weights and activations is zero, before and after.

What shrinking took away counts as zero: the share of an activation is of the original's values, so that dead channels
do not vanish from it once they are removed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.job import Findings
from edgepress.compressor.observe import Streamer
from edgepress.compressor.passes import Pass
from edgepress.compressor.passes.activations import activations, sparsity
from edgepress.compressor.protocols import Array, Feeds
from edgepress.compressor.report.record import ZeroRow
from edgepress.compressor.report.sites import origin_of
from edgepress.compressor.serialize import serialize_prefix
from edgepress.compressor.sites import find_sites, site_name

KINDS = frozenset(["prune", "threshold_relu"])
"""Passes that make zeros."""

ROWS = 512
"""Most rows that activations are counted on where the recipe has any of them; others pay for `FEW` only."""

FEW = 32


def zero_rows(found: Findings, model: ir.Model, recipe: Sequence[Pass]) -> list[ZeroRow]:
    """Zeros by layer: of activations, and of weights where a pass was out for them.

    Args:
        found: by the session, for the normalised original.
        model: the result, its nodes still named.
        recipe: what made it.
    """
    if KINDS.isdisjoint(step.kind for step in recipe):
        return list(_activations(found, model, FEW))
    return [*_weights(found, model), *_activations(found, model, ROWS)]


def _weights(found: Findings, model: ir.Model) -> Iterator[ZeroRow]:
    """Of sites that are still one node, whatever their weights are stored as."""
    original = find_sites(found.normalized.model)
    names = {site.name for site in original}
    parts = Counter(origin_of(site_name(node), names) for node in model.graph)
    values = {site_name(node): node.inputs[1] for node in model.graph if len(node.inputs) > 1}
    now = {n: value for n in names if parts[n] == 1 and (value := values.get(n)) is not None}
    arrays = _at_load(found, model, list(now.values()))
    for site in original:
        after = arrays.get(now[site.name].name or "") if site.name in now else None
        yield ZeroRow(
            site=site.name,
            of="weights",
            before=100 * _share(site.weight),
            after=None if after is None else 100 * _share(after),
            values=site.weight.size,
        )


def _share(array: Array) -> float:
    return 1 - np.count_nonzero(array) / max(array.size, 1)


def _at_load(found: Findings, model: ir.Model, values: Sequence[ir.Value]) -> dict[str, Array]:
    """Constants by name; what is worked out at load is what the engine makes of it."""
    known = {v.name or "": v.const_value.numpy() for v in values if v.const_value is not None}
    others = [v.name or "" for v in values if v.const_value is None and v.producer() is not None]
    if others and found.one_row:
        run = found.host.engine.load(serialize_prefix(model, others), found.job.threads)
        known |= run(found.one_row)
    return known


def _activations(found: Findings, model: ir.Model, rows: int) -> Iterator[ZeroRow]:
    """On unseen rows, or where there are none on those for calibration."""
    data, original = found.test or found.data, found.normalized.model
    if data is None or not activations(original):
        return

    def batches() -> Iterator[Feeds]:
        chosen = np.arange(min(data.rows, rows))
        return (batch.feeds for batch in data.batches(found.batch, chosen, with_labels=False))

    stream = Streamer(found.host.engine, original, batches, found.job.threads)
    now = sparsity(model, stream)
    for name, before in sparsity(original, stream).items():
        after = now.get(name)
        if before.values:
            nonzero = None if after is None else after.values - after.zeros
            yield ZeroRow(
                site=name,
                of="activations",
                before=100 * before.share,
                after=None if nonzero is None else 100 * (1 - nonzero / before.values),
                values=before.values,
            )
