"""Second moments of what sites read, for rounding and pruning: gathered in few runs, kept for the next pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from edgepress.compressor.context import Context
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.rounding import Seen
from edgepress.compressor.observe import MOMENTS_BYTES, WIDEST, Draw, inputs_of, unfittable
from edgepress.compressor.origins import Origin, Origins
from edgepress.compressor.sites import Site, find_sites

NAMED = 3
"""Sites that a message names."""

INPUT_BYTES = 64 << 20
"""The sum of all moments in `Context.left_behind`."""

ALIGNED, NARROWEST = 256, 16
"""Of how many columns parts are multiples, and the least that is worth a look."""


def input_moments(model: ir.Model, site: Site, context: Context) -> Seen:
    """`site_moments` of X alone; those that were left behind, as long as nothing in front of the site changed.

    Of a site that is wider than `WIDEST` they come in parts, one for each of `spans`.
    """
    return next(moments_of_inputs(model, [site], context))


def moments_of_inputs(model: ir.Model, sites: Sequence[Site], context: Context) -> Iterator[Seen]:
    """`input_moments` of sites one after another, gathered in few runs: of as many at once as `MOMENTS_BYTES` hold.

    Args:
        model: holds the sites, and must not change until the last is given.
        sites: in the order of the graph.
        context: with a stream.
    """
    origins, start = Origins(model), 0
    while start < len(sites):
        end, size = start, 0
        while end == start or (end < len(sites) and size + moments_size(sites[end]) <= MOMENTS_BYTES):
            size += moments_size(sites[end])
            end += 1
        found = _moments_together(model, sites[start:end], context, origins)
        while found:
            yield found.pop()
        start = end


def widths(site: Site) -> list[int]:
    """Columns of a site's matrix whose inputs are seen together, part after part.

    All at once, or of a wide site so many that all parts take as much as the widest site in one; none where that
    would be fewer than `NARROWEST`.
    """
    inputs = inputs_of(site)
    if inputs <= WIDEST:
        return [inputs]
    each = WIDEST**2 // inputs
    each -= each % (ALIGNED if each >= ALIGNED else NARROWEST)
    return [min(each, inputs - start) for start in range(0, inputs, each)] if each else []


def rounding_work(site: Site) -> int:
    """About how many multiplications it takes to round a site by its outputs."""
    return site.weight.size * max(widths(site), default=0)


def said_of_large(model: ir.Model) -> list[str]:
    """What the user should know of sites that are too large for second moments of all that they read and give."""
    large = [s for s in find_sites(model) if s.dense and unfittable(s) is not None]
    if not large:
        return []
    names = ", ".join(f"{s.name} ({inputs_of(s)} × {s.outputs})" for s in large[:NAMED])
    more = f" and {len(large) - NAMED} more" if len(large) > NAMED else ""
    return [
        f"Too large to be refitted, and for what they read to shrink: {names}{more} (inputs × outputs). Few bits see "
        f"more than {WIDEST} inputs in parts."
    ]


def moments_size(site: Site) -> int:
    """Bytes of what `input_moments` gives."""
    return 2 * 8 * sum(width**2 for width in widths(site))


def _moments_together(
    model: ir.Model, sites: Sequence[Site], context: Context, origins: Origins
) -> list[Seen]:
    """`input_moments` of some sites, last first, in one run."""
    known = [inputs_left_behind(site, context, origins) for site in sites]
    draws: list[tuple[Draw, Seen]] = []
    for place, site in enumerate(sites):
        if known[place] is None:
            fresh = [(Moments(width, 0), Moments(width, 0)) for width in widths(site)]
            draws.append((Draw(site, context), fresh))
            known[place] = fresh
    names = list(dict.fromkeys(draw.x_name for draw, _ in draws))
    for now, _ in context.stream(model, names) if names and context.stream is not None else ():
        for draw, seen in draws:
            for part, rows, _ in draw(now[draw.x_name]):
                start = 0
                for pair in seen:
                    some = rows[:, start : start + pair[part].inputs]
                    pair[part].update(some, some[:, :0])
                    start += some.shape[1]
    for draw, seen in draws:
        leave_inputs(draw.site, context, origins, seen)
    return [seen for seen in reversed(known) if seen is not None]


def inputs_left_behind(site: Site, context: Context, origins: Origins) -> Seen | None:
    """What `input_moments` need not work out again, or None."""
    found = context.left_behind.get(site.name)
    return found.seen if isinstance(found, _Inputs) and found.origin == origins.of(site.x) else None


def leave_inputs(site: Site, context: Context, origins: Origins, seen: Seen) -> None:
    """Keep moments of X for `input_moments`, where there is room.

    Args:
        site: whose inputs they are.
        context: keeps them.
        origins: of the model that holds the site.
        seen: one part as `site_moments` gives it, paired or not, or several.
    """
    context.left_behind.pop(site.name, None)
    kept = [entry for entry in list(context.left_behind.values()) if isinstance(entry, _Inputs)]
    entry = _Inputs(origins.of(site.x), [(fit.of_inputs(), held.of_inputs()) for fit, held in seen])
    if sum(one.size for one in (*kept, entry)) <= INPUT_BYTES:
        context.left_behind[site.name] = entry


@dataclass(frozen=True)
class _Inputs:
    """Moments of a site's inputs, and all that they hang on."""

    origin: Origin
    seen: Seen

    @cached_property
    def size(self) -> int:
        """Bytes."""
        return sum(each.nbytes for pair in self.seen for each in pair)
