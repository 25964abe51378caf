"""How precision is settled once the structure stands: the last passes of every candidate's recipe."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from edgepress.compressor.allocate import Precision
from edgepress.compressor.context import exactly
from edgepress.compressor.cost import Shapes, kernel_ns, node_costs, node_macs
from edgepress.compressor.kernels import FLOAT, table_ns
from edgepress.compressor.knobs import ROUNDING, SHARED_BITS
from edgepress.compressor.passes import Cluster, Dynamic, LowRank, Quantize, Separable, StoreWeights
from edgepress.compressor.passes.base import Context, site_name
from edgepress.compressor.passes.rounding import HALF
from edgepress.compressor.protocols import Target
from edgepress.compressor.recipe import Recipe
from edgepress.compressor.sites import Site, find_sites

WORTH_DYNAMIC = 0.1
"""Share of the predicted time that products must take. What a small one gains by 8 bits is foretold too badly."""


@dataclass(frozen=True)
class Tail:
    """The precision of one candidate.

    Attributes:
        precision: of the arithmetic.
        target: the device.
        bits: (site, bits) pairs of weights with other than 8.
        leave: sites whose arithmetic stays in floats.
        shared: sites whose few bits are indices where the arithmetic is in floats.
        results: see `Quantize`.
    """

    precision: Precision
    target: Target
    bits: tuple[tuple[str, int], ...] = ()
    leave: tuple[str, ...] = ()
    shared: frozenset[str] = frozenset()
    results: Literal["float", "integer"] = "float"

    def passes(self) -> Recipe:
        """Those for the arithmetic, then those for all weights that are floats still."""
        few = tuple((name, width) for name, width in self.bits if width < HALF)
        width, store = self.target.weight_bits, StoreWeights(bits=self.bits, rounding=ROUNDING)
        if self.precision == "int8":
            quantize = Quantize(width, bits=few, leave=self.leave, rounding=ROUNDING, results=self.results)
            return (quantize, store)
        if self.precision == "dynamic":
            return (Dynamic(width, bits=few, leave=self.leave, rounding=ROUNDING), store)
        indices = tuple((name, width) for name, width in few if width <= SHARED_BITS and name in self.shared)
        if not indices:
            return (store,)
        names = tuple(exactly(name) for name, _ in indices)
        rest = tuple(pair for pair in self.bits if pair not in indices)
        return (Cluster(site_bits=indices, sites=names), replace(store, bits=rest))


def dynamic_pays(model: ir.Model, shapes: Shapes, target: Target, leave: tuple[str, ...] = ()) -> bool:
    """Whether there are products and LSTMs enough for 8 bits by the ranges of each input to be worth a candidate.

    Args:
        model: is not changed.
        shapes: observed for a batch of one.
        target: the device.
        leave: regular expressions of sites not to touch.
    """
    context = Context(None, target, leave=leave)
    changed = set(Dynamic(target.weight_bits).apply(model.clone(), context).changed)
    costs = node_costs(model, shapes, target)
    if any(cost.op == "LSTM" and cost.name in changed for cost in costs):
        return True
    whole = sum(cost.latency_ns for cost in costs)
    return sum(cost.latency_ns for cost in costs if cost.name in changed) > WORTH_DYNAMIC * whole


def structure_of(recipe: Recipe) -> Recipe:
    """The passes before those that settle the precision."""
    return tuple(p for p in recipe if not isinstance(p, Quantize | Dynamic | Cluster | StoreWeights))


def few_bits(recipe: Recipe) -> tuple[tuple[str, int], ...]:
    """(site, bits) pairs of weights with other than 8."""
    shared = [step.site_bits for step in recipe if isinstance(step, Cluster)]
    even = [step.bits for step in recipe if isinstance(step, StoreWeights)]
    return tuple(pair for pairs in (*shared, *even) for pair in pairs)


def exchanged(recipe: Recipe, tails: Iterable[tuple[str, Recipe]]) -> Iterator[tuple[str, Recipe]]:
    """The same structure with other passes that settle precision, each with its label."""
    return ((label, (*structure_of(recipe), *tail)) for label, tail in tails)


def without(recipe: Recipe, slow: Callable[[], list[str]]) -> Iterator[tuple[str, Recipe]]:
    """Recipes, with their labels, that lack what may not pay: splits, and 8 bits where these can hardly be faster.

    Args:
        recipe: of the candidate.
        slow: finds the sites whose arithmetic 8 bits can hardly make faster.
    """
    for label, kind in (("without low rank", LowRank), ("without separable", Separable)):
        plain = tuple(p for p in recipe if not isinstance(p, kind))
        if plain != recipe:
            yield label, plain
    for place, step in enumerate(recipe):
        if isinstance(step, Quantize):
            fewer = leaving(recipe, place, slow())
            if fewer != recipe:
                yield "small sites in float", fewer


def leaving(recipe: Recipe, place: int, names: Iterable[str]) -> Recipe:
    """The recipe with more sites in float: those that the quantization at a place leaves alone."""
    step = recipe[place]
    if not isinstance(step, Quantize):
        raise TypeError(f"{step.kind} leaves nothing in float")
    fewer = replace(step, leave=tuple(sorted({*step.leave, *names})))
    return (*recipe[:place], fewer, *recipe[place + 1 :])


def hardly_faster(model: ir.Model, shapes: Shapes, target: Target) -> list[str]:
    """Sites whose predicted gain by 8-bit arithmetic is below the cost of going there and back."""
    slow = []
    for site in find_sites(model):
        if (site.depthwise and target.table is None) or _gain(site, shapes, target) < 0:
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
