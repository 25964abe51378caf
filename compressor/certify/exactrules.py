"""Rules of `recheck`: what each operator does to ranges and to their difference, in whole numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from edgepress.compressor.certify.nodepair import Nodes, TooHardError, per_channel, reads_of
from edgepress.compressor.certify.rational import (
    Ends,
    Triple,
    Whole,
    bent,
    exactly,
    largest,
    linear,
    product_of,
    reciprocal,
    same,
    settled,
)
from edgepress.compressor.certify.smoothrules import batch_norm, norm, smooth, softmax
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import attribute, constant, ints_attribute

Rule = Callable[[Nodes, Sequence[Triple]], Triple]


def conv(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """Σ over channels and taps."""
    nodes.same(group=1)
    row, out = nodes.row(0), nodes.row(None)
    weights, biases = nodes.constants(1), nodes.constants(2, 0.0)
    groups = nodes.ours.attributes.get_int("group", 1)
    kernel = weights[0].tops.shape[2:]
    reads = reads_of(nodes, row, kernel, out)
    each = row[0] // groups

    def apply(x: Array, weight: Array) -> Array:
        flat = np.concatenate([x.reshape(row[0], -1), np.zeros((row[0], 1), object)], 1)
        parts = []
        for group in range(groups):
            columns = flat[group * each : (group + 1) * each][:, reads]  # [C, positions, taps]
            columns = columns.transpose(1, 0, 2).reshape(len(reads), -1)
            filters = np.split(weight, groups)[group]
            parts.append(columns.dot(filters.reshape(len(filters), -1).T).T)
        return np.concatenate(parts).reshape(out)

    ones = (-1, *(1,) * len(kernel))
    ours, theirs = (Whole(bias.tops.reshape(ones if bias.tops.ndim else ()), bias.den) for bias in biases)
    return linear(apply, (weights[0], ours), (weights[1], theirs), at[0])


def transposed(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """ConvTranspose: each input is spread over the outputs that its taps reach."""
    row, out = nodes.row(0), nodes.row(None)
    weights, biases = nodes.constants(1), nodes.constants(2, 0.0)
    kernel, groups = weights[0].tops.shape[2:], nodes.ours.attributes.get_int("group", 1)
    ones, none = (1,) * len(kernel), (0,) * 2 * len(kernel)
    nodes.same(group=1, strides=ones, dilations=ones, pads=none, auto_pad="NOTSET", kernel_shape=kernel)
    nodes.same(output_padding=none, output_shape=None)
    if nodes.ours.attributes.get("output_shape") or attribute(nodes.ours, "auto_pad", "") not in (
        "",
        "NOTSET",
    ):
        raise TooHardError("its padding follows from the shape of its output")
    strides, dilations, pads = (
        ints_attribute(nodes.ours, name, default)
        for name, default in (("strides", ones), ("dilations", ones), ("pads", none))
    )
    places = np.indices(row[1:]).reshape(len(kernel), -1)

    def reached(tap: tuple[int, ...]) -> tuple[Array, Array]:
        """Which inputs reach an output by this tap, and which: numbers in the flat spatial output."""
        lead = [
            p * s + t * d - b for p, s, t, d, b in zip(places, strides, tap, dilations, pads, strict=False)
        ]
        inside = np.all([(p >= 0) & (p < n) for p, n in zip(lead, out[1:], strict=True)], axis=0)
        return inside, np.ravel_multi_index([p[inside] for p in lead], out[1:])

    def apply(x: Array, weight: Array) -> Array:
        found = np.zeros((out[0], math.prod(out[1:])), object)
        inputs, filters = np.split(x.reshape(row[0], -1), groups), np.split(weight, groups)
        for tap in np.ndindex(*kernel):
            inside, where = reached(tap)
            parts = [w[(..., *tap)].T.dot(part[:, inside]) for w, part in zip(filters, inputs, strict=True)]
            found[:, where] += np.concatenate(parts)
        return found.reshape(out)

    ours, theirs = (
        Whole(bias.tops.reshape((-1, *ones) if bias.tops.ndim else ()), bias.den) for bias in biases
    )
    return linear(apply, (weights[0], ours), (weights[1], theirs), at[0])


def product(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """Gemm and MatMul with a constant on the right."""
    nodes.same(transA=0, transB=0, alpha=1.0, beta=1.0)
    weights, biases = nodes.constants(1), nodes.constants(2, 0.0)
    get = nodes.ours.attributes
    if get.get_int("transA", 0) or weights[0].tops.ndim != 2:
        raise TooHardError("its left side is transposed, or its right side is no matrix")
    turned = bool(get.get_int("transB", 0))
    alpha, beta = (exactly(float(str(attribute(nodes.ours, name, 1.0)))) for name in ("alpha", "beta"))
    if any(bias.tops.ndim > 1 for bias in biases):
        raise TooHardError("its bias is a matrix")
    ours, theirs = (
        (
            Whole(np.asarray(w.tops * alpha.tops, object), w.den * alpha.den),
            Whole(np.asarray(b.tops * beta.tops, object), b.den * beta.den),
        )
        for w, b in zip(weights, biases, strict=True)
    )
    return linear(lambda x, w: x.dot(w.T if turned else w), ours, theirs, at[0])


def arithmetic(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """Add, Sub and Mul of two values or with a constant, Div by a constant."""
    kind, inputs = nodes.ours.op_type, nodes.ours.inputs
    known = [constant(value) is not None for value in inputs]
    if not any(known):
        if kind not in ("Add", "Sub", "Mul") or len(nodes.row(0)) != len(nodes.row(1)):
            raise TooHardError("it joins two values that vary")
        if kind == "Mul":
            return product_of(*at)
        if inputs[0] is inputs[1]:
            raise TooHardError("it reads a value twice")
        sides = (at[0], at[1] if kind == "Add" else Triple(*(-end for end in (at[1].x, at[1].z, at[1].d))))
        return settled(*(one + other for one, other in zip(*map(ends, sides), strict=True)))
    index = known.index(True)
    if kind == "Div" and index == 0:
        raise TooHardError("it divides by what varies")
    row = nodes.row(1 - index)
    one, none = exactly(1.0), exactly(0.0)
    pairs = []
    for found in nodes.constants(index):
        lead = found.tops.ndim - len(row)
        if lead > 0 and found.tops.shape[:lead] != (1,) * lead:
            raise TooHardError("a constant differs from row to row")
        value = Whole(found.tops.reshape(found.tops.shape[max(lead, 0) :]), found.den)
        if kind == "Div":
            if (value.tops == 0).any():
                raise TooHardError("it divides by 0")
            value = reciprocal(value)
        minus = Whole(np.asarray(-value.tops, object), value.den)
        if kind in ("Mul", "Div"):
            pairs.append((value, none))
        elif kind == "Add":
            pairs.append((one, value))
        else:
            pairs.append((one, minus) if index == 1 else (exactly(-1.0), value))
    return linear(lambda x, w: np.asarray(x * w, object), pairs[0], pairs[1], at[0])


def ends(at: Triple) -> tuple[Ends, Ends, Ends]:
    """Its parts."""
    return at.x, at.z, at.d


def hard(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """HardSigmoid: α x + β between 0 and 1; HardSwish: x (x / 6 + 1/2 between 0 and 1)."""
    nodes.same(alpha=0.2, beta=0.5)
    alpha, beta = (
        exactly(float(str(attribute(nodes.ours, key, to)))) for key, to in (("alpha", 0.2), ("beta", 0.5))
    )
    if nodes.ours.op_type == "HardSwish":
        alpha, beta = reciprocal(exactly(np.array([6.0]))), exactly(0.5)
    sloped = linear(lambda x, w: np.asarray(x * w, object), (alpha, beta), (alpha, beta), at[0])
    gate = bent(sloped, Fraction(0), Fraction(1), exactly(0.0))
    return product_of(at[0], gate) if nodes.ours.op_type == "HardSwish" else gate


def move(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """Operators that keep a row's numbers, in another order or shape."""
    nodes.same(perm=None, axis=1, axes=None, allowzero=0)
    for index in range(1, max(len(nodes.ours.inputs), len(nodes.theirs.inputs))):
        nodes.same_constant(index)
    out = nodes.row(None)
    perm = ints_attribute(nodes.ours, "perm", tuple(range(len(nodes.row(0)), -1, -1)))
    if math.prod(out) != math.prod(nodes.row(0)) or (nodes.ours.op_type == "Transpose" and perm[0] != 0):
        raise TooHardError("it mixes rows")
    order = [i - 1 for i in perm[1:]] if nodes.ours.op_type == "Transpose" else None
    return Triple(
        *(part.moved(lambda x: (x.transpose(order) if order else x).reshape(out)) for part in ends(at[0]))
    )


def concat(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """Side by side."""
    nodes.same(axis=1)
    given, rank = nodes.ours.attributes.get_int("axis", 1), len(nodes.row(None)) + 1
    axis = given % rank - 1
    if axis < 0 or len(at) != len(nodes.ours.inputs):
        raise TooHardError("it joins rows, or constants")
    joined = []
    for parts in zip(*map(ends, at), strict=True):
        den = math.lcm(*(part.den for part in parts))
        lo, hi = (
            np.concatenate([getattr(part, end) * (den // part.den) for part in parts], axis)
            for end in ("lo", "hi")
        )
        joined.append(Ends(lo, hi, den))
    return Triple(*joined)


def curve(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """Relu, LeakyRelu, PRelu; slopes outside [0, 1] as relu(x) − s relu(−x)."""
    nodes.same(alpha=0.01)
    below = exactly(0.0)
    if nodes.ours.op_type == "LeakyRelu":
        below = exactly(float(str(attribute(nodes.ours, "alpha", 0.01))))
    elif nodes.ours.op_type == "PRelu":
        below, other = nodes.constants(1)
        if not equal(below, other):
            raise TooHardError("its slopes differ in the candidate")
        lead = max(below.tops.ndim - len(nodes.row(0)), 0)
        if below.tops.shape[:lead] != (1,) * lead:
            raise TooHardError("a slope differs from row to row")
        below = Whole(below.tops.reshape(below.tops.shape[lead:]), below.den)
    if (below.tops >= 0).all() and (below.tops <= below.den).all():
        return bent(at[0], Fraction(0), None, below)
    none = exactly(0.0)
    above = bent(at[0], Fraction(0), None, none)
    under = bent(Triple(-at[0].x, -at[0].z, -at[0].d), Fraction(0), None, none)  # x = above − under
    minus = Whole(np.asarray(-below.tops, object), below.den)
    steep = linear(lambda x, w: np.asarray(x * w, object), (minus, none), (minus, none), under)
    return settled(above.x + steep.x, above.z + steep.z, above.d + steep.d)


def clip(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """Clip: an end that is missing, or infinite, is none."""
    limits: list[Fraction | None] = []
    for index, name, far in ((1, "min", -math.inf), (2, "max", math.inf)):
        found = []
        for node, array in zip((nodes.ours, nodes.theirs), nodes.arrays(index), strict=True):
            old = float(str(attribute(node, name, far)))
            found.append(old if array is None else float(array.reshape(-1)[0]))
        if found[0] != found[1]:
            raise TooHardError("it clips elsewhere in the candidate")
        if found[0] == -far:
            raise TooHardError("it clips everything to infinity")
        limits.append(Fraction(found[0]) if math.isfinite(found[0]) else None)
    low, high = limits
    if low is not None and high is not None and low > high:
        raise TooHardError("its least is above its largest")
    return bent(at[0], low, high, exactly(0.0))


def unchanged(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """Softmax at the end, which is left off."""
    nodes.same(axis=-1)
    return at[0]


def equal(one: Whole, other: Whole) -> bool:
    """Whether two arrays hold the same numbers."""
    (ours, theirs), _ = same(one, other)
    return np.array_equal(ours, theirs)


def max_pool(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """MaxPool and GlobalMaxPool."""
    row, out = nodes.row(0), nodes.row(None)
    if nodes.ours.op_type == "GlobalMaxPool":
        return largest(at[0], np.arange(math.prod(row)).reshape(row[0], -1), out)
    reads = reads_of(nodes, row, ints_attribute(nodes.ours, "kernel_shape", ()), out)
    if (reads < 0).all(1).any():
        raise TooHardError("a window reads nothing but padding")
    return largest(at[0], per_channel(reads, row), out)


def mean(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """ReduceMean over axes of a row."""
    row, out = nodes.row(0), nodes.row(None)
    nodes.same(axes=None, keepdims=1)
    axes = ints_attribute(nodes.ours, "axes", ())
    if len(nodes.ours.inputs) > 1:
        nodes.same_constant(1)
        axes = tuple(int(axis) for axis in nodes.constants(1)[0].tops.reshape(-1))
    places = {axis % (len(row) + 1) - 1 for axis in axes}
    if not axes or -1 in places:
        raise TooHardError("it runs over the batch")
    over = tuple(sorted(places))
    share = reciprocal(exactly(np.array([math.prod(row[i] for i in over)])))

    def apply(x: Array, weight: Array) -> Array:
        return np.asarray(x.sum(over) * weight, object).reshape(out)

    return linear(apply, (share, exactly(0.0)), (share, exactly(0.0)), at[0])


def average(nodes: Nodes, at: Sequence[Triple]) -> Triple:
    """AveragePool and GlobalAveragePool: sums over how many they count."""
    row, out = nodes.row(0), nodes.row(None)
    nodes.same(count_include_pad=0)
    if nodes.ours.op_type == "GlobalAveragePool":
        reads = np.arange(math.prod(row)).reshape(row[0], -1)
        counts = np.full(len(reads), reads.shape[1])
    else:
        kernel = ints_attribute(nodes.ours, "kernel_shape", ())
        reads = per_channel(reads_of(nodes, row, kernel, out), row)
        counts = (reads >= 0).sum(1)
        if nodes.ours.attributes.get_int("count_include_pad", 0):
            if nodes.ours.attributes.get_int("ceil_mode", 0):
                raise TooHardError("it counts padding and rounds its size up")
            counts = np.full(len(reads), math.prod(kernel))
    if not counts.all():
        raise TooHardError("a window reads nothing but padding")
    share = reciprocal(exactly(counts))

    def apply(x: Array, weight: Array) -> Array:
        flat = np.concatenate([x.reshape(-1), np.zeros(1, object)])
        return np.asarray(flat[reads].sum(1) * weight, object).reshape(out)

    return linear(apply, (share, exactly(0.0)), (share, exactly(0.0)), at[0])


MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout")
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys(("Sigmoid", "Tanh"), smooth),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), arithmetic),
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu"), curve),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), max_pool),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), average),
    **dict.fromkeys(("Gemm", "MatMul"), product),
    **dict.fromkeys(("HardSigmoid", "HardSwish"), hard),
    "ReduceMean": mean, "BatchNormalization": batch_norm,
    "Conv": conv, "ConvTranspose": transposed, "Concat": concat, "Clip": clip, "Softmax": softmax, "LRN": norm,
}  # fmt: skip
