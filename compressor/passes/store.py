"""Weights stored in few bits that become floats again at load: a quarter of the file, or less, at float speed.

    w = (q − z) · s        q of 2 to 8 bits; s and z of an output channel (row, for tables), a block in it, or all

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

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.grids import Array, Grid
from edgepress.compressor.numerics.packing import MOST_PACKED_BITS
from edgepress.compressor.numerics.rounding import Rounding, levels_at
from edgepress.compressor.numerics.steps import Granularity, is_symmetric
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns, site_name
from edgepress.compressor.passes.calibrate import (
    bias_takes_mean,
    correct_bias,
    site_means,
)
from edgepress.compressor.passes.constants import BROADCAST_OPSET, UNPACKING_OPSET, Constants, packed
from edgepress.compressor.passes.integer_forms import raise_opset
from edgepress.compressor.passes.layout import Layout, Stored
from edgepress.compressor.passes.rounding import (
    HALF,
    Ranges,
    Rounded,
    check_bits,
    check_share,
    round_by_outputs,
    round_plainly,
    spared,
    weight_grid,
)
from edgepress.compressor.sites import (
    Site,
    constant,
    find_sites,
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
    "Einsum": (0, 1),
}
"""Operator → inputs that are weights."""

OVERHEAD = 200
"""Bytes of the nodes; names come on top, nine times. A weight that saves less stays as it is."""


CAST_OVERHEAD = 60
"""The same of a weight in half precision: names come on top three times."""


@dataclass(frozen=True)
class StoreWeights(Pass):
    """Keep weights as integers that fold to floats at load.

    Attributes:
        weight_bits: 2 to 8, or 16: half precision.
        bits: (site, bits) pairs that differ from that; of the readers of one weight the first by name counts.
        symmetric: zero point 0; else each scale has one.
        granularity: what shares a scale: a `channel` (of outputs), a `block` of its inputs, or the `tensor`.
        block: inputs of a block; where it does not divide them, and in recurrent nets and tables, the channel counts.
        rounding: below 7 bits: to the `nearest` integer, or by outputs: column by column (`gptq`), and then weight
            by weight (`coordinate`).
        spare: bytes, as a share of those of all weights, spent on 8 bits for weights that take few; not for `bits`.
        weight_ranges: `minmax` clips no weight, `mse` clips where that rounds the others better, `auto` below 7 bits.
        bias_correction: with samples, take the mean error of rounded weights out of the bias.
        min_elements: smaller weights stay as they are.
        sites: regular expressions of sites whose weights to store; empty for all.
        leave: names of sites not to touch.
    """

    kind: ClassVar[str] = "store"
    weight_bits: int = 8
    bits: tuple[tuple[str, int], ...] = ()
    symmetric: bool = True
    granularity: Granularity = "channel"
    block: int = 32
    rounding: Rounding = "coordinate"
    spare: float = 0.05
    weight_ranges: Ranges = "auto"
    bias_correction: bool = True
    min_elements: int = 64
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_bits(self.kind, self.weight_bits, self.bits, half=True)
        check_share(self.kind, self.spare)
        if self.block < 1:
            raise UsageError(f"store: block is {self.block}", "Choose 1 or more inputs.")
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Store the weights of `model` in place; samples are used where there are any."""
        chosen, skipped = choose(model, lambda stored: self._refusal(stored, context))
        few = min([self.weight_bits, *(bits for _, bits in self.bits)]) <= MOST_PACKED_BITS
        if chosen and raise_opset(model, UNPACKING_OPSET if few else BROADCAST_OPSET):
            chosen, skipped = choose(model, lambda stored: self._refusal(stored, context))
        whole = [stored for stored in chosen if self._bits(stored) != HALF]
        means = mean_inputs(model, whole, context) if self.bias_correction else {}
        grids = self._grids(whole)
        ours = {s.node for s in whole if s.index == 1}
        sites = [site for site in find_sites(model) if site.node in ours]
        rounded = round_by_outputs(
            model, {s.node: grids[s.value] for s in whole if s.index == 1}, sites, {}, context, means,
            how=self.rounding, ranges=self.weight_ranges, granularity=self.granularity, block=self.block,
        )  # fmt: skip
        constants = Constants(model)
        for stored in chosen:
            if stored not in whole:
                _halve(constants, stored.value)
        for stored in whole:
            site = correctable(stored) if stored.node in means else None
            found = rounded.get(stored.node) if stored.index == 1 else None
            error = self._store(constants, stored, grids[stored.value], found)
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
            scales = Layout.of(stored, array, self.granularity, self.block).scales
            each = 4 if self.symmetric else 5
            saved = array.nbytes - array.size - scales * each - OVERHEAD - 9 * length
        return None if saved > 0 else "the file would not get smaller"

    def _bits(self, stored: Stored) -> int:
        bits = dict(self.bits)
        return next((bits[r] for r in stored.readers if r in bits), self.weight_bits)

    def _grids(self, chosen: Sequence[Stored]) -> dict[ir.Value, Grid]:
        """The format of each weight."""
        named, sizes = {name for name, _ in self.bits}, {s.value: s.value.shape for s in chosen}
        counts = {
            value: 1 if shape is None else int(np.prod(shape.numpy())) for value, shape in sizes.items()
        }
        unnamed = [stored for stored in chosen if named.isdisjoint(stored.readers)]
        better = spared({s.value: (counts[s.value], self._bits(s)) for s in unnamed}, self.spare)
        return {
            s.value: weight_grid(
                8 if s.value in better else self._bits(s), counts[s.value], symmetric=self.symmetric
            )
            for s in chosen
        }

    def _store(self, constants: Constants, stored: Stored, grid: Grid, rounded: Rounded | None) -> Array:
        """Replace one initializer by what becomes it at load; gives the error of its rounding, in float32."""
        array = constant(stored.value)
        if array is None:
            raise ValueError(f"{stored.value.name} is not constant")
        layout = Layout.of(stored, array, self.granularity, self.block)
        matrix = layout.matrix(array)
        if rounded is None or (layout.width is None and self.granularity != "tensor"):
            rounded = round_plainly(matrix, grid, layout.width, 0.0, self.weight_ranges)
        codes, steps = rounded
        error = layout.array(np.asarray(levels_at(codes, steps) - matrix, np.float32))
        q, scale, zero = layout.split(codes), layout.each(steps.scales), layout.each(steps.zeros)
        zeros = None if is_symmetric(grid) else zero.astype(grid.dtype)
        _fold_at_load(constants, stored.value, q, scale.astype(np.float32), zeros, grid)
        return error


def choose(model: ir.Model, refusal: Callable[[Stored], str | None]) -> tuple[list[Stored], list[Skipped]]:
    """Weights to store, and the others with the reason that `refusal` gives."""
    chosen, skipped = list[Stored](), list[Skipped]()
    for value in model.graph.initializers.values():
        heavy, others = _readers(value)
        if heavy and others:
            reason = f"{others[0].op_type} {site_name(others[0])} reads its weights, too"
            skipped.append(Skipped(site_name(heavy[0][0]), reason))
    for stored in weights_of(model):
        refused = refusal(stored)
        if refused is None:
            chosen.append(stored)
        else:
            skipped.append(Skipped(stored.readers[0], refused))
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
    return site_means(model, sites, context)


def weights_of(model: ir.Model) -> Iterator[Stored]:
    """Initializers of the main graph that some node reads as its weights, and nobody as anything else.

    A Transpose on the way is looked through: a table of words that is the last layer, too, is one weight.
    """
    for value in list(model.graph.initializers.values()):
        heavy, others = _readers(value)
        if not heavy or others or value.is_graph_input() or value.is_graph_output():
            continue
        if any(packed(node) is not None for node, _ in heavy):  # levels, of weights that are stored already
            continue
        direct = [(use.node, use.idx) for use in value.uses() if _heavy(use.node, use.idx)]
        if not direct:
            continue
        first = min(direct, key=lambda use: site_name(use[0]))
        names = {site_name(n) for n, _ in heavy} - {site_name(first[0])}
        yield Stored(value, (site_name(first[0]), *sorted(names)), *first)


def _readers(value: ir.Value) -> tuple[list[tuple[ir.Node, int]], list[ir.Node]]:
    """Those that read an initializer as their weights, perhaps behind a Transpose, and the others."""
    heavy: list[tuple[ir.Node, int]] = []
    others: list[ir.Node] = []
    # a Gather of integers is no table of weights
    floats = value.dtype is None or not value.dtype.is_integer()
    for use in value.uses() if floats else ():
        node, result = use.node, use.node.outputs[0]
        turned = node.op_type == "Transpose" and node.domain in ("", "ai.onnx")
        ends = [(end.node, end.idx) for end in result.uses()] if turned else [(node, use.idx)]
        if ends and all(_heavy(*end) for end in ends) and not (turned and result.is_graph_output()):
            heavy += ends
        else:
            others.append(node)
    return heavy, others


def _heavy(node: ir.Node, index: int) -> bool:
    return node.domain in ("", "ai.onnx") and index in WEIGHTS.get(node.op_type, ())


def _fold_at_load(
    constants: Constants, value: ir.Value, q: Array, scale: Array, zero: Array | None, grid: Grid
) -> None:
    """Put (q − zero) · scale, in the weight's own shape, in the place of an initializer, under its name."""
    name = value.name or "weight"
    constants.model.graph.initializers.pop(name)
    codes = constants.integers(f"{name}_q", q, grid, constants.first, np.float32)
    if zero is not None:
        wide = _cast(constants.add(f"{name}_zero", zero), ir.DataType.FLOAT, constants.fresh(f"{name}_z"))
        shifted = ir.Node("", "Sub", [codes, wide.outputs[0]], outputs=[constants.value(f"{name}_shifted")])
        constants.model.graph.insert_before(constants.first, [wide, shifted])
        codes = shifted.outputs[0]
    scaled_at_load(constants, value, codes, scale, split=q.shape != value.shape)


def scaled_at_load(
    constants: Constants, value: ir.Value, codes: ir.Value, scale: Array, *, split: bool = False
) -> None:
    """Let codes · scale, in float32, be read where an initializer that is in the graph no more was read.

    Args:
        constants: of the model.
        value: the initializer.
        codes: numbers in its shape, or `split` into blocks.
        scale: broadcasts over them.
        split: whether the product has yet to be given its shape.
    """
    name, half = value.name or "weight", value.dtype == ir.DataType.FLOAT16
    last = ir.Value(name=constants.fresh(f"{name}_wide") if half or split else name)
    nodes = [ir.Node("", "Mul", [codes, constants.add(f"{name}_scale", scale)], outputs=[last])]
    if split:
        shape = constants.add("shape", np.array(value.shape, np.int64))
        last = ir.Value(name=constants.fresh(f"{name}_whole") if half else name)
        nodes.append(ir.Node("", "Reshape", [*nodes[-1].outputs, shape], outputs=[last]))
    if half:  # not multiplied in float16: there is no such kernel on a CPU, so nothing would be folded
        nodes.append(_cast(last, ir.DataType.FLOAT16, name))
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
