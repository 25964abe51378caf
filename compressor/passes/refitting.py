"""Sites that read changed values, fitted again towards the original's outputs."""

import numpy as np
import onnx_ir as ir

from edgepress.compressor.inputs import leave_inputs
from edgepress.compressor.numerics.least_squares import refit
from edgepress.compressor.observe import NEW, site_moments, unfittable
from edgepress.compressor.origins import Origins
from edgepress.compressor.passes.base import Context
from edgepress.compressor.protocols import Matrix
from edgepress.compressor.sites import Site, set_weights, site_name, site_of
from edgepress.compressor.walk import walking


def refit_following(model: ir.Model, changed: list[str], context: Context) -> None:
    """Refit, in order, every dense site that reads values which differ from the original's.

    Args:
        model: the shrunk model, changed in place.
        changed: names of the nodes that were changed: what they give differs.
        context: with a stream over the original and this model.
    """
    context, origins = walking(context), Origins(model)
    different: set[ir.Value] = set()
    names = set(changed)
    for node in list(model.graph):
        site = site_of(node)
        moved = any(v in different for v in node.inputs if v is not None)
        if site is not None and moved and refittable(site, context):
            refit_site(model, site, context, origins)
        if moved or site_name(node) in names:
            different.update(node.outputs)


def refittable(site: Site, context: Context) -> bool:
    """Whether a closed form can and may change this site's weights and bias, towards an original."""
    if context.stream is None or context.left_by_user(site.name) or NEW in site.y.meta:
        return False
    return site.dense and unfittable(site) is None and (site.bias_index is None or site.bias() is not None)


def refit_site(model: ir.Model, site: Site, context: Context, origins: Origins) -> None:
    """Ridge regression of one site towards the original's outputs at the same place.

    Args:
        model: holds the site, changed in place.
        site: one that is `refittable`.
        context: with a stream.
        origins: of the model; nothing in front of the site may change any more.
    """
    fit, held = site_moments(model, site, context, paired=True)
    leave_inputs(site, context, origins, [(fit, held)])
    if fit.rows < 8 or held.rows < 2:
        return
    old = site.matrix().T.astype(np.float64)
    write_fit(site, *refit(fit, held, old))


def write_fit(site: Site, weights: Matrix, bias: Matrix) -> None:
    """Write W [in, out] and b [out] into a site, unless the fit failed."""
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        return
    set_weights(
        site, weights.T.astype(np.float32), None if site.bias_index is None else bias.astype(np.float32)
    )
