"""How few of the sites that 8 bits hurt must be spared, and where 8-bit arithmetic can hardly pay."""

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from edgepress.compressor.choice import Candidate
from edgepress.compressor.cost import Shapes, kernel_ns, node_macs
from edgepress.compressor.kernels import FLOAT, table_ns
from edgepress.compressor.passes.base import site_name
from edgepress.compressor.protocols import Target
from edgepress.compressor.sites import Site, find_sites


def fewest(
    worst: Sequence[str],
    spared: Callable[[Sequence[str]], Candidate],
    accepts: Callable[[Candidate], bool],
    late: Callable[[], bool],
) -> tuple[Candidate | None, Sequence[str]]:
    """The first sites of a list that must be spared, by doubling and halving, and the candidate that does.

    Args:
        worst: those that are spared first come first.
        spared: judges the candidate that spares some.
        accepts: whether it keeps the budget.
        late: ends the search.

    Returns:
        None, and no sites, where sparing all would not do or there was no time to find out.
    """
    tried, count, best = 0, 1, None
    while tried < len(worst) and best is None and not late():
        candidate = spared(worst[:count])
        if accepts(candidate):
            best = candidate
        else:
            tried, count = count, min(2 * count, len(worst))
    while best is not None and count - tried > 1 and not late():
        middle = (tried + count) // 2
        candidate = spared(worst[:middle])
        if accepts(candidate):
            best, count = candidate, middle
        else:
            tried = middle
    return (best, worst[:count]) if best is not None else (None, [])


def hardly_faster(model: ir.Model, shapes: Shapes, target: Target) -> list[str]:
    """Sites whose predicted gain by 8-bit arithmetic is below the cost of going there and back."""
    slow = []
    for site in find_sites(model):
        if site.depthwise or _gain(site, shapes, target) < 0:
            slow.append(site_name(site.node))
    return slow


def _gain(site: Site, shapes: Shapes, target: Target) -> float:
    """Predicted nanoseconds that 8-bit arithmetic saves at a site, less the way there and back."""
    if target.table is not None:
        times = [table_ns(site.node, shapes, target.table, integer=integer) for integer in (False, True)]
        values = math.prod(shapes.get(site.y.name or "", ()))
        way = target.table.ns("quantize", FLOAT, 1, 1, values)
        if times[0] is not None and times[1] is not None and way is not None:
            return times[0] - times[1] - way
    macs = node_macs(site.node, shapes)
    gain = kernel_ns(target, macs, 0, integer=False) - kernel_ns(target, macs, 0, integer=True)
    return gain - target.node_overhead_ns
