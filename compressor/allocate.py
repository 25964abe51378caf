"""Which strength at which site: one greedy descent over all groups and ranks at once.

Every group of channels has a width, every dense site may have a rank. From the full model, each step takes the option
with the most gain per damage, where gain is the fall of the objective (log of predicted latency and of bytes) on the
device and damage is the change of the model's own outputs, predicted as sensitivity × local error (both measured; see
`options.py`). The steps form a path of ever smaller models; search walks it by real evaluation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.cost import kernel_ns
from edgepress.compressor.protocols import Matrix, Target


@dataclass(frozen=True)
class Knob:
    """One thing that can be turned down.

    Attributes:
        kind: `width` of a group, or `rank` of a site.
        name: the group's or the site's name.
        full: the value at which nothing is changed.
        values: allowed lower values, descending.
        damage: predicted damage at each of `values`.
    """

    kind: str
    name: str
    full: int
    values: tuple[int, ...]
    damage: tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    """A site as the cost model sees it.

    Attributes:
        name: the site.
        rows: outputs, and `rows_knob` the width knob that makes them fewer (index, or −1).
        columns: inputs × taps, `columns_knob` and `per_unit`, the columns that one unit takes along.
        groups: a depthwise site costs rows × taps.
        positions: output positions per sample.
        rank_knob: index of its rank knob, or −1.
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


@dataclass(frozen=True)
class Weighing:
    """How much latency and size count in the objective, as exponents of a weighted geometric mean."""

    latency: float
    size: float
    integer: bool
    multiple: int


def layer_cost(
    layer: Layer, state: Sequence[int], knobs: Sequence[Knob], target: Target, how: Weighing
) -> tuple[float, float]:
    """Predicted nanoseconds and stored bytes of one layer.

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
    if layer.depthwise_taps:
        parts = [(rows, float(layer.depthwise_taps))]
    elif layer.rank_knob >= 0 and state[layer.rank_knob] < knobs[layer.rank_knob].full:
        rank = float(state[layer.rank_knob])
        parts = [(rank, columns), (rows, rank)]
    else:
        parts = [(rows, columns)]
    ns = size = 0.0
    for out, inputs in parts:
        lanes = math.ceil(out / how.multiple) * how.multiple
        weights = out * inputs
        size += weights + 4 * out + 150
        moved = weights + out * layer.positions * (1 if how.integer else 4)
        ns += target.node_overhead_ns + kernel_ns(
            target, lanes * inputs * layer.positions, moved, integer=how.integer
        )
    return ns, size


def descend(
    layers: Sequence[Layer], knobs: Sequence[Knob], target: Target, how: Weighing, fixed: tuple[float, float]
) -> list[tuple[tuple[int, ...], float]]:
    """Walk from the full model to the smallest, best gain per damage first.

    Args:
        layers: all sites.
        knobs: everything that can be turned down.
        target: the device.
        how: the objective.
        fixed: nanoseconds and bytes of what no knob changes.

    Returns:
        States (a value per knob) with the predicted damage of each, from none to all.
    """
    state = [knob.full for knob in knobs]
    touched: list[list[int]] = [[] for _ in knobs]
    for index, layer in enumerate(layers):
        for knob in {layer.rows_knob, layer.columns_knob, layer.rank_knob} - {-1}:
            touched[knob].append(index)
    costs = np.array(
        [layer_cost(layer, state, knobs, target, how) for layer in layers], dtype=np.float64
    ).reshape(-1, 2)
    total = costs.sum(0) + np.asarray(fixed)
    damage = [0.0] * len(knobs)
    path = [(tuple(state), 0.0)]
    while True:
        best: tuple[float, int, int, Matrix] | None = None
        for k, knob in enumerate(knobs):
            for v, value in enumerate(knob.values):
                if value >= state[k]:
                    continue
                trial = [*state[:k], value, *state[k + 1 :]]
                new = np.array(
                    [layer_cost(layers[i], trial, knobs, target, how) for i in touched[k]]
                ).reshape(-1, 2)
                after = total + new.sum(0) - costs[touched[k]].sum(0)
                gain = how.latency * math.log(total[0] / max(after[0], 1e-9)) + how.size * math.log(
                    total[1] / max(after[1], 1e-9)
                )
                extra = max(knob.damage[v] - damage[k], 1e-12)
                if gain > 1e-6 and (best is None or gain / extra > best[0]):
                    best = (gain / extra, k, v, new)
        if best is None:
            return path
        _, k, v, new = best
        total = total + new.sum(0) - costs[touched[k]].sum(0)
        costs[touched[k]] = new
        state[k], damage[k] = knobs[k].values[v], knobs[k].damage[v]
        path.append((tuple(state), sum(damage)))
