"""Sites as the cost model sees them: which knobs move their rows and columns, and how far."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.allocate import Knob, Layer
from edgepress.compressor.channels import Channels, Group
from edgepress.compressor.cost import Shapes, node_costs, peak_activation_bytes, positions
from edgepress.compressor.passes.products import PRODUCTS
from edgepress.compressor.protocols import Target
from edgepress.compressor.sites import Site, find_sites


def layer_of(
    site: Site, channels: Channels, groups: Sequence[Group], knobs: Sequence[Knob], shapes: Shapes
) -> Layer:
    """The cost model's view of a site: which knobs move its rows and columns, and how far per unit."""

    def moved_by(value: ir.Value, taps: int) -> tuple[int, float]:
        track = channels.tracks.get(value)
        if track is None:
            return -1, 0.0
        roots = channels.roots(track.ids)
        for index, knob in enumerate(knobs):
            group = next((g for g in groups if knob.kind == "width" and g.name == knob.name), None)
            if group is not None:
                count = int(np.isin(roots, group.units).sum())
                if count:
                    return index, count / len(group.units) * taps
        return -1, 0.0

    matrix_columns = site.inputs * site.taps if not site.depthwise else site.taps
    rows_knob, rows_per = moved_by(site.y, 1)
    columns_knob, columns_per = moved_by(site.x, site.taps)
    own = {k.kind: i for i, k in enumerate(knobs) if k.kind != "width" and k.name == site.name}
    if site.groups > 1:
        columns_knob, columns_per, matrix_columns = -1, 0.0, int(np.prod(site.weight.shape[1:]))
    return Layer(
        site.name,
        site.outputs,
        rows_knob,
        matrix_columns,
        columns_knob,
        columns_per,
        rows_per,
        positions(site, shapes),
        site.taps if site.depthwise else 0,
        own.get("rank", -1),
        own.get("bits", -1),
        *_plane(site, shapes),
        1 if site.depthwise else site.groups,
        site.node.op_type in PRODUCTS,
        _spread(site, shapes),
        _kind(site),
    )


def _kind(site: Site) -> str:
    """Of the kernel, as `kernels.py` has it of the node."""
    if site.depthwise:
        return "depthwise"
    if not site.is_conv and not site.transposed_conv:
        return "product"
    return "pointwise" if site.taps == 1 and not site.transposed_conv else "conv"


def unchanged(model: ir.Model, shapes: Shapes, target: Target) -> tuple[tuple[float, float], float]:
    """What no knob changes: nanoseconds and bytes of all but the sites; and how much of outputs a run holds at once.

    The latter is the peak of activations over the sum of the sites' outputs: what other nodes make is as large as what
    they read, and goes with it.

    Args:
        model: the original.
        shapes: observed for a batch of one.
        target: the device.
    """
    names = {site.name for site in find_sites(model)}
    costs = node_costs(model, shapes, target)
    others = [cost for cost in costs if cost.name not in names]
    outputs = sum(cost.activation_bytes for cost in costs if cost.name in names)
    fixed = (sum(c.latency_ns for c in others), sum(c.weight_bytes for c in others) + 1000.0)
    return fixed, peak_activation_bytes(model, shapes) / max(outputs, 1)


def _plane(site: Site, shapes: Shapes) -> tuple[tuple[int, int], tuple[float, float]]:
    """Rows and columns of a kernel's taps, and how many more of either its input has than its output."""
    sizes = [shapes.get(value.name or "", ())[2:] for value in (site.x, site.y)]
    if site.weight.ndim != 4 or not site.is_conv or any(len(size) != 2 for size in sizes):
        return (1, site.taps), (1.0, 1.0)
    rows, columns = (before / max(after, 1) for before, after in zip(*sizes, strict=True))
    return (int(site.weight.shape[2]), int(site.weight.shape[3])), (rows, columns)


def _spread(site: Site, shapes: Shapes) -> float:
    """Output positions to each input position of a transposed convolution; 1 elsewhere."""
    before, after = (math.prod(shapes.get(value.name or "", ())[2:]) for value in (site.x, site.y))
    return after / max(before, 1) if site.transposed_conv and after else 1.0
