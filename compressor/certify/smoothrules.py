"""Rules of `recheck` for what bends: sigmoid, tanh, softmax inside the net, norm."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.enclosures import (
    ONE,
    decay,
    down,
    fixed,
    reciprocal_power,
    root,
    sigmoid,
    up,
)
from edgepress.compressor.certify.nodepair import Nodes, TooHardError
from edgepress.compressor.certify.rational import (
    Ends,
    Triple,
    Whole,
    exactly,
    product_of,
    same,
    settled,
    times,
)
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import attribute


def smooth(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """Sigmoid, and tanh x = 2 sigmoid(2 x) − 1: never falling, steepest at 0, and the less so the farther away."""
    steep = 2 if nodes.ours.op_type == "Tanh" else 1
    x, z, d = at[0].x, at[0].z, at[0].d

    def value(x: Ends) -> Ends:
        lo, hi = sigmoid(Whole(steep * x.lo, x.den))[0], sigmoid(Whole(steep * x.hi, x.den))[1]
        return Ends(steep * lo - (steep - 1) * ONE, steep * hi - (steep - 1) * ONE, ONE)

    (x_lo, x_hi, z_lo, z_hi), den = same(*x.ends, *z.ends)
    lo, hi = np.minimum(x_lo, z_lo), np.maximum(x_hi, z_hi)
    farthest = sigmoid(Whole(steep * np.maximum(-lo, hi), den))[1]
    nearest = np.maximum(sigmoid(Whole(steep * np.maximum(np.maximum(lo, -hi), 0), den))[0], ONE // 2)
    # sigmoid' = s (1 − s), which falls from s = 1/2 on
    least, most = (steep**2 * s * (ONE - s) for s in (farthest, nearest))
    return settled(value(x), value(z), scaled(d, least, most, ONE * ONE))


def scaled(d: Ends, least: Array, most: Array, den: int) -> Ends:
    """λ d for any λ between two numerators over `den`."""
    lo, hi = np.minimum(least * d.lo, most * d.lo), np.maximum(least * d.hi, most * d.hi)
    return Ends(np.asarray(lo, object), np.asarray(hi, object), d.den * den)


def softmax(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """1 / Σⱼ e^(xⱼ − xᵢ) rises in xᵢ and falls in the others; its change is ∫ pᵢ (dᵢ − Σⱼ pⱼ dⱼ) on the way."""
    nodes.same(axis=-1)
    rank = len(nodes.row(0)) + 1
    axis = nodes.ours.attributes.get_int("axis", -1) % rank
    for node in (nodes.ours, nodes.theirs):
        opset = node.graph.opset_imports.get("", 0) if isinstance(node.graph, ir.Graph) else 0
        if axis == 0 or (opset < 13 and ("axis" not in node.attributes or axis != rank - 1)):
            raise TooHardError("a softmax runs over the batch, or over several axes")
    x, z, d = (part.moved(lambda a: np.moveaxis(a, axis - 1, -1)) for part in (at[0].x, at[0].z, at[0].d))
    (x_lo, x_hi, z_lo, z_hi), den = same(*x.ends, *z.ends)
    between = shares(Ends(np.minimum(x_lo, z_lo), np.maximum(x_hi, z_hi), den))
    p_lo, p_hi = between.lo, between.hi
    slopes = np.maximum(p_lo * (ONE - p_lo), p_hi * (ONE - p_hi))
    slopes = np.where((2 * p_lo <= ONE) & (2 * p_hi >= ONE), ONE * ONE // 4, slopes)
    least = np.minimum(d.lo - d.hi.max(-1, keepdims=True), 0)
    most = np.maximum(d.hi - d.lo.min(-1, keepdims=True), 0)
    made = settled(shares(x), shares(z), Ends(slopes * least, slopes * most, d.den * ONE * ONE))
    return Triple(*(part.moved(lambda a: np.moveaxis(a, -1, axis - 1)) for part in (made.x, made.z, made.d)))


def shares(x: Ends) -> Ends:
    """Softmax over the last axis."""

    def each(own: Array, other: Array) -> tuple[Array, Array]:
        gaps = other[..., None, :] - own[..., :, None]  # [..., i, j]
        i = np.arange(own.shape[-1])
        gaps[..., i, i] = 0
        top = gaps.max(-1, keepdims=True)  # of e^gap / e^top no part is above 1
        lo, hi = decay(Whole(top - gaps, x.den))
        sums, (top_lo, top_hi) = (lo.sum(-1), hi.sum(-1)), decay(Whole(top[..., 0], x.den))
        return down(top_lo * ONE, sums[1]), up(top_hi * ONE, sums[0])

    return Ends(each(x.lo, x.hi)[0], np.minimum(each(x.hi, x.lo)[1], ONE), ONE)


def norm(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """LRN: x / (k + α/n Σ x²)^β; what differs is one range off the other."""
    nodes.same(size=0, alpha=1e-4, beta=0.75, bias=1.0)
    size = nodes.ours.attributes.get_int("size", 0)
    alpha, beta, bias = (
        float(str(attribute(nodes.ours, name, default)))
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    if size < 1 or not (alpha >= 0 and beta >= 0 and bias > 0 and math.isfinite(alpha + beta + bias)):
        raise TooHardError("a norm has numbers that no rule is for")
    x, z = (Norm(size, alpha, beta, bias).of(part) for part in (at[0].x, at[0].z))
    return settled(x, z, z + -x)


def batch_norm(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """BatchNormalization that was not folded: γ / √(variance + ε) times x − μ, plus β."""
    nodes.same(epsilon=1e-5, training_mode=0)
    if nodes.ours.attributes.get_int("training_mode", 0):
        raise TooHardError("a batch normalisation takes means of the batch")
    epsilon = exactly(float(str(attribute(nodes.ours, "epsilon", 1e-5))))
    ones = (-1, *(1,) * (len(nodes.row(0)) - 1))
    factors, shifts = [], []
    for gamma, beta, mean, variance in zip(*(nodes.constants(i) for i in range(1, 5)), strict=True):
        exact = (Ends.of(variance, variance) + Ends.of(epsilon, epsilon)).moved(lambda a: a.reshape(ones))
        if (exact.lo <= 0).any():
            raise TooHardError("a variance is not above 0")
        flat = reciprocal_power(fixed(exact), 0.5)
        weigh = Ends.of(gamma, gamma).moved(lambda a: a.reshape(ones))
        factors.append(times(weigh, Ends(*flat, ONE)))
        shifts.append([Ends.of(x, x).moved(lambda a: a.reshape(ones)) for x in (mean, beta)])
    ours, theirs = factors
    same_numbers = all(
        len({None if a is None else a.tobytes() for a in nodes.arrays(i)}) == 1 for i in (1, 4)
    )
    zeros = np.zeros(ours.lo.shape, object)
    one = Triple(ours, theirs, Ends(zeros, zeros, 1) if same_numbers else theirs + -ours)
    (mean, beta), (mean_then, beta_then) = shifts
    two = Triple(at[0].x + -mean, at[0].z + -mean_then, at[0].d + mean + -mean_then)
    made = product_of(one, two)
    return settled(made.x + beta, made.z + beta_then, made.d + beta_then + -beta)


class Norm:
    """One norm; all arrays in units of 2^-128, channels first.

    Args:
        size: n, channels in a sum.
        alpha: α ≥ 0.
        beta: β ≥ 0.
        bias: k > 0.
    """

    def __init__(self, size: int, alpha: float, beta: float, bias: float) -> None:
        self.size, self.beta, self.share = size, beta, Fraction(alpha) / size
        self.bias, rest = divmod(Fraction(bias) * ONE, 1)
        if rest:
            raise TooHardError("the bias of a norm has too many digits")

    def of(self, x: Ends) -> Ends:
        """The range: falls (in size) as neighbours grow; in x it rises to its peak, and falls from there on."""
        lo, hi = fixed(x)
        least = np.where((lo <= 0) & (hi >= 0), 0, np.minimum(abs(lo), abs(hi)))
        few, many = self._sums(down(least * least, ONE)), self._sums(up(np.maximum(-lo, hi) ** 2, ONE))
        most = np.maximum(self._largest(lo, hi, few), self._largest(lo, hi, many))
        return Ends(-np.maximum(self._largest(-hi, -lo, few), self._largest(-hi, -lo, many)), most, ONE)

    def _sums(self, squares: Array) -> Array:
        """Σ of the neighbours, the value itself left out."""
        before, channels = (self.size - 1) // 2, len(squares)
        found = np.zeros(squares.shape, object)
        for c in range(channels):
            for other in range(max(0, c - before), min(channels, c + self.size - before)):
                found[c] = found[c] + (squares[other] if other != c else 0)
        return found

    def _value(self, top: Array, lo: Array, hi: Array, others: Array) -> Array:
        """No less than x / (…)^β for x ≤ `top` with lo ≤ |x| ≤ hi."""
        top_of, bottom = self.share.numerator, self.share.denominator
        below = self.bias + down(top_of * (others + down(lo * lo, ONE)), bottom)
        above = self.bias + up(top_of * (others + up(hi * hi, ONE)), bottom)
        least, most = reciprocal_power((below, above), self.beta)
        return up(top * np.where(top >= 0, most, least), ONE)

    def _largest(self, lo: Array, hi: Array, others: Array) -> Array:
        """For x in [lo, hi] with these neighbours: at an end or at a peak, where α/n (2β − 1) x² = k + α/n Σ."""
        ends = [self._value(x, abs(x), abs(x), others) for x in (lo, hi)]
        found = np.maximum(*ends)
        slope = self.share * Fraction(2 * self.beta - 1)
        if slope <= 0:
            return found
        top = slope.denominator * (self.bias * self.share.denominator + self.share.numerator * others)
        bottom = slope.numerator * self.share.denominator
        peak = root((down(top, bottom), up(top, bottom)))
        first, last = np.maximum(peak[0], lo), np.minimum(peak[1], hi)
        inside = (first <= last) & (last >= 0)
        first, last = np.where(inside, np.maximum(first, 0), 0), np.where(inside, last, 0)
        return np.where(inside, np.maximum(found, self._value(last, first, last, others)), found)
