"""The trained net as a model: scaling folded in, what does nothing taken out, written as ONNX.

The way of a number is kept exactly, up to rounding: a neuron that nobody reads goes; one that reads nothing always says
the same, which goes into the biases behind it; inputs that nobody reads are left out by one Gather. Repeated until
nothing changes, since every neuron that goes may leave others unread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from scipy.sparse import csr_matrix

from edgepress.compressor.evolve.layers import Layer
from edgepress.compressor.evolve.samples import Scaling
from edgepress.compressor.evolve.topology import Floats, Keys
from edgepress.compressor.export.sparse import SparseLayer as StoredLayer
from edgepress.compressor.export.sparse import SparseNet
from edgepress.compressor.protocols import Array

OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True, eq=False)
class Part:
    """One layer of the finished net.

    Attributes:
        weights: [inputs, outputs], by rows.
        bias: [outputs].
    """

    weights: csr_matrix
    bias: Floats


@dataclass(frozen=True, eq=False)
class Finished:
    """A net for inference.

    Attributes:
        parts: its layers.
        used: the features that it reads, ascending; [inputs of the first part].
        features: that a sample has.
        threshold: of the modified ReLU between layers; 0: ReLU.
    """

    parts: tuple[Part, ...]
    used: Keys
    features: int
    threshold: float

    @property
    def weights(self) -> int:
        """Connections and biases."""
        return sum(part.weights.nnz + len(part.bias) for part in self.parts)

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons from inputs to classes."""
        return (len(self.used), *(len(part.bias) for part in self.parts))


def finish(layers: Sequence[Layer], scaling: Scaling, threshold: float) -> Finished:
    """Make a trained net ready: samples come as they are, and nothing is in it that does nothing."""
    parts = [Part(layer.matrix(), layer.bias.copy()) for layer in layers]
    for part in parts:
        part.weights.eliminate_zeros()
    parts[0] = folded(parts[0], scaling)
    features = parts[0].weights.shape[0]
    return shrunk(Finished(tuple(parts), np.arange(features), features, threshold))


def folded(part: Part, scaling: Scaling) -> Part:
    """The first layer for samples as they come: (x − mean) · factor is done by its weights and biases."""
    exact = part.weights.astype(np.float64).multiply(scaling.factor[:, None].astype(np.float64)).tocsr()
    bias = part.bias - exact.T @ scaling.mean.astype(np.float64)
    return Part(exact.astype(np.float32), bias.astype(np.float32))


def shrunk(net: Finished) -> Finished:
    """Take out neurons and inputs that do nothing; what the net gives stays the same, up to rounding."""
    parts = list(net.parts)
    changed = True
    while changed:
        changed = False
        for at in range(len(parts) - 1):
            reads, read = parts[at].weights, parts[at + 1].weights
            heard = np.diff(read.indptr) > 0
            hears = np.diff(reads.tocsc().indptr) > 0
            keep = heard & hears
            if keep.all():
                continue
            changed = True
            constant = np.where(parts[at].bias > net.threshold, parts[at].bias, 0) * ~hears
            bias = parts[at + 1].bias + read.T @ constant
            parts[at] = Part(reads[:, keep].tocsr(), parts[at].bias[keep])
            parts[at + 1] = Part(read[keep].tocsr(), bias.astype(np.float32))
    used = np.flatnonzero(np.diff(parts[0].weights.indptr) > 0)
    parts[0] = replace(parts[0], weights=parts[0].weights[used].tocsr())
    return Finished(tuple(parts), net.used[used], net.features, net.threshold)


def to_onnx(net: Finished, shape: tuple[int, ...], name: str = "evolved") -> ir.Model:
    """The net as ONNX with dense weights, so that every runtime reads it: `input` [N, *shape] → `logits` [N, classes].

    Args:
        net: what to write.
        shape: of a sample.
        name: of the graph.
    """
    values: list[ir.Value] = []
    nodes: list[ir.Node] = []

    def constant(label: str, array: Array) -> ir.Value:
        value = ir.Value(name=label, const_value=ir.Tensor(np.ascontiguousarray(array), name=label))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        values.append(value)
        return value

    def node(kind: str, inputs: Sequence[ir.Value], *attributes: ir.Attr) -> ir.Value:
        made = ir.Node("", kind, inputs, attributes)
        nodes.append(made)
        return made.outputs[0]

    start = ir.Value(name="input", shape=ir.Shape(["N", *shape]), type=ir.TensorType(ir.DataType.FLOAT))
    value = start if len(shape) == 1 else node("Flatten", [start], ir.AttrInt64("axis", 1))
    if len(net.used) < net.features:
        value = node("Gather", [value, constant("used", net.used.astype(np.int64))], ir.AttrInt64("axis", 1))
    for at, part in enumerate(net.parts):
        weights = part.weights.toarray().astype(np.float32, copy=False)
        value = node("Gemm", [value, constant(f"W{at + 1}", weights), constant(f"b{at + 1}", part.bias)])
        if at == len(net.parts) - 1:
            break
        if net.threshold:
            value = node("ThresholdedRelu", [value], ir.AttrFloat32("alpha", net.threshold))
        else:
            value = node("Relu", [value])
    value.name, value.dtype = "logits", ir.DataType.FLOAT
    value.shape = ir.Shape(["N", len(net.parts[-1].bias)])
    graph = ir.Graph([start], [value], nodes=nodes, initializers=values, opset_imports={"": OPSET}, name=name)
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="edgepress")


def to_sparse(net: Finished, shape: tuple[int, ...]) -> SparseNet:
    """The net for the sparse engine; inputs that nobody reads are rows without weights there, which cost nothing.

    Args:
        net: what to write.
        shape: of a sample.
    """
    first = net.parts[0].weights
    lengths = np.zeros(net.features + 1, np.int64)
    lengths[net.used + 1] = np.diff(first.indptr)
    whole = csr_matrix((first.data, first.indices, np.cumsum(lengths)), (net.features, first.shape[1]))
    last = len(net.parts) - 1
    inner = ("ThresholdedRelu", net.threshold) if net.threshold else ("Relu", 0.0)
    return SparseNet(
        tuple(
            StoredLayer(part.weights if at else whole, part.bias, *(("", 0.0) if at == last else inner))
            for at, part in enumerate(net.parts)
        ),
        "input",
        "logits",
        shape,
    )
