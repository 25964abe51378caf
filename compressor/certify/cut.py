"""How far a dense layer's change reaches an output through neurons that may be on or off, all signs at once.

Where a layer y = A x has become A + G, an output o = M act(y) moves by

    Σₙ Mₙ λₙ Σⱼ Gₙⱼ xⱼ ,   xⱼ in its range, λₙ between the least and the largest slope of neuron n,

and more that intervals will do for. A linear form takes the worst λ for each neuron alone, and so never less than half
of what intervals say. But an input has one sign for all neurons, and a neuron one λ for all inputs: the largest value
of the double sum is ‖·‖∞→₁ of a matrix (the cut norm, but for a constant: Alon & Naor 2006). For any a, b > 0

    max over s, t in [−1, 1]ⁿ of sᵀ B t  ≤  √Σa · ‖D_a^(−½) B D_b^(−½)‖₂ · √Σb

by Cauchy and Schwarz. The best a and b are those of the semidefinite relaxation, which is within 1.78 of the maximum;
they are found by going in turns through the rows of its factors (Burer & Monteiro 2003; Wang, Chang & Kolter 2017).
Whatever is found, the bound holds: the norm is proved by a Cholesky factorisation that succeeds (Rump 2006).
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from edgepress.compressor.certify.affine import Affine
from edgepress.compressor.certify.curves import Curve
from edgepress.compressor.certify.intervals import TINY, UNIT64, Interval, gamma, grow, hull, point
from edgepress.compressor.certify.linear import MatrixMap
from edgepress.compressor.certify.program import Program, Step
from edgepress.compressor.certify.rules import Pair
from edgepress.compressor.protocols import Array

RANK = 40
"""Columns of the factors. √(2 rows) are enough for there to be no local optimum; with fewer there is rarely one."""
ROUNDS = 15
WORK = 3e11
"""Multiply-accumulates that all outputs may take: a minute or so."""
_DENSE = 0.1
"""Share of nonzeros from which a dense matrix is faster."""
SMALL = 1e-100
"""Sums of absolute values below it are a bound themselves: their factors have no digits left."""
_LEAST = 1e-6
"""Of the largest length: those of rows without weights are taken for this, that nothing is divided by zero."""


@dataclass(frozen=True, eq=False)
class Tail:
    """The last two dense layers of a pair of nets, and what is between them.

    Attributes:
        front: the first, in both nets.
        curve: the activation.
        last: the second.
    """

    front: tuple[Step, Step]
    curve: tuple[Step, Step]
    last: tuple[Step, Step]


def tail_of(original: Program, changed: Program, name: str) -> Tail | None:
    """What gives an output, where it is two dense layers with an activation between them.

    Args:
        original: the net.
        changed: with the same steps, see `difference.aligned`.
        name: of the output.
    """
    made = {step.output: (step, other) for step, other in zip(original.steps, changed.steps, strict=True)}
    found, at = list[tuple[Step, Step]](), name
    for kind in (Affine, Curve, Affine):
        pair = made.get(at)
        if pair is None or not isinstance(pair[0].rule, kind):
            return None
        if kind is Affine and not isinstance(affine(pair[0]).op, MatrixMap):
            return None
        found.append(pair)
        at = pair[0].inputs[0]
    return Tail(found[2], found[1], found[0])


def affine(step: Step) -> Affine:
    """The rule of a linear step."""
    if not isinstance(step.rule, Affine):
        raise TypeError(f"{step.name} is not linear")
    return step.rule


def dense(step: Step) -> MatrixMap:
    """The operator of a dense step."""
    op = affine(step).op
    if not isinstance(op, MatrixMap):
        raise TypeError(f"{step.name} is no dense layer")
    return op


@dataclass(frozen=True, eq=False)
class Factors:
    """Of the semidefinite relaxation for one output.

    Attributes:
        u: [in, RANK], rows of length 1.
        t: [hidden, RANK], what each neuron's λ is on the other side: its centre and its half width's part.
        v: [1 + hidden, RANK], rows of length 1.
        a: [in], lengths of rows.
        b: [1 + hidden], likewise.
    """

    u: Array
    t: Array
    v: Array
    a: Array
    b: Array

    @property
    def value(self) -> float:
        """What the bound comes to at the optimum, where the norm is 1."""
        return float(np.sqrt(self.a.sum() * self.b.sum()))


@dataclass(frozen=True, eq=False)
class Cut:
    """Σₙ Mₖₙ λₙ Σⱼ Cⱼₙ sⱼ for s in [−1, 1] and λ in centre ± half.

    Attributes:
        c: C, [in, hidden]; what a full swing of an input does to each neuron.
        weights: M, [outputs, hidden].
        centre: of λ, [hidden].
        half: width of λ, [hidden].
    """

    c: Array | sparse.csr_array
    weights: Array
    centre: Array
    half: Array

    @classmethod
    def of(cls, radius: Array, moved: Array, slopes: tuple[Array, Array], weights: Array) -> "Cut":
        """A layer's change G [in, hidden] for inputs within `radius` of their centres.

        Args:
            radius: [in].
            moved: G.
            slopes: least and largest λ, [hidden].
            weights: M, [outputs, hidden].
        """
        c = radius[:, None] * moved
        few = np.count_nonzero(c) < _DENSE * c.size
        half = 0.5 * (slopes[1] - slopes[0])
        return cls(sparse.csr_array(c) if few else c, weights, 0.5 * (slopes[0] + slopes[1]), half)

    def factors(self, k: int, start: Array | None = None, rounds: int = ROUNDS) -> Factors:
        """Near the optimum for one output, from where another run ended or from anywhere."""
        scaled = self.weights[k][:, None]
        v = np.random.default_rng(0).standard_normal((len(scaled) + 1, RANK)) if start is None else start
        v, _ = _lengths(v)
        for _ in range(rounds):
            t = self.centre[:, None] * v[0] + self.half[:, None] * v[1:]
            u, a = _lengths(self.c @ (scaled * t))
            back = scaled * (self.c.T @ u)
            v, b = _lengths(np.concatenate([self.centre[None] @ back, self.half[:, None] * back]))
        t = self.centre[:, None] * v[0] + self.half[:, None] * v[1:]
        u, a = _lengths(self.c @ (scaled * t))
        return Factors(u, t, v, a, b)

    def proved(self, k: int, found: Factors) -> float:
        """The bound that the lengths of factors give, whatever they are, rounded up."""
        c = (self.c.toarray() if isinstance(self.c, sparse.csr_array) else self.c) * self.weights[k]
        if not np.isfinite(c).all():
            return float("inf")
        both = np.concatenate([(c @ self.centre)[:, None], c * self.half], 1)
        absolute = float((np.abs(c) @ (np.abs(self.centre) + self.half)).sum())
        slack = 2 * gamma(c.size + 32) * absolute + TINY
        if absolute < SMALL:
            return absolute + slack
        a, b = (np.maximum(part, _LEAST * part.max()) for part in (found.a, found.b))
        whole = largest_singular(both / np.sqrt(a)[:, None] / np.sqrt(b)) * float(np.sqrt(a.sum() * b.sum()))
        return min(whole * (1 + 2 * gamma(sum(c.shape) + 16)), absolute) + slack


def _lengths(rows: Array) -> tuple[Array, Array]:
    """Rows brought to length 1, and how long they were; those of zeros stay."""
    length = np.linalg.norm(rows, axis=1)
    return rows / np.where(length > 0, length, 1.0)[:, None], length


def largest_singular(b: Array) -> float:
    """An upper bound of ‖B‖₂ that holds in floating point (Rump 2006, §2).

    Where a Cholesky factorisation of t I − BᵀB, less what rounding may cost, runs to its end, no eigenvalue of BᵀB is
    above t.
    """
    gram = b.T @ b if b.shape[0] > b.shape[1] else b @ b.T
    size, n = float(np.trace(gram)), len(gram)
    top = float(np.linalg.eigvalsh(gram)[-1])
    while top < size:
        slack = 4 * gamma(sum(b.shape) + n + 16) * (size + n * top)
        top = top * (1 + 1e-9) + 2 * slack
        with contextlib.suppress(np.linalg.LinAlgError):
            np.linalg.cholesky((top - slack) * np.eye(n) - gram)
            return float(np.sqrt(top) * (1 + 4 * UNIT64))
        top *= 1.01
    return float(np.sqrt(size) * (1 + 2 * gamma(b.size + 8)))  # by its Frobenius norm


def reach(tail: Tail, pairs: Mapping[str, Pair], unit: float = 0.0) -> Interval | None:
    """Range of the difference of an output, [1, outputs]; None where this has nothing to say, or would take too long.

    Args:
        tail: what gives the output.
        pairs: ranges of all values, one box.
        unit: unit roundoff of both nets' arithmetic.
    """
    (front, front_then), (curve, curve_then), (last, last_then) = tail.front, tail.curve, tail.last
    rule, then = affine(front), affine(front_then)
    x, y, h = (pairs[step.inputs[0]] for step in (front, curve, last))
    moved = dense(front_then).matrix - dense(front).matrix
    if len(x.x.lo) != 1 or x.x.lo.ndim != 2 or not moved.any() or work_of(tail) > WORK:
        return None
    centre, _ = x.x.centred()
    steady = rule.difference(then, [Pair(point(centre), x.z, x.d)], 0.0)
    steady = grow(steady, rule.own_rounding(then, x, unit))
    passed = curve.rule.difference(curve_then.rule, [Pair(y.x, y.z, steady)], unit)
    rest = affine(last).difference(affine(last_then), [Pair(h.x, h.z, passed)], unit)
    cut = cut_of(tail, pairs)
    return grow(rest, np.array([[cut.proved(k, cut.factors(k)) for k in range(len(cut.weights))]]))


def cut_of(tail: Tail, pairs: Mapping[str, Pair]) -> Cut:
    """The double sum of what the first of the two layers lost."""
    curve, y = tail.curve[0].rule, pairs[tail.curve[0].inputs[0]]
    if not isinstance(curve, Curve):
        raise TypeError("no activation")
    least, most = (end.reshape(-1) for end in curve.slopes(hull(y.x, y.z)))
    radius = pairs[tail.front[0].inputs[0]].x.centred()[1].reshape(-1)
    moved = dense(tail.front[1]).matrix - dense(tail.front[0]).matrix
    return Cut.of(radius, moved, (least, most), dense(tail.last[1]).matrix.T)


def work_of(tail: Tail) -> float:
    """Multiply-accumulates for all outputs, roughly."""
    size, outputs = dense(tail.front[0]).matrix.shape, dense(tail.last[0]).matrix.shape[1]
    return float(outputs * (2.0 * ROUNDS * RANK * size[0] * size[1] + 2.0 * min(size) ** 2 * max(size)))
