"""Sites: the nodes whose weights can be compressed, seen as matrices.

A dense site computes Y = X Wᵀ + b with X [rows, in], W [out, in], Y [rows, out]: for Gemm and MatMul the rows
are the samples (and positions of leading axes), for Conv they are the output positions and `in` is channels ×
taps (im2col).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepress.compressor.protocols import Array


def site_name(node: ir.Node) -> str:
    """The name under which users meet a node: its own, or its first output's."""
    return node.name or node.outputs[0].name or node.op_type


def attribute(node: ir.Node, name: str, default: object = None) -> object:
    """Value of a node's attribute, or `default` where it is not set."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    value = attribute(node, name, default)
    return value if isinstance(value, int) else default


def ints_attribute(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """A list-of-integers attribute."""
    value = attribute(node, name)
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else tuple(default)


def has_body(node: ir.Node) -> bool:
    """Whether a node has graphs in its attributes (If, Loop, Scan)."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def fixed(value: ir.Value) -> bool:
    """Whether a value is a constant of the file, which no caller may replace."""
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer that nobody can feed, or None."""
    return (
        value.const_value.numpy()
        if value is not None and fixed(value) and value.const_value is not None
        else None
    )


def exclusive(value: ir.Value) -> bool:
    """Whether an initializer has exactly one use and is no graph output, so that it may be changed."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def replace_constant(node: ir.Node, index: int, array: Array) -> None:
    """Give `node` a new constant as input `index`, under the old initializer's name where that is free.

    Args:
        node: a node of the main graph.
        index: which input.
        array: the new constant.
    """
    graph = node.graph
    old = node.inputs[index]
    if graph is None or old is None or not isinstance(graph, ir.Graph):
        raise ValueError(f"{site_name(node)}: input {index} is not a constant of the main graph")
    name = old.name or f"{site_name(node)}_{index}"
    if exclusive(old):
        old.const_value = ir.Tensor(np.ascontiguousarray(array), name=name)
        old.shape = ir.Shape(array.shape)
        old.dtype = old.const_value.dtype
        return
    node.replace_input_with(index, new_constant(graph, name, array))


def taken(model: ir.Model) -> set[str]:
    """Names of all values in all graphs."""
    return {
        name
        for graph in model.graphs()
        for name in ir.convenience.create_value_mapping(graph, include_subgraphs=True)
    }


def unique(name: str, names: set[str]) -> str:
    """`name`, or `name_1`, `name_2`, … where it is taken; the answer is added to `names`."""
    candidate, number = name, 0
    while candidate in names:
        number += 1
        candidate = f"{name}_{number}"
    names.add(candidate)
    return candidate


def new_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Add an initializer under a free name derived from `name`."""
    free = unique(name, set(ir.convenience.create_value_mapping(graph, include_subgraphs=True)))
    held = np.ascontiguousarray(array).reshape(array.shape)  # numpy makes a list of one number out of none
    tensor = ir.Tensor(held, name=free)
    value = ir.Value(
        name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


@dataclass(frozen=True)
class Site:
    """A Conv, Gemm or MatMul with constant weights.

    Attributes:
        node: the node.
        name: under which users meet it.
        weight: the constant, in the operator's own layout.
        out_axis: axis of `weight` that counts outputs.
        in_axis: axis of `weight` that counts inputs (per group).
        groups: groups of a Conv, 1 elsewhere.
        taps: kernel positions of a Conv, 1 elsewhere.
    """

    node: ir.Node
    name: str
    weight: Array
    out_axis: int
    in_axis: int
    groups: int
    taps: int

    @property
    def x(self) -> ir.Value:
        """The input that varies."""
        value = self.node.inputs[0]
        if value is None:
            raise ValueError(f"{self.name} has no input")
        return value

    @property
    def y(self) -> ir.Value:
        """The output."""
        return self.node.outputs[0]

    @property
    def outputs(self) -> int:
        """Output channels or features."""
        return int(self.weight.shape[self.out_axis]) * (self.groups if self.transposed_conv else 1)

    @property
    def inputs(self) -> int:
        """Input channels or features, over all groups."""
        return int(self.weight.shape[self.in_axis]) * (1 if self.transposed_conv else self.groups)

    @property
    def transposed_conv(self) -> bool:
        """Whether this is a ConvTranspose."""
        return self.node.op_type == "ConvTranspose"

    @property
    def is_conv(self) -> bool:
        """Whether this is a Conv."""
        return self.node.op_type == "Conv"

    @property
    def dense(self) -> bool:
        """Whether Y = X Wᵀ + b with one matrix for all outputs."""
        return self.groups == 1 and not self.transposed_conv

    @property
    def depthwise(self) -> bool:
        """Whether each input channel feeds its own outputs only."""
        return self.is_conv and self.groups > 1 and self.weight.shape[1] == 1

    @property
    def macs_per_position(self) -> int:
        """Multiply-accumulates per output position (or sample)."""
        return math.prod(self.weight.shape)

    def matrix(self) -> Array:
        """W [out, in], float32; `in` is channels × taps for a Conv."""
        w = np.moveaxis(self.weight, (self.out_axis, self.in_axis), (0, 1))
        return np.ascontiguousarray(w.reshape(w.shape[0], -1), dtype=np.float32)

    def from_matrix(self, matrix: Array) -> Array:
        """The operator's own layout of W [out, in], in the weights' dtype."""
        kernel = self.weight.shape[2:] if self.is_conv else ()
        w = matrix.reshape(matrix.shape[0], -1, *kernel)
        return np.ascontiguousarray(
            np.moveaxis(w, (0, 1), (self.out_axis, self.in_axis)).astype(self.weight.dtype)
        )

    @property
    def bias_index(self) -> int | None:
        """Which input is the bias; None for MatMul."""
        return None if self.node.op_type == "MatMul" else 2

    def bias(self) -> Array | None:
        """The constant bias [out], zeros where there is none; None where it cannot be changed."""
        if self.bias_index is None:
            return None
        inputs = self.node.inputs
        if len(inputs) <= self.bias_index or inputs[self.bias_index] is None:
            return np.zeros(self.outputs, np.float32)
        value = constant(inputs[self.bias_index])
        if value is None or value.size not in (1, self.outputs) or value.size != math.prod(value.shape[-1:]):
            return None
        return np.broadcast_to(value.reshape(-1), self.outputs).astype(np.float32)


def site_of(node: ir.Node) -> Site | None:
    """The site that `node` is, or None."""
    if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2 or node.op_type not in _AXES:
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype not in (np.float32, np.float16) or weight.ndim < 2 or not weight.size:
        return None
    out_axis, in_axis = _AXES[node.op_type]
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        if not plain or int_attribute(node, "transA", 0):
            return None
        if int_attribute(node, "transB", 0):
            out_axis, in_axis = 0, 1
    if node.op_type == "MatMul" and weight.ndim != 2:
        return None
    groups = int_attribute(node, "group", 1) if "Conv" in node.op_type else 1
    return Site(node, site_name(node), weight, out_axis, in_axis, groups, math.prod(weight.shape[2:]))


_AXES = {"Conv": (0, 1), "ConvTranspose": (1, 0), "Gemm": (1, 0), "MatMul": (1, 0)}


def find_sites(model: ir.Model) -> list[Site]:
    """All sites of the main graph, in topological order."""
    return [site for node in model.graph if (site := site_of(node)) is not None]


def set_weights(site: Site, matrix: Array, bias: Array | None) -> None:
    """Write W [out, in] and b [out] back into the node; where there was no b, only one that is not zero."""
    node = site.node
    replace_constant(node, 1, site.from_matrix(matrix))
    if bias is None or site.bias_index is None:
        return
    array = bias.astype(site.weight.dtype)
    if len(node.inputs) > site.bias_index and node.inputs[site.bias_index] is not None:
        replace_constant(node, site.bias_index, array)
    elif np.any(array) and isinstance(node.graph, ir.Graph):
        node.resize_inputs(site.bias_index + 1)
        node.replace_input_with(site.bias_index, new_constant(node.graph, f"{site.name}_bias", array))


def conv_padding(node: ir.Node, size: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Explicit (before, after) padding of a Conv for spatial input `size`.

    Args:
        node: a Conv.
        size: spatial input shape.
        kernel: kernel shape.
    """
    rank = len(kernel)
    strides = ints_attribute(node, "strides", [1] * rank)
    dilations = ints_attribute(node, "dilations", [1] * rank)
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for s, k, st, d in zip(size, kernel, strides, dilations, strict=True):
            total = max(0, (-(-s // st) - 1) * st + (k - 1) * d + 1 - s)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return pads
    flat = ints_attribute(node, "pads", [0] * 2 * rank) if auto == "NOTSET" else (0,) * (2 * rank)
    return list(zip(flat[:rank], flat[rank:], strict=True))


def windows(site: Site, x: Array) -> Array:
    """A view of a Conv's input as windows: [n, C, *positions, *kernel].

    Args:
        site: a Conv.
        x: [n, C, *spatial].
    """
    node, kernel = site.node, site.weight.shape[2:]
    rank = len(kernel)
    strides = ints_attribute(node, "strides", [1] * rank)
    dilations = ints_attribute(node, "dilations", [1] * rank)
    padding = conv_padding(node, x.shape[2:], kernel)
    padded = np.pad(x, [(0, 0), (0, 0), *padding]) if np.any(padding) else x
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(padded, span, axis=tuple(range(2, 2 + rank)))
    index: list[slice] = [slice(None), slice(None)]
    index += [slice(None, None, s) for s in strides] + [slice(None, None, d) for d in dilations]
    result: Array = view[tuple(index)]
    return result


def sampled_rows(
    site: Site, x: Array, ys: Sequence[Array], limit: int, rng: np.random.Generator
) -> Iterator[Array]:
    """Rows of X (im2col) and the matching rows of each Y, at most `limit` of them, drawn without preference.

    Args:
        site: a dense site.
        x: its input, as the operator takes it.
        ys: outputs of the same batch, as the operator gives them.
        limit: largest number of rows.
        rng: chooses the positions.

    Yields:
        X [rows, in], then each Y [rows, out].
    """
    if not site.is_conv:
        flat = [a.reshape(-1, a.shape[-1]) for a in (x, *ys)]
        if len(flat[0]) > limit:
            take = np.sort(rng.choice(len(flat[0]), limit, replace=False))
            flat = [a[take] for a in flat]
        yield from flat
        return
    view = windows(site, x)
    rank = len(site.weight.shape) - 2
    positions = (view.shape[0], *view.shape[2 : 2 + rank])
    total = math.prod(positions)
    chosen = np.arange(total) if total <= limit else np.sort(rng.choice(total, limit, replace=False))
    n, *where = np.unravel_index(chosen, positions)
    at: tuple[Array | slice, ...] = (n, slice(None), *where)
    yield view[at].reshape(len(chosen), -1)
    for y in ys:
        yield y[at]
