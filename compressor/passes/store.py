"""Weights stored in few bits that become floats again at load: a quarter of the file, or less, at float speed.

    w = q · s        q of 2 to 8 bits, s one scale per output channel (row, for tables)

Operators on constants are folded by every ordinary runtime, so nothing is left of them at run time. A
DequantizeLinear is not used: in front of a MatMul it becomes a kernel that quantizes activations as well, and
in front of a GRU it is not folded. Rounding is compensated as in `quantize`, by the bias.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgepress.compressor.numerics.grids import Array, Grid, dequantize
from edgepress.compressor.numerics.packing import MOST_PACKED_BITS
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns, site_name
from edgepress.compressor.passes.calibrate import (
    Mean,
    bias_takes_mean,
    correct_bias,
    means_left_behind,
    means_of,
)
from edgepress.compressor.passes.constants import UNPACKING_OPSET, Constants, packed
from edgepress.compressor.passes.integer_forms import raise_opset
from edgepress.compressor.passes.rounding import (
    HALF,
    Ranges,
    Rounded,
    check_bits,
    round_by_outputs,
    round_plainly,
    weight_grid,
)
from edgepress.compressor.sites import (
    Site,
    constant,
    find_sites,
    int_attribute,
    site_of,
)

WEIGHTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "GRU": (1, 2),
    "LSTM": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),
}
"""Operator → inputs that are weights."""

OVERHEAD = 200
"""Bytes of the nodes; names come on top, nine times. A weight that saves less stays as it is."""


CAST_OVERHEAD = 60
"""The same of a weight in half precision: names come on top three times."""


@dataclass(frozen=True)
class Stored:
    """One weight to store.

    Attributes:
        value: the initializer.
        readers: names of the nodes that read it, the first of them the one that gives it its site.
        node: the first reader.
        index: which of that node's inputs it is.
    """

    value: ir.Value
    readers: tuple[str, ...]
    node: ir.Node
    index: int


@dataclass(frozen=True)
class StoreWeights(Pass):
    """Keep weights as integers that fold to floats at load.

    Attributes:
        weight_bits: 2 to 8, or 16: half precision.
        bits: (site, bits) pairs that differ from that; of the readers of one weight the first by name counts.
        weight_ranges: `minmax` clips no weight, `mse` clips where that rounds the others better.
        bias_correction: with samples, take the mean error of rounded weights out of the bias.
        min_elements: smaller weights stay as they are.
        sites: regular expressions of sites whose weights to store; empty for all.
        leave: names of sites not to touch.
    """

    kind: ClassVar[str] = "store"
    weight_bits: int = 8
    bits: tuple[tuple[str, int], ...] = ()
    weight_ranges: Ranges = "minmax"
    bias_correction: bool = True
    min_elements: int = 64
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_bits(self.kind, self.weight_bits, self.bits, half=True)
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Store the weights of `model` in place; samples are used where there are any."""
        chosen, skipped = choose(model, lambda stored: self._refusal(stored, context))
        few = min([self.weight_bits, *(bits for _, bits in self.bits)]) <= MOST_PACKED_BITS
        if few and chosen and raise_opset(model, UNPACKING_OPSET):
            chosen, skipped = choose(model, lambda stored: self._refusal(stored, context))
        whole = [stored for stored in chosen if self._bits(stored) != HALF]
        means = mean_inputs(model, whole, context) if self.bias_correction else {}
        grids = {stored.node: self._grid(stored) for stored in whole}
        ours = {s.node for s in whole if s.index == 1}
        sites = [site for site in find_sites(model) if site.node in ours]
        rounded = round_by_outputs(model, grids, sites, {}, context, means)
        constants = Constants(model)
        for stored in chosen:
            if stored not in whole:
                _halve(constants, stored.value)
        for stored in whole:
            site = correctable(stored) if stored.node in means else None
            error = self._store(constants, stored, rounded.get(stored.node))
            if site is not None:
                correct_bias(site, error, means[stored.node])
        changed = dict.fromkeys(name for stored in chosen for name in stored.readers)
        names = {site_name(node) for node in model.graph}
        skipped += [Skipped(name, "no such site") for name, _ in self.bits if name not in names]
        left = dict.fromkeys(s for s in skipped if s.site not in changed)
        return Outcome(bool(chosen), tuple(changed), tuple(left))

    def _refusal(self, stored: Stored, context: Context) -> str | None:
        """Why a weight stays as it is, or None."""
        reason = left_alone(stored, context, self.sites, self.leave, self.min_elements)
        array = constant(stored.value)
        if reason is not None or array is None:
            return reason
        length = len(stored.value.name or "")
        if self._bits(stored) == HALF:
            if np.abs(array).max() > np.finfo(np.float16).max:
                return "a weight is too large for half precision"
            saved = array.nbytes - 2 * array.size - CAST_OVERHEAD - 3 * length
        else:
            saved = array.nbytes - array.size - scale_shape(stored, array)[1] * 4 - OVERHEAD - 9 * length
        return None if saved > 0 else "the file would not get smaller"

    def _bits(self, stored: Stored) -> int:
        bits = dict(self.bits)
        return next((bits[r] for r in stored.readers if r in bits), self.weight_bits)

    def _grid(self, stored: Stored) -> Grid:
        array = constant(stored.value)
        return weight_grid(self._bits(stored), 0 if array is None else array.size)

    def _store(self, constants: Constants, stored: Stored, rounded: Rounded | None) -> Array:
        """Replace one initializer by what becomes it at load; gives the error of its rounding, in float32."""
        array, grid = constant(stored.value), self._grid(stored)
        if array is None:
            raise ValueError(f"{stored.value.name} is not constant")
        shape, rows = scale_shape(stored, array)
        axis = next((i for i, size in enumerate(shape) if size != 1), None)
        wide = array.astype(np.float32)
        if sum(size != 1 for size in shape) > 1:  # a recurrent net: directions × gates are rows of one matrix
            wide, axis = wide.reshape(rows, -1), 0
        if rounded is None or len(rounded[1]) != rows:
            rounded = round_plainly(wide, grid, axis, 0.0, self.weight_ranges)
        q, scale = rounded
        error: Array = dequantize(q, scale, axis=axis) - wide
        _fold_at_load(
            constants, stored.value, q.reshape(array.shape), scale.reshape(shape if scale.ndim else ()), grid
        )
        return error.reshape(array.shape)


def choose(model: ir.Model, refusal: Callable[[Stored], str | None]) -> tuple[list[Stored], list[Skipped]]:
    """Weights to store, and the others with the reason that `refusal` gives."""
    chosen, skipped = [], []
    for stored in weights_of(model):
        reason = refusal(stored)
        if reason is None:
            chosen.append(stored)
        else:
            skipped.append(Skipped(stored.readers[0], reason))
    return chosen, skipped


def left_alone(
    stored: Stored, context: Context, sites: Sequence[str], leave: Collection[str], min_elements: int
) -> str | None:
    """Why a weight is none to be stored, whatever it would save, or None.

    Args:
        stored: the weight.
        context: knows what the user leaves.
        sites: regular expressions of the sites that the recipe is for; empty for all.
        leave: names of those that it leaves.
        min_elements: the fewest weights.
    """
    for name in stored.readers:
        if context.left_by_user(name):
            return "--leave names it"
        if name in leave or (sites and not any(re.search(p, name) for p in sites)):
            return "the recipe leaves it as it is"
    array = constant(stored.value)
    if array is None or array.dtype not in (np.float32, np.float16):
        return "its weights are no float constant"
    if not np.isfinite(array).all():
        return "its weights are not finite"
    return f"it has fewer than {min_elements} weights" if array.size < min_elements else None


def mean_inputs(model: ir.Model, chosen: Sequence[Stored], context: Context) -> dict[ir.Node, Array]:
    """Mean inputs of those readers whose bias can take up the error of their weights; none without samples."""
    sites = [site for stored in chosen if (site := correctable(stored)) is not None]
    if context.stream is None or not sites:
        return {}
    means = means_left_behind(model, sites, context)
    unknown = [Mean(site) for site in sites if site.node not in means]
    return means | (means_of(context.stream, model, unknown) if unknown else {})


def weights_of(model: ir.Model) -> Iterator[Stored]:
    """Initializers of the main graph that some node reads as its weights, and nobody as anything else."""
    for value in list(model.graph.initializers.values()):
        uses = [(use.node, use.idx) for use in value.uses()]
        if (
            value.dtype is not None and value.dtype.is_integer()
        ):  # a Gather of integers is no table of weights
            continue
        heavy = [(n, i) for n, i in uses if n.domain in ("", "ai.onnx") and i in WEIGHTS.get(n.op_type, ())]
        if not heavy or len(heavy) < len(uses) or value.is_graph_input() or value.is_graph_output():
            continue
        if any(packed(node) is not None for node, _ in heavy):  # levels, of weights that are stored already
            continue
        first = min(heavy, key=lambda use: site_name(use[0]))
        readers = (site_name(first[0]), *sorted({site_name(n) for n, _ in heavy} - {site_name(first[0])}))
        yield Stored(value, readers, *first)


def scale_shape(stored: Stored, array: Array) -> tuple[tuple[int, ...], int]:
    """Shape of the scales, so that they broadcast over the weights, and how many there are.

    Args:
        stored: says how the weights are read.
        array: the weights.
    """
    node, ndim = stored.node, array.ndim
    if ndim < 2:
        return (1,) * ndim, 1
    if node.op_type in ("GRU", "LSTM", "RNN"):
        keep: tuple[int, ...] = tuple(range(ndim - 1))
    elif node.op_type == "Gather":
        keep = (int_attribute(node, "axis", 0) % ndim,)
    elif node.op_type == "Conv":
        keep = (0,)
    elif node.op_type == "ConvTranspose":
        keep = (1,)
    elif node.op_type == "Gemm":
        flipped = int_attribute(node, "transB" if stored.index else "transA", 0)
        keep = (1 - flipped if stored.index else flipped,)
    else:
        keep = (ndim - 1 if stored.index else ndim - 2,)
    shape = tuple(size if i in keep else 1 for i, size in enumerate(array.shape))
    count = int(np.prod(shape))
    if count * 8 > array.size:  # narrow rows: their scales would cost as much as they save
        return (1,) * ndim, 1
    return shape, count


def _fold_at_load(constants: Constants, value: ir.Value, q: Array, scale: Array, grid: Grid) -> None:
    """Put q · scale in the place of an initializer, under its name."""
    name = value.name or "weight"
    constants.model.graph.initializers.pop(name)
    codes = constants.integers(f"{name}_q", q, grid, constants.first, np.float32)
    scaled_at_load(constants, value, codes, scale)


def scaled_at_load(constants: Constants, value: ir.Value, codes: ir.Value, scale: Array) -> None:
    """Let codes · scale, in float32, be read where an initializer that is in the graph no more was read."""
    name, half = value.name or "weight", value.dtype == ir.DataType.FLOAT16
    product = ir.Value(name=constants.fresh(f"{name}_wide") if half else name)
    nodes = [ir.Node("", "Mul", [codes, constants.add(f"{name}_scale", scale)], outputs=[product])]
    if half:  # not multiplied in float16: there is no such kernel on a CPU, so nothing would be folded
        nodes.append(_cast(product, ir.DataType.FLOAT16, name))
    constants.model.graph.insert_before(constants.first, nodes)
    replace_value(value, nodes[-1].outputs[0])


def _halve(constants: Constants, value: ir.Value) -> None:
    """Put half-precision numbers, widened at load, in the place of an initializer, under its name."""
    name, array = value.name or "weight", constant(value)
    if array is None or value.dtype is None:
        raise ValueError(f"{name} is not constant")
    constants.model.graph.initializers.pop(name)
    narrow = constants.add(f"{name}_half", array.astype(np.float16))
    wide = _cast(narrow, value.dtype, name)
    constants.model.graph.insert_before(constants.first, wide)
    replace_value(value, wide.outputs[0])


def replace_value(value: ir.Value, result: ir.Value) -> None:
    """Let all that read an initializer read what becomes the same at load."""
    result.type, result.shape = value.type, value.shape
    result.meta.update(value.meta)
    ir.convenience.replace_all_uses_with(value, result)


def _cast(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(kind))], outputs=[ir.Value(name=name)])


def correctable(stored: Stored) -> Site | None:
    """The site whose bias can take up the error of a weight: it alone reads it, and its bias is its own."""
    site = site_of(stored.node)
    if site is None or stored.node.graph is not stored.value.graph or stored.index != 1:
        return None
    return site if bias_takes_mean(site) and len(stored.value.uses()) == 1 else None
