"""Operators that go element by element as steps, and softmax and norm."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.affine import Affine, Sum
from edgepress.compressor.certify.curves import Bent, Smooth
from edgepress.compressor.certify.linear import ScaleMap, SpreadMap
from edgepress.compressor.certify.normalizers import Norm, Softmax
from edgepress.compressor.certify.operators import name_of, optional, scaled, step
from edgepress.compressor.certify.products import Product
from edgepress.compressor.certify.program import Reader, Step, refused
from edgepress.compressor.certify.rules import Rule
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import attribute, site_name


def arithmetic(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Add, Sub, Mul, Div with a constant; Add, Sub and Mul of two values."""
    known = [reader.constant(value) is not None for value in node.inputs]
    kind = node.op_type
    if any(known):
        at = known.index(False) if not all(known) else 0
        other, row = reader.number(node, 1 - at), reader.row(node.inputs[at], node)
        one, none = np.ones(1), np.zeros(1)
        if kind == "Div":
            if at == 1 or not other.all():
                raise refused(node, "it divides by what varies, or by 0")
            return scaled(node, row, 1 / other, none, roundings=1)
        if kind == "Mul":
            return scaled(node, row, other, none, at)
        sign = -1.0 if kind == "Sub" else 1.0
        return scaled(node, row, one if at == 0 else sign * one, other * (sign if at == 0 else 1.0), at)
    if kind == "Div":
        raise refused(node, "it divides by what varies")
    if node.inputs[0] is node.inputs[1] and kind != "Mul":
        return scaled(
            node, reader.row(node.inputs[0], node), np.full(1, 2.0 if kind == "Add" else 0.0), np.zeros(1)
        )
    return joined(reader, node, Product() if kind == "Mul" else Sum((1.0, -1.0 if kind == "Sub" else 1.0)))


def joined(reader: Reader, node: ir.Node, rule: Rule) -> Sequence[Step]:
    """Two values that vary; one that is smaller is repeated first."""
    rows = [reader.row(value, node) for value in node.inputs]
    out, output, name = reader.row(node.outputs[0], node), name_of(node.outputs[0]), site_name(node)
    if {len(row) for row in rows} != {len(out)}:
        raise refused(node, "its sizes differ")
    steps, reads = [], []
    for number, (value, row) in enumerate(zip(node.inputs, rows, strict=True)):
        read = name_of(value)
        if row != out:
            wide = Affine(SpreadMap(row, out, np.ones(1)), np.zeros(1))
            steps.append(Step(f"{name}/spread{number}", (read,), f"{output}/spread{number}", wide))
            read = steps[-1].output
        reads.append(read)
    return [*steps, Step(name, tuple(reads), output, rule)]


def clip(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Relu, Clip."""
    if node.op_type == "Relu":
        return step(node, Bent())
    ends = []
    for index, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        given = optional(reader, node, index)
        old = float(str(attribute(node, name, default)))
        ends.append(old if given is None else float(given.reshape(-1)[0]))
    if ends[0] > ends[1]:
        raise refused(node, "its least is above its largest")
    return step(node, Bent(ends[0], ends[1]))


def leaky(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """LeakyRelu and PRelu; slopes outside [0, 1], where it is no curve of `curves`, as relu(x) − s relu(−x)."""
    if node.op_type == "PRelu":
        below = reader.number(node, 1)
        row = reader.row(node.inputs[0], node)
        if below.ndim > len(row):
            below = below.reshape(below.shape[-len(row) :])
        below = np.broadcast_to(below, row)
    else:
        below = np.asarray(float(str(attribute(node, "alpha", 0.01))))
    if (below >= 0).all() and (below <= 1).all():
        return step(node, Bent(below=below))
    name, output = site_name(node), name_of(node.outputs[0])
    row = reader.row(node.inputs[0], node)

    def part(kind: str, rule: Rule, *reads: str) -> Step:
        return Step(f"{name}/{kind}", reads, f"{output}/{kind}", rule)

    def factor(scale: Array) -> Affine:
        return Affine(ScaleMap(np.broadcast_to(scale, row).copy()), np.zeros(1))

    above = part("above", Bent(), name_of(node.inputs[0]))
    minus = part("minus", factor(np.full(1, -1.0)), name_of(node.inputs[0]))
    under = part("under", Bent(), minus.output)
    bent = part("bent", factor(-below), under.output)
    return [above, minus, under, bent, Step(name, (above.output, bent.output), output, Sum((1.0, 1.0)))]


def smooth(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Sigmoid, Tanh."""
    return step(node, Smooth("Tanh" if node.op_type == "Tanh" else "Sigmoid"))


def hard(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """HardSigmoid, α x + β between 0 and 1; HardSwish, x times that for α = 1/6 and β = 1/2."""
    alpha, beta = (float(str(attribute(node, key, to))) for key, to in (("alpha", 0.2), ("beta", 0.5)))
    swish = node.op_type == "HardSwish"
    if swish:
        alpha, beta = 1 / 6, 0.5
    name, read, output = site_name(node), name_of(node.inputs[0]), name_of(node.outputs[0])
    row = reader.row(node.inputs[0], node)
    sloped = Affine(ScaleMap(np.full(row, alpha), terms=2), np.full(row, beta))
    first = Step(f"{name}/sloped", (read,), f"{output}/sloped", sloped)
    gate = Step(f"{name}/gate" if swish else name, (first.output,), output, Bent(0.0, 1.0))
    if not swish:
        return [first, gate]
    gate = replace(gate, output=f"{output}/gate")
    return [first, gate, Step(name, (read, gate.output), output, Product())]


def softmax(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """Softmax along an axis of a row."""
    rank = len(reader.row(node.inputs[0], node))
    axis = node.attributes.get_int("axis", -1)
    axis = axis - 1 if axis > 0 else axis + rank
    if axis < 0 or (opset_of(reader) < 13 and axis != rank - 1):
        raise refused(node, "it runs over the batch, or over several axes")
    return step(node, Softmax(axis))


def opset_of(reader: Reader) -> int:
    """Release of the operators."""
    return reader.model.graph.opset_imports.get("", 0)


def norm(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """LRN ("norm")."""
    found = [
        float(str(attribute(node, name, default)))
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    ]
    if found[0] < 0 or found[1] < 0 or found[2] <= 0:
        raise refused(node, "alpha or beta is below 0, or bias is not above 0")
    return step(node, Norm(node.attributes.get_int("size"), *found))
