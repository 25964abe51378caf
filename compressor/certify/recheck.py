"""A certificate proved again by other means: two ONNX graphs walked node by node, in exact plain intervals.

Nothing of `program`, of its rules or of its arithmetic is used, so that a mistake there does not hide here. What both
share is how a model is loaded and brought into canonical form, and the formulas for a difference (docs/certify.md).
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.exactrules import MOVES, RULES, unchanged
from edgepress.compressor.certify.gridrules import (
    Levels,
    added,
    in_both,
    levels,
    spell_means_alike,
    without_stored_integers,
)
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.nodepair import Nodes, TooHardError, operands, same_row
from edgepress.compressor.certify.rational import Ends, Triple, exactly
from edgepress.compressor.sites import constant
from edgepress.compressor.specs import dims

WORK = 1e8
"""Multiply-accumulates up to which a net is small enough: about a minute."""
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CURVES = {"Sigmoid": 1e3, "Tanh": 1e3, "LRN": 2e3, "Softmax": 3e2}
"""Multiply-accumulates that take as long as one value; of a softmax, one value for each that it is a share of."""

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
KEEP = (*MOVES, "Concat", "MaxPool", "GlobalMaxPool")
"""What numbers on a grid leave on that grid."""


class Walk:
    """Two nets side by side, node by node; each value of the candidate is held against one of the original.

    Args:
        original: without integers that stand for weights.
        candidate: likewise.
        fed: range of both nets' input, of the shape of a row.
    """

    def __init__(self, original: ir.Model, candidate: ir.Model, fed: Ends) -> None:
        ours, theirs = (inputs_of(model)[0] for model in (original, candidate))
        nothing = np.zeros(fed.lo.shape, object)
        self.rest = list(original.graph)
        self.reached = {ours: ours}  # values of the original
        self.stands_for = {theirs: ours}
        self.known = {theirs: Triple(fed, fed, Ends(nothing, nothing, 1))}
        self.grids: dict[ir.Value, Levels] = {}  # of values of both nets that lie on one
        self.integers: set[ir.Value | None] = set()

    def step(self, theirs: ir.Node) -> None:
        """Go over one node of the candidate, and over the same one of the original where it has it."""
        ours = self.rest[0] if self.rest else theirs
        reads = operands(theirs, self.stands_for)
        if not {ours.domain, theirs.domain} <= {"", "ai.onnx"}:
            raise TooHardError(f"{theirs.op_type} has no exact rule")
        at = [self.known[v] for v in theirs.inputs if v in self.known and v is not None]
        if not at:
            raise TooHardError(f"a {theirs.op_type} reads constants alone")
        if self.rest and ours.op_type == theirs.op_type and operands(ours, self.reached) == reads:
            self.rest.pop(0)
            self._settle(theirs, self._both(Nodes(ours, theirs), at), ours.outputs[0])
            self.reached[ours.outputs[0]] = ours.outputs[0]
        elif theirs.op_type in QUANTIZERS and reads[0] is not None:
            grid, stays = self._grid(theirs)
            self._settle(theirs, at[0] if stays else added(at[0], grid), reads[0])
        else:
            raise TooHardError("the two are built differently")

    def _settle(self, theirs: ir.Node, made: Triple, ours: ir.Value) -> None:
        if made.x.lo.shape != same_row(ours, theirs.outputs[0]):
            raise TooHardError(f"a {theirs.op_type} spreads its input over more axes")
        self.known[theirs.outputs[0]] = made
        self.stands_for[theirs.outputs[0]] = ours

    def _both(self, nodes: Nodes, at: Sequence[Triple]) -> Triple:
        ours, theirs = nodes.ours, nodes.theirs
        if ours.op_type in QUANTIZERS:
            (grid, stays), (other, too) = self._grid(ours), self._grid(theirs)
            if grid != other:
                raise TooHardError("it quantizes otherwise in the candidate")
            return at[0] if stays and too else in_both(at[0], grid)
        for node in (ours, theirs):
            if any(v in self.integers for v in node.inputs):
                raise TooHardError(f"a {node.op_type} reads integers")
            found = {self.grids.get(v) for v in node.inputs if v is not None and constant(v) is None}
            if node.op_type in KEEP and len(found) == 1 and (grid_of := found.pop()) is not None:
                self.grids[node.outputs[0]] = grid_of
        last = {node.outputs[0].is_graph_output() and not node.outputs[0].uses() for node in (ours, theirs)}
        if ours.op_type == "Softmax" and len(last) > 1:
            raise TooHardError("a softmax ends one net alone")
        rule = unchanged if ours.op_type == "Softmax" and last == {True} else RULES.get(ours.op_type)
        if rule is None:
            raise TooHardError(f"{ours.op_type} has no exact rule")
        return rule(nodes, at)

    def _grid(self, node: ir.Node) -> tuple[Levels, bool]:
        """Grid of a quantizer, and whether what it reads lies on it already; that of a dequantizer must."""
        grid, value = levels(node), node.inputs[0]
        before = None if value is None else self.grids.get(value)
        if node.op_type == "DequantizeLinear" and before != grid:
            raise TooHardError("it reads integers of another grid")
        if node.op_type == "QuantizeLinear":
            self.integers.add(node.outputs[0])
        self.grids[node.outputs[0]] = grid
        return grid, before == grid


def inputs_of(model: ir.Model) -> list[ir.Value]:
    """What is fed."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def changes(original: ir.Model, candidate: ir.Model, box: Interval) -> list[Ends]:
    """Range of the difference of every output, exact plain intervals; a softmax at the end is left off.

    Args:
        original: in canonical form, with shapes.
        candidate: the same nodes with other constants, and quantizers in between.
        box: inputs, [1, *row].

    Raises:
        TooHardError: the two are not built alike, too large, or have other nodes; the message says which.
    """
    original, candidate = (without_stored_integers(model) for model in (original, candidate))
    for model in (original, candidate):
        spell_means_alike(model)
    if (found := work(original)) > WORK:
        raise TooHardError(f"it takes {found:.1e} multiply-accumulates")
    inputs = [inputs_of(model) for model in (original, candidate)]
    if any(len(found) != 1 for found in inputs):
        raise TooHardError("a net has several inputs")
    if same_row(inputs[0][0], inputs[1][0]) != box.shape[1:]:
        raise TooHardError("the box is of other inputs")
    walk = Walk(original, candidate, Ends.of(exactly(box.lo[0]), exactly(box.hi[0])))
    for node in candidate.graph:
        walk.step(node)
    outputs = list(candidate.graph.outputs)
    if walk.rest or [walk.stands_for.get(v) for v in outputs] != list(original.graph.outputs):
        raise TooHardError("the two are built differently")
    return [walk.known[value].d for value in outputs]


def work(model: ir.Model) -> float:
    """Multiply-accumulates of one row in convolutions and products, and what takes as long in curves."""
    total = 0.0
    for node in model.graph:
        weight, first = (
            (constant(node.inputs[1]), node.inputs[0]) if node.op_type in PRODUCTS else (None, None)
        )
        sizes = [n for n in (dims(node.outputs[0]) or ())[1:] if isinstance(n, int)]
        if weight is not None and first is not None and node.op_type == "ConvTranspose":
            total += weight.size * math.prod(n for n in (dims(first) or ())[2:] if isinstance(n, int))
        elif weight is not None:
            rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
            total += math.prod(sizes) * weight.size / weight.shape[0 if rows else -1]
        elif node.op_type in CURVES:
            others = max(sizes, default=1) if node.op_type == "Softmax" else 1
            total += math.prod(sizes) * others * CURVES[node.op_type]
    return total
