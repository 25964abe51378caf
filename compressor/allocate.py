"""Which strength at which site: one greedy descent over all groups and ranks at once.

Every group of channels has a width, every dense site may have a rank. From the full model, each step takes the option
with the most gain per damage, where gain is the fall of the objective (log of predicted latency and of bytes) on the
device and damage is the change of the model's own outputs, predicted as sensitivity × local error (both measured; see
`options.py`). The steps form a path of ever smaller models; search walks it by real evaluation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from edgepress.compressor.cost import layer_ns
from edgepress.compressor.numerics.packing import stored_bytes
from edgepress.compressor.protocols import Matrix, Target
from edgepress.compressor.structures import Structure


class Part(NamedTuple):
    """One kernel of a layer.

    Attributes:
        outputs: its outputs.
        columns: inputs × taps that each reads; 0 where it only copies.
        positions: output positions.
        kind: of the kernel, as `devices/table.py` has them.
    """

    outputs: float
    columns: float
    positions: float
    kind: str = "product"


Precision = Literal["float", "int8", "dynamic"]
"""Of the arithmetic: in floats, in 8 bits by ranges of samples, or of products alone by the ranges of each input."""

State = tuple[int, ...]
"""A value for each knob."""


@dataclass(frozen=True)
class Knob:
    """One thing that can be turned down.

    Attributes:
        kind: `width` of a group, `rank` of a site, or `bits` of its weights.
        name: the group's or the site's name.
        full: the value at which nothing is changed.
        values: allowed lower values, descending.
        damage: predicted damage at each of `values`.
        form: of a rank, how the site is split.
        shared: of bits, whether few of them do less harm as indices of values that lie where the weights are.
        rounded: of a rank, by bits, the same where the two factors have so many; it stands for both knobs then.
    """

    kind: str
    name: str
    full: int
    values: tuple[int, ...]
    damage: tuple[float, ...]
    form: Structure = "channels"
    rounded: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    shared: bool = False


@dataclass(frozen=True)
class Layer:
    """A site as the cost model sees it.

    Attributes:
        name: the site.
        rows: outputs, and `rows_knob` the width knob that makes them fewer (index, or −1).
        columns: inputs × taps, `columns_knob` and `per_unit`, the columns that one unit takes along.
        depthwise_taps: a depthwise site costs rows × taps.
        positions: output positions per sample.
        rank_knob: index of its rank knob, or −1.
        bits_knob: index of its bits knob, or −1.
        kernel: rows and columns of its taps.
        input_positions: positions of its input along rows and columns, over those of its output.
        groups: of a convolution that is not depthwise.
        product: whether it is a MatMul or Gemm.
        spread: output positions to each of `positions`, which a transposed convolution has at its input.
        kind: of its kernel, as `devices/table.py` has them.
    """

    name: str
    rows: int
    rows_knob: int
    columns: int
    columns_knob: int
    per_unit: float
    rows_per_unit: float
    positions: int
    depthwise_taps: int
    rank_knob: int
    bits_knob: int = -1
    kernel: tuple[int, int] = (1, 1)
    input_positions: tuple[float, float] = (1.0, 1.0)
    groups: int = 1
    product: bool = False
    spread: float = 1.0
    kind: str = "product"

    def split(self, form: Structure, rank: float, rows: float, columns: float) -> Sequence[Part]:
        """What the site becomes at a rank, or with so many filters a channel, with these rows and columns."""
        (_, wide), (down, across) = self.kernel, self.input_positions
        taps, thin = math.prod(self.kernel), "pointwise" if self.kind == "conv" else self.kind
        if form == "space":
            first = Part(rank, columns / wide, self.positions * across, self.kind)
            return [first, Part(rows, rank * wide, self.positions, self.kind)]
        if form == "tucker":
            inner = max(rank * columns / taps / rows, 1.0)
            first = Part(inner, columns / taps, self.positions * down * across, thin)
            middle = Part(rank, inner * taps, self.positions, self.kind)
            return [first, middle, Part(rows, rank, self.positions, thin)]
        if form == "separable":
            inner = rank * columns / taps
            copies = [Part(inner, 0, self.positions * down * across)] if rank > 1 else []
            depthwise = Part(inner, taps, self.positions, "depthwise")
            return [*copies, depthwise, Part(rows, inner, self.positions, thin)]
        last = Part(rows, rank, self.positions * self.spread, thin)
        return [Part(rank * self.groups, columns, self.positions, self.kind), last]


@dataclass(frozen=True)
class Weighing:
    """How much latency and size count in the objective, as exponents of a weighted geometric mean.

    Attributes:
        latency: exponent of predicted nanoseconds.
        size: exponent of bytes.
        precision: of the arithmetic.
        multiple: widths that fill a kernel's lanes.
        held: where memory is meant by size, how much of a site's outputs is at the peak of a run (their share, the same
            for all of them); 0: the file's bytes.
        in_flash: whether a run leaves weights where the file is.
    """

    latency: float
    size: float
    precision: Precision
    multiple: int
    held: float = 0.0
    in_flash: bool = False

    def integer(self, layer: Layer, part: Part, known: bool) -> bool:
        """Whether a part of a layer gains by 8-bit kernels.

        Args:
            layer: the layer.
            part: of it.
            known: whether the target's table tells what such kernels cost; else depthwise ones are taken for no
                faster than float ones.
        """
        dense = self.precision == "int8" or (self.precision == "dynamic" and layer.product)
        return dense and (known or part.kind != "depthwise")


def layer_cost(
    layer: Layer, state: Sequence[int], knobs: Sequence[Knob], target: Target, how: Weighing
) -> tuple[float, float]:
    """Predicted nanoseconds and stored bytes of one layer; or, where memory is meant, bytes that a run holds.

    Args:
        layer: the layer.
        state: current value of each knob.
        knobs: all knobs.
        target: the device.
        how: precision and granularity.
    """
    rows, columns = float(layer.rows), float(layer.columns)
    if layer.rows_knob >= 0:
        rows -= (knobs[layer.rows_knob].full - state[layer.rows_knob]) * layer.rows_per_unit
    if layer.columns_knob >= 0:
        columns -= (knobs[layer.columns_knob].full - state[layer.columns_knob]) * layer.per_unit
    parts: Sequence[Part] = [Part(rows, columns, layer.positions, layer.kind)]
    if layer.depthwise_taps:
        parts = [Part(rows, float(layer.depthwise_taps), layer.positions, "depthwise")]
    elif layer.rank_knob >= 0 and state[layer.rank_knob] < knobs[layer.rank_knob].full:
        parts = layer.split(knobs[layer.rank_knob].form, float(state[layer.rank_knob]), rows, columns)
    bits = 8 if layer.bits_knob < 0 else state[layer.bits_knob]
    ns = size = 0.0
    for part in parts:
        out, inputs, at = part.outputs, part.columns, part.positions
        lanes = math.ceil(out / how.multiple) * how.multiple
        weights, integer = out * inputs, how.integer(layer, part, target.table is not None)
        each = 1 if how.precision == "int8" else 4
        moved = weights + out * at * each
        # A runtime unpacks weights of any bits when it loads them, to floats unless it computes in integers.
        loaded = 0 if how.in_flash else 1 if integer else 4
        held = weights * loaded + how.held * out * at * each
        stored = stored_bytes(weights, bits) if bits <= 8 else weights * bits / 8  # floats
        size += (held if how.held else stored) + (4 * out if weights else 0) + 150
        sizes = (part.kind, inputs, lanes, at) if weights else ("add", 1.0, 1.0, out * at)
        ns += layer_ns(target, sizes, moved, integer=integer)
    return ns, size


@dataclass(frozen=True)
class Descent:
    """A descent over the knobs of one model for one device and objective.

    Attributes:
        layers: all sites.
        knobs: everything that can be turned down.
        target: the device.
        how: the objective.
        fixed: nanoseconds and bytes of what no knob changes.
        still: knobs that are not turned.
    """

    layers: Sequence[Layer]
    knobs: Sequence[Knob]
    target: Target
    how: Weighing
    fixed: tuple[float, float]
    still: frozenset[int] = frozenset()

    def path(self) -> list[State]:
        """States from the full model to the smallest, best gain per damage first."""
        state: State = tuple(knob.full for knob in self.knobs)
        states = [state]
        while (following := self.step(state)) is not None:
            state = following
            states.append(state)
        return states

    def damage(self, state: State) -> float:
        """Predicted damage of a state: the sum over its knobs, a site's rank and bits taken together."""
        return sum(self._damage(k, state) for k in range(len(state)))

    def costs(self, state: State, layers: Sequence[int]) -> Matrix:
        """Nanoseconds and bytes [2] of some layers together."""
        each = [self._cost(i, state) for i in layers]
        total: Matrix = np.asarray(each, dtype=np.float64).reshape(-1, 2).sum(0)
        return total

    def _cost(self, i: int, state: State) -> tuple[float, float]:
        key = (i, *[state[k] for k in self._own[i]])
        if key not in self._costs:
            self._costs[key] = layer_cost(self.layers[i], state, self.knobs, self.target, self.how)
        return self._costs[key]

    def step(self, state: State, frozen: frozenset[int] = frozenset()) -> State | None:
        """The next state: the one turn of a knob with the most gain per damage; None where nothing gains.

        Args:
            state: current value of each knob.
            frozen: knobs that may not be turned.
        """
        total = self.costs(state, range(len(self.layers))) + np.asarray(self.fixed)
        best: tuple[float, State] | None = None
        for k, knob in enumerate(self.knobs):
            if k in frozen or k in self.still:
                continue
            before = self.costs(state, self._touched[k])
            for value in knob.values:
                if value >= state[k]:
                    continue
                trial = (*state[:k], value, *state[k + 1 :])
                after = total - before + self.costs(trial, self._touched[k])
                fall = np.log(total / np.maximum(after, 1e-9))
                gain = self.how.latency * fall[0] + self.how.size * fall[1]
                each = (k, *self._partners.get(k, ()))
                more = sum(self._damage(i, trial) - self._damage(i, state) for i in each)
                rate = gain / max(more, 1e-12)
                if gain > 1e-6 and (best is None or rate > best[0]):
                    best = (float(rate), trial)
        return None if best is None else best[1]

    def stride(self, state: State, steps: int, frozen: frozenset[int] = frozenset()) -> State:
        """The state some steps on; fewer where nothing gains any more."""
        for _ in range(steps):
            following = self.step(state, frozen)
            if following is None:
                break
            state = following
        return state

    def turned(self, before: State, after: State) -> int:
        """Which knob a step turned."""
        return next(k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)

    def _damage(self, k: int, state: State) -> float:
        knob, value = self.knobs[k], state[k]
        if value >= knob.full:
            return 0.0
        for partner in self._partners.get(k, ()):
            other = self.knobs[partner]
            if state[partner] < other.full:  # both are on: the rank's table tells, the bits add nothing
                return knob.rounded[state[partner]][knob.values.index(value)] if knob.rounded else 0.0
        return knob.damage[knob.values.index(value)]

    @cached_property
    def _partners(self) -> dict[int, tuple[int]]:
        """Rank and bits of one site, each by the other."""
        pairs = [(x.rank_knob, x.bits_knob) for x in self.layers if min(x.rank_knob, x.bits_knob) >= 0]
        return {a: (b,) for pair in pairs for a, b in (pair, pair[::-1])}

    @cached_property
    def _costs(self) -> dict[tuple[int, ...], tuple[float, float]]:
        """What was worked out: a layer, the values of its own knobs → its cost."""
        return {}

    @cached_property
    def _own(self) -> list[list[int]]:
        """Knobs that change each layer's cost."""
        return [sorted({x.rows_knob, x.columns_knob, x.rank_knob, x.bits_knob} - {-1}) for x in self.layers]

    @cached_property
    def _touched(self) -> list[list[int]]:
        """Layers whose cost each knob changes."""
        touched: list[list[int]] = [[] for _ in self.knobs]
        for index, own in enumerate(self._own):
            for knob in own:
                touched[knob].append(index)
        return touched
