"""Sizes that a graph works out: what exporters write as Shape, Gather, Concat and Reshape, followed through."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.sites import constant, int_attribute, ints_attribute

Dim = int | str | None
"""A size: a number, the name of one that only a run tells (equal names are equal sizes), or not known."""

DEEPEST = 40
"""Nodes in a row that sizes are followed through."""

HANDED_ON = frozenset(
    ["Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Slice", "Gather", "Concat", "Mul"]
)
"""What stands between a Shape and the Reshape that it is for."""


def sizes_of(value: ir.Value | None) -> list[Dim]:
    """The shape of a value, empty where not even its rank is known."""
    if value is None or value.shape is None:
        return []
    return [d if isinstance(d, int) else d.value for d in value.shape]


def product(sizes: Sequence[Dim]) -> int | None:
    """All multiplied; None where one is no number."""
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def computed(
    value: ir.Value | None, depth: int = 0, memo: dict[ir.Value, list[Dim] | None] | None = None
) -> list[Dim] | None:
    """The integers in a value of one axis (or none, as a list of one), as far as they are known; None for others."""
    memo = {} if memo is None else memo
    array = constant(value)
    if array is not None:
        flat = array.ndim <= 1 and array.dtype.kind == "i"
        return [int(v) for v in np.atleast_1d(array)] if flat else None
    node = value.producer() if value is not None else None
    if value is None or node is None or depth > DEEPEST or node.domain not in ("", "ai.onnx"):
        return None
    if value not in memo:
        memo[value] = _result(node, depth + 1, memo)
    return memo[value]


def _result(node: ir.Node, depth: int, memo: dict[ir.Value, list[Dim] | None]) -> list[Dim] | None:
    op = node.op_type
    if op == "Shape":
        found = sizes_of(node.inputs[0])
        part: list[Dim] = found[int_attribute(node, "start", 0) : int_attribute(node, "end", len(found))]
        return part or None
    if op not in HANDED_ON:
        return None
    parts = [computed(v, depth, memo) for v in node.inputs]
    if not parts or parts[0] is None:
        return None
    first, rest = parts[0], parts[1:]
    if op == "Concat":
        return None if None in parts else [d for part in parts if part is not None for d in part]
    if op == "Slice":
        return _sliced(node, first, rest)
    if op == "Gather":
        where = constant(node.inputs[1])
        if where is None or where.ndim > 1 or not all(-len(first) <= i < len(first) for i in where.ravel()):
            return None
        return [first[int(i)] for i in where.ravel()]
    if op == "Mul":
        other = rest[0] if rest else None
        return [product([first[0], other[0]])] if other and len(first) == len(other) == 1 else None
    return first if len(first) == 1 or op in ("Identity", "Cast") else None


def _sliced(node: ir.Node, first: list[Dim], rest: Sequence[list[Dim] | None]) -> list[Dim] | None:
    if rest:
        bounds = [part[0] if part else None for part in rest]
        start, end = bounds[0], bounds[1] if len(bounds) > 1 else None
        step = bounds[3] if len(bounds) > 3 else 1
    else:
        start, end = (next(iter(ints_attribute(node, name, ())), None) for name in ("starts", "ends"))
        step = 1
    if not isinstance(start, int) or not isinstance(end, int) or step != 1:
        return None
    return first[start:end] or None


def target_of(node: ir.Node) -> tuple[list[int], list[Dim]] | None:
    """What a Reshape asks for as constants, and the sizes that come out; None where that cannot be told.

    Constants are numbers where sizes are known, 0 where one is handed on as it is, and at most one −1.
    """
    x, raw = sizes_of(node.inputs[0]), computed(node.inputs[1]) if len(node.inputs) > 1 else None
    if not x or raw is None or (0 in raw and int_attribute(node, "allowzero", 0)):
        return None
    if any(d == 0 and i >= len(x) for i, d in enumerate(raw)) or raw.count(-1) > 1:
        return None
    sizes: list[Dim] = [x[i] if d == 0 else d for i, d in enumerate(raw)]
    if -1 in sizes:
        at = sizes.index(-1)
        sizes[at] = _left_over(x, sizes[:at] + sizes[at + 1 :])
    entries = [
        size if isinstance(size, int) else 0 if size is not None and i < len(x) and x[i] == size else -1
        for i, size in enumerate(sizes)
    ]
    return (entries, sizes) if entries.count(-1) <= 1 else None


def _left_over(x: Sequence[Dim], others: Sequence[Dim]) -> Dim:
    """The size that makes the product of x: sizes without a number must cancel."""
    if None in x or None in others:
        return None
    names = Counter(d for d in x if isinstance(d, str))
    taken = Counter(d for d in others if isinstance(d, str))
    if taken - names:
        return None
    left = list((names - taken).elements())
    above, below = (math.prod(d for d in sizes if isinstance(d, int)) for sizes in (x, others))
    if not below or above % below:
        return None
    if left:
        return left[0] if len(left) == 1 and above == below else None
    return above // below
