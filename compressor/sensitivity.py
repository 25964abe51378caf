"""What every site of a net can bear, and what that would bring: damage measured, gains predicted, for people.

Knobs are those of the search (`options.collect`); on top comes what 8 bits at one site alone do, in weights and in
arithmetic. Gains are those of the search's cost model (`allocate.layer_cost`), each against the net as it came: floats,
with nothing else turned down.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from edgepress.compressor.allocate import Descent, Knob, Layer, State, Weighing
from edgepress.compressor.context import exactly
from edgepress.compressor.cost import Shapes, node_costs
from edgepress.compressor.errors import EdgepressError
from edgepress.compressor.model import tensor_bytes
from edgepress.compressor.options import Options
from edgepress.compressor.parallel import one_thread_each, side_by_side, within_memory
from edgepress.compressor.passes import Pass, Quantize, StoreWeights
from edgepress.compressor.passes.base import Skipped
from edgepress.compressor.passes.shrink import shrinkable
from edgepress.compressor.passes.store import weights_of
from edgepress.compressor.protocols import Target, Tell
from edgepress.compressor.sites import Site, find_sites
from edgepress.compressor.structures import Structure
from edgepress.compressor.tasks import collect_with
from edgepress.compressor.trials import Trials

LITTLE = 0.01
"""Damage (relative change of the model's outputs) below which a site bears a change easily."""

BYTE = 8
"""Bits of weights as most devices compute with them."""


@dataclass(frozen=True)
class Strength:
    """One setting of a knob.

    Attributes:
        value: units, rank or bits that are left.
        damage: change of the model's outputs with this alone.
        ns: predicted nanoseconds that it saves per inference; negative where it costs.
        size: bytes that it saves in the file.
    """

    value: int
    damage: float
    ns: float
    size: float


@dataclass(frozen=True)
class Bearing:
    """What one site bears in one respect.

    Attributes:
        kind: `width`, `rank`, `bits` of its weights, or `arithmetic` in integers.
        site: the site, or the group of those that shrink together, by its first.
        full: the value at which nothing is changed; for bits, of the floats that came.
        form: of a rank, how the site is split.
        strengths: from weak to strong.
        partly: whether nodes shrink along that the cost model does not see (recurrent layers): gains are at least
            those said.
    """

    kind: str
    site: str
    full: int
    form: Structure | None
    strengths: tuple[Strength, ...]
    partly: bool = False

    @property
    def easy(self) -> Strength | None:
        """The strongest that does little harm, or None."""
        return next((s for s in reversed(self.strengths) if s.damage < LITTLE), None)


@dataclass(frozen=True)
class Sensitivity:
    """All that was found.

    Attributes:
        bearings: by site in the order of the net, then by kind.
        skipped: sites that could not be measured, and why.
        ns: predicted nanoseconds of the whole net as it came.
    """

    bearings: tuple[Bearing, ...]
    skipped: tuple[Skipped, ...]
    ns: float


def measure(
    trials: Trials,
    shapes: Shapes,
    target: Target,
    multiple: int,
    tell: Tell,
    late: Callable[[], bool] = lambda: False,
) -> Sensitivity:
    """Measure every site.

    Args:
        trials: hold the original and the samples.
        shapes: observed for a batch of one.
        target: the device.
        multiple: widths and ranks are multiples of this.
        tell: told what goes on.
        late: once it says so, what was not looked at yet is left out.
    """
    original = trials.original
    with within_memory(tensor_bytes(original)):
        bits, arithmetic, skipped = _eight_bits(trials, target, partial(tell, "precision"), late)
        options = collect_with(trials, shapes, multiple)
    gains = _Gains.of(original, options, bits, shapes, target)
    found = [*gains.bearings(), *(gains.arithmetic(name, damage) for name, damage in arithmetic.items())]
    order = {cost.name: place for place, cost in enumerate(node_costs(original, shapes, None))}
    kinds = ("width", "rank", "bits", "arithmetic")
    found.sort(key=lambda b: (order.get(b.site, len(order)), kinds.index(b.kind)))
    return Sensitivity(tuple(found), skipped, gains.total_ns)


def _eight_bits(
    trials: Trials, target: Target, tell: Callable[[float, str], None], late: Callable[[], bool]
) -> tuple[dict[str, float], dict[str, float], tuple[Skipped, ...]]:
    """Damage of 8 bits at each site alone: of its weights, and of arithmetic; and what could not be tried."""
    original, context = trials.original, trials.probe
    stored = sorted({weight.readers[0] for weight in weights_of(original)})
    jobs: list[tuple[int, str, Pass]] = [(0, name, StoreWeights(sites=(exactly(name),))) for name in stored]
    jobs += [
        (1, site.name, Quantize(target.weight_bits, sites=(exactly(site.name),)))
        for site in find_sites(original)
    ]
    jobs = [job for job in jobs if not context.left_by_user(job[1])]

    def harm(place: int) -> float | Skipped:
        _, name, step = jobs[place]
        if late():
            return Skipped(name, "no time was left to try 8 bits")
        tell(place / len(jobs), name)
        try:
            outcome, damage = trials.alone(step)
            if name in outcome.changed:
                return damage
            reasons = [s.reason for s in outcome.skipped if s.site == name]
            return Skipped(name, reasons[0] if reasons else "8 bits save nothing here")
        except EdgepressError as error:  # one site that an engine refuses must not hide the others
            return Skipped(name, f"8 bits: {error}")

    with one_thread_each():
        results = side_by_side(harm, range(len(jobs)))
    damages: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for (which, name, _), result in zip(jobs, results, strict=True):
        if not isinstance(result, Skipped):
            damages[which][name] = result
    skipped = tuple(dict.fromkeys(result for result in results if isinstance(result, Skipped)))
    return *damages, skipped


@dataclass(frozen=True)
class _Gains:
    """What turning one thing down brings, from a net of floats.

    Attributes:
        descent: the cost of all sites; its knobs are the search's, with bits from those of floats down.
        start: the state where nothing is turned.
        elsewhere: bearings of weights that no site has: tables, recurrent layers.
        partly: groups with such nodes.
    """

    descent: Descent
    start: State
    elsewhere: tuple[Bearing, ...]
    partly: frozenset[str]

    @classmethod
    def of(
        cls, model: ir.Model, options: Options, bits: dict[str, float], shapes: Shapes, target: Target
    ) -> "_Gains":
        """The gains of a model whose knobs are known, and the damage of 8-bit weights by site."""
        sites = {site.name: site for site in find_sites(model)}
        knobs, layers = list(options.knobs), []
        for layer in options.layers:
            full = _weight_bits(sites[layer.name])
            index = layer.bits_knob
            fewer = knobs[index] if index >= 0 else Knob("bits", layer.name, BYTE, (), ())
            if layer.name in bits:
                values, damage = (BYTE, *fewer.values), (bits[layer.name], *fewer.damage)
                fewer = replace(fewer, values=values, damage=damage)
            fewer = replace(fewer, full=full)
            if index >= 0:
                knobs[index] = fewer
            else:
                index = len(knobs)
                knobs.append(fewer)
            layers.append(replace(layer, bits_knob=index))
        costs = node_costs(model, shapes, target)
        others = [cost for cost in costs if cost.name not in sites]
        fixed = (sum(cost.latency_ns for cost in others), float(sum(cost.weight_bytes for cost in others)))
        how = Weighing(1.0, 0.0, "float", target.channel_multiple)
        elsewhere = tuple(
            _stored_elsewhere(cost.name, cost.parameters, cost.weight_bytes, bits[cost.name])
            for cost in others
            if cost.name in bits
        )
        return cls(
            Descent(tuple(layers), tuple(knobs), target, how, fixed),
            tuple(knob.full for knob in knobs),
            elsewhere,
            frozenset(group.name for group in shrinkable(model)[1] if not sites.keys() >= set(group.names)),
        )

    @property
    def total_ns(self) -> float:
        """Predicted nanoseconds of the whole net."""
        descent = self.descent
        return float(descent.costs(self.start, range(len(descent.layers)))[0]) + descent.fixed[0]

    def bearings(self) -> list[Bearing]:
        """Each knob, with what each of its values brings."""
        found = list(self.elsewhere)
        for place, knob in enumerate(self.descent.knobs):
            touched = [i for i, layer in enumerate(self.descent.layers) if place in _knobs_of(layer)]
            before = self.descent.costs(self.start, touched)
            strengths = []
            for value, damage in zip(knob.values, knob.damage, strict=True):
                state = (*self.start[:place], value, *self.start[place + 1 :])
                saved = before - self.descent.costs(state, touched)
                strengths.append(Strength(value, damage, float(saved[0]), float(saved[1])))
            if strengths:
                form = knob.form if knob.kind == "rank" else None
                partly = knob.kind == "width" and knob.name in self.partly
                found.append(Bearing(knob.kind, knob.name, knob.full, form, tuple(strengths), partly))
        return found

    def arithmetic(self, name: str, damage: float) -> Bearing:
        """8-bit arithmetic at one site: its kernel is faster, but values go there and back (`hardly_faster`)."""
        descent = self.descent
        place = next(i for i, layer in enumerate(descent.layers) if layer.name == name)
        knob = descent.layers[place].bits_knob
        integers = replace(descent, how=replace(descent.how, precision="int8"))
        state = (*self.start[:knob], BYTE, *self.start[knob + 1 :])
        saved = descent.costs(self.start, [place]) - integers.costs(state, [place])
        ns = float(saved[0]) - descent.target.node_overhead_ns
        strength = Strength(descent.target.weight_bits, damage, ns, float(saved[1]))
        return Bearing("arithmetic", name, self.start[knob], None, (strength,))


def _weight_bits(site: Site) -> int:
    """Bits of each of a site's weights as they came."""
    value = site.node.inputs[1]
    dtype = value.dtype if value is not None else None
    return max(BYTE, int(8 * dtype.itemsize)) if dtype is not None else 32


def _knobs_of(layer: Layer) -> Sequence[int]:
    return (layer.rows_knob, layer.columns_knob, layer.rank_knob, layer.bits_knob)


def _stored_elsewhere(name: str, parameters: int, size: int, damage: float) -> Bearing:
    """8-bit weights of a node that is no site: a table, a recurrent layer."""
    full = max(BYTE, round(8 * size / max(parameters, 1)))
    saved = Strength(BYTE, damage, 0.0, float(size) * (1 - BYTE / full))
    return Bearing("bits", name, full, None, (saved,))
