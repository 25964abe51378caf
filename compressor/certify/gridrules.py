"""Rules of `recheck` for quantizers: QuantizeLinear clips to what its integers hold, then rounds to its grid.

Integers are told in units of the reals, so that DequantizeLinear has nothing left to do.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from edgepress.compressor.certify.nodepair import TooHardError
from edgepress.compressor.certify.rational import Ends, Triple, Whole, bent, same, settled
from edgepress.compressor.sites import attribute, constant, int_attribute, new_constant, site_name
from edgepress.compressor.specs import dims


@dataclass(frozen=True)
class Levels:
    """Multiples of a step between two ends.

    Attributes:
        step: distance of two levels, above 0.
        zero: the integer that stands for 0.
        kind: of the integers.
    """

    step: Fraction
    zero: int
    kind: ir.DataType

    @property
    def ends(self) -> tuple[Fraction, Fraction]:
        """The lowest level and the highest."""
        bits, signed = self.kind.bitwidth, self.kind.is_signed()
        least = -(1 << (bits - 1)) if signed else 0
        return (least - self.zero) * self.step, (least + (1 << bits) - 1 - self.zero) * self.step


def without_stored_integers(model: ir.Model) -> ir.Model:
    """A copy whose weights that are stored as integers are what onnx's own evaluator makes of them, in float32."""
    made = model.clone()
    for node in list(made.graph):
        arrays = {v.name or "": constant(v) for v in node.inputs if v is not None}
        ours = node.op_type == "DequantizeLinear" and node.domain in ("", "ai.onnx")
        if ours and all(a is not None for a in arrays.values()):
            (found,) = ReferenceEvaluator(ir.to_proto(node)).run(None, arrays)
            fresh = new_constant(made.graph, site_name(node), np.asarray(found, np.float32))
            ir.convenience.replace_all_uses_with(node.outputs[0], fresh)
            made.graph.remove(node, safe=True)
    return made


def spell_means_alike(model: ir.Model) -> None:
    """A mean over all places becomes a pool, and a move where it drops its axes: quantizers may stand between."""
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "ReduceMean" and node.domain in ("", "ai.onnx") else None
        sizes = None if value is None else dims(value)
        if value is None or sizes is None:
            continue
        listed = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
        axes = {int(axis) % len(sizes) for axis in np.ravel(np.asarray(() if listed is None else listed))}
        if not axes or axes != set(range(2, len(sizes))) or node.outputs[0].is_graph_output():
            continue
        made = [ir.node("GlobalAveragePool", [value])]
        made[0].outputs[0].shape = ir.Shape([*sizes[:2], *[1] * (len(sizes) - 2)])
        if not int_attribute(node, "keepdims", 1):
            made.append(ir.node("Flatten", [made[0].outputs[0]]))
            made[1].outputs[0].shape = node.outputs[0].shape
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], made, node.outputs, made[-1].outputs
        )


def levels(node: ir.Node) -> Levels:
    """The grid of a QuantizeLinear or DequantizeLinear; raises `TooHardError` where it has several."""
    scale = constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    kind = None if integers is None else integers.dtype
    if len(node.inputs) > 2 and node.inputs[2] is not None and zero is None:
        raise TooHardError(f"{site_name(node)!r} has a zero point that varies")
    if scale is None or scale.size != 1 or (zero is not None and zero.size != 1):
        raise TooHardError(f"{site_name(node)!r} has a scale that varies")
    if kind is None or not kind.is_integer() or not np.isfinite(scale).all() or not (scale > 0).all():
        raise TooHardError(f"{site_name(node)!r} has a scale or integers that no rule is for")
    step = Fraction(float(scale.reshape(-1)[0]))
    return Levels(step, 0 if zero is None else int(zero.reshape(-1)[0]), kind)


def quantized(x: Ends, grid: Levels) -> Ends:
    """Clipped, and rounded to the nearest level; of two that are as near either may be taken."""
    (lo, hi, least, most), den = same(*x.ends, *map(number, grid.ends))
    lo, hi = np.clip(lo, least, most), np.clip(hi, least, most)
    top, bottom = grid.step.numerator, grid.step.denominator
    # nearest to x / step = n / m: from ⌈n / m − 1/2⌉ to ⌊n / m + 1/2⌋
    n_lo, n_hi, m = lo * bottom, hi * bottom, den * top
    first, last = -((m - 2 * n_lo) // (2 * m)), (2 * n_hi + m) // (2 * m)
    return Ends(np.asarray(first * top, object), np.asarray(last * top, object), bottom)


def added(at: Triple, grid: Levels) -> Triple:
    """A quantizer where the original has nothing: what is clipped, and up to half a step either way."""
    (lo, hi, least, most), den = same(*at.z.ends, *map(number, grid.ends))
    cut_lo, cut_hi = np.minimum(np.minimum(hi, most) - hi, 0), np.maximum(np.maximum(lo, least) - lo, 0)
    clipped = Ends(np.clip(lo, least, most), np.clip(hi, least, most), den)
    middle = settled(at.x, clipped, at.d + Ends(cut_lo, cut_hi, den))
    return settled(at.x, quantized(middle.z, grid), middle.d + spread(grid.step / 2))


def in_both(at: Triple, grid: Levels) -> Triple:
    """A quantizer in both nets, each rounding by itself."""
    at = bent(at, *grid.ends, number(Fraction(0)))
    return settled(quantized(at.x, grid), quantized(at.z, grid), at.d + spread(grid.step))


def number(x: Fraction) -> Whole:
    """One number that broadcasts."""
    return Whole(np.asarray(x.numerator, object), x.denominator)


def spread(by: Fraction) -> Ends:
    """Up to so much either way."""
    return Ends(np.asarray(-by.numerator, object), np.asarray(by.numerator, object), by.denominator)
