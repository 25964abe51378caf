"""Dynamic quantization: weights in 8 bits or fewer in the file, activations in 8 bits at run time (Çallı 2017 §1.6).

    x ≈ s_x (q_x − z_x)      s_x, z_x from the least and the largest value of x in this very run
    y = x W + b  ≈  s_x s_w · ((q_x − z_x) Q_w) + b        products of 8 bits, sums of 32

No samples are needed to know ranges, so it fits where they vary from input to input: transformers, recurrent nets.
A MatMul or Gemm becomes

    DynamicQuantizeLinear → MatMulInteger → Cast → Mul(s_x s_w) (→ Add)

which onnxruntime fuses into one kernel; an LSTM becomes its DynamicQuantizeLSTM. Products that read the same value
share one DynamicQuantizeLinear. Weights are rounded as in `quantize`: symmetric, one scale for each output, below 7
bits so that outputs keep (numerics/rounding.py), the mean error taken out of the bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgepress.compressor.numerics.grids import Array, Grid
from edgepress.compressor.numerics.packing import MOST_PACKED_BITS, stored_bytes
from edgepress.compressor.numerics.rounding import Rounding
from edgepress.compressor.numerics.steps import block_width
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns
from edgepress.compressor.passes.constants import UNPACKING_OPSET, Constants
from edgepress.compressor.passes.integer_forms import raise_opset
from edgepress.compressor.passes.products import (
    CONVOLUTIONS,
    NO_CONSTANT,
    RECURRENT,
    SHARED,
    Product,
    bias_means,
    choose,
    drop_unread,
    left_out,
    take_up,
    weight_refusal,
)
from edgepress.compressor.passes.rounding import (
    Ranges,
    Rounded,
    check_bits,
    round_by_outputs,
    round_plainly,
    weight_grid,
)
from edgepress.compressor.sites import constant, int_attribute, site_name

MICROSOFT = "com.microsoft"
FLOAT = ir.DataType.FLOAT

OVERHEAD = 200
"""Bytes of the nodes that take the place of one; its weights must save more."""

NO_KERNEL = {
    "GRU": "there is no dynamic kernel for GRU: `store` makes its weights smaller",
    "RNN": "there is no dynamic kernel for RNN: `store` makes its weights smaller",
    "Conv": "a dynamic convolution is slower than a float one: `quantize` (with samples) or `store`",
    "ConvTranspose": "there is no integer kernel for ConvTranspose: `store` makes its weights smaller",
}


@dataclass(frozen=True)
class Dynamic(Pass):
    """Quantize products and LSTMs, activations at run time: smaller and faster transformers, no samples needed.

    Attributes:
        weight_bits: 2 to 8; fewer where the target's kernels would saturate. An LSTM's have 8.
        bits: (site, bits) pairs that differ from that. Kernels compute with 8 bits whatever is stored.
        granularity: one weight scale per output (`channel`) or in all (`tensor`).
        weight_ranges: `minmax` clips no weight, `mse` clips where that rounds the others better, `auto` does so below 7
            bits.
        rounding: below 7 bits: to the `nearest` integer, or by outputs: column by column (`gptq`), and then weight by
            weight (`coordinate`).
        bias_correction: with samples, take the mean error of rounded weights out of the bias.
        min_elements: sites with fewer weights stay as they are.
        sites: regular expressions of sites to quantize; empty for all.
        leave: names of sites not to quantize.
    """

    kind: ClassVar[str] = "dynamic"
    weight_bits: int = 8
    bits: tuple[tuple[str, int], ...] = ()
    granularity: Literal["channel", "tensor"] = "channel"
    weight_ranges: Ranges = "auto"
    rounding: Rounding = "coordinate"
    bias_correction: bool = True
    min_elements: int = 1024
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_bits(self.kind, self.weight_bits, self.bits)
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Quantize `model` in place; samples are used where there are any."""
        products, nets, skipped = self._choose(model, context)
        modified = bool(products or nets) and raise_opset(model, UNPACKING_OPSET)
        if modified:
            products, nets, skipped = self._choose(model, context)
        constants = Constants(model)
        if products:
            self._products(constants, products, context)
        for net in nets:
            _quantize_lstm(constants, net, weight_grid(8, 1, _most(context)))
        changed = (*(product.name for product in products), *map(site_name, nets))
        return Outcome(modified or bool(changed), changed, tuple(dict.fromkeys(skipped)))

    def _choose(
        self, model: ir.Model, context: Context
    ) -> tuple[list[Product], list[ir.Node], list[Skipped]]:
        """Products and LSTMs to quantize, and what is left alone."""
        products, skipped = choose(model, context, lambda product: self._reason(product, context))
        nets = []
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.domain in ("", "ai.onnx") and node.op_type in RECURRENT | CONVOLUTIONS:
                reason = self._refusal(model, node, context)
                if reason is None:
                    nets.append(node)
                else:
                    skipped.append(Skipped(site_name(node), reason))
        return products, nets, skipped

    def _reason(self, product: Product, context: Context) -> str | None:
        """Why a product stays as it is, or None."""
        size, outputs = product.size, product.shape[1]
        scales = outputs if self.granularity == "channel" else 1
        if 4 * size <= stored_bytes(size, self._bits(product)) + 4 * scales + OVERHEAD:
            return "the file would not get smaller"
        return left_out(product.name, size, context, self.sites, self.leave, self.min_elements)

    def _bits(self, product: Product) -> int:
        return dict(self.bits).get(product.name, self.weight_bits)

    def _refusal(self, model: ir.Model, node: ir.Node, context: Context) -> str | None:
        """Why a node that is no product stays as it is, or None for an LSTM."""
        name = site_name(node)
        if context.left_by_user(name):
            return "--leave names it"
        if node.graph is not model.graph:
            return "inside control flow"
        if node.op_type in NO_KERNEL:
            return NO_KERNEL[node.op_type]
        for value in node.inputs[1:3]:
            array = constant(value)
            if reason := weight_refusal(value):
                return reason
            if value is None or array is None or array.ndim != 3:
                return NO_CONSTANT
            if len(value.uses()) > 1:
                return SHARED
        if int_attribute(node, "layout", 0):
            return "the quantized operator wants the time axis first"
        size = sum(array.size for value in node.inputs[1:3] if (array := constant(value)) is not None)
        return left_out(name, size, context, self.sites, self.leave, self.min_elements)

    def _products(self, constants: Constants, products: Sequence[Product], context: Context) -> None:
        """Round the weights of all products, then rewrite these."""
        most = _most(context)
        grids = {p.node: weight_grid(self._bits(p), p.size, most) for p in products}
        means = bias_means(constants.model, products, context) if self.bias_correction else {}
        seen: Mapping[ir.Node, Rounded] = {}
        few = [s for p in products if grids[p.node].bits <= MOST_PACKED_BITS and (s := p.site) is not None]
        if few:
            seen = round_by_outputs(
                constants.model, grids, few, {}, context, means,
                how=self.rounding, ranges=self.weight_ranges, granularity=self.granularity,
            )  # fmt: skip
        quantized: dict[ir.Value, Sequence[ir.Value]] = {}
        old = [value for product in products for value in product.node.inputs[1:]]
        for product in products:
            matrix = np.ascontiguousarray(product.rows)
            found = seen.get(product.node)
            if found is None:
                width = block_width(self.granularity, 0, matrix.shape[1])
                found = round_plainly(matrix, grids[product.node], width, 0.0, self.weight_ranges)
            take_up(product, partial(_error, found, matrix), means)
            if product.x not in quantized:
                quantized[product.x] = _quantized(constants, product)
            _rewrite(constants, product, quantized[product.x], found)
        drop_unread(constants.model, old)


def _error(rounded: Rounded, rows: Array) -> Array:
    """What rounding does to weights [in, out], whose own are W [out, in]."""
    codes, steps = rounded
    error: Array = steps.values(codes.T) - rows.T
    return error


def _most(context: Context) -> int:
    """Bits of weights that the target's kernels take."""
    return context.target.weight_bits if context.target else 8


def _quantized(constants: Constants, product: Product) -> Sequence[ir.Value]:
    """X in 8 bits, its scale and its zero point, from a node before the product, which reads X first."""
    kinds = {"q": ir.DataType.UINT8, "scale": ir.DataType.FLOAT, "zero": ir.DataType.UINT8}
    outputs = []
    for part, kind in kinds.items():
        value = constants.value(f"{product.x.name or 'x'}_{part}")
        value.type, value.shape = ir.TensorType(kind), product.x.shape if part == "q" else ir.Shape([])
        outputs.append(value)
    product.insert(ir.Node("", "DynamicQuantizeLinear", [product.x], outputs=outputs))
    return outputs


def _rewrite(constants: Constants, product: Product, x: Sequence[ir.Value], rounded: Rounded) -> None:
    """Put integers in the place of a product; its last node is the old one, so what it gives stays as it is."""
    node, name, y = product.node, product.name, product.node.outputs[0]
    codes, steps = rounded
    scale = steps.scales[:, 0].astype(np.float32)
    if (scale == scale[0]).all():
        scale = scale[0]

    def put(
        kind: str, inputs: Sequence[ir.Value], part: str, like: ir.Value, *attributes: ir.Attr
    ) -> ir.Value:
        value = constants.value(f"{y.name}_{part}")
        value.type, value.shape = ir.TensorType(FLOAT), like.shape
        product.insert(ir.Node("", kind, inputs, attributes, outputs=[value], name=f"{name}_{part}"))
        return value

    addend = product.addend(constants)
    weights = constants.integers(f"{product.stem}_q", np.ascontiguousarray(codes.T), steps.grid, node)
    scales = constants.add(f"{product.stem}_scale", np.asarray(scale))
    sums = put("MatMulInteger", [x[0], weights, x[2]], "sums", y)
    sums.type = ir.TensorType(ir.DataType.INT32)
    last = [
        put("Cast", [sums], "wide", y, ir.AttrInt64("to", int(FLOAT))),
        put("Mul", [x[1], scales], "scale", scales),
    ]
    if addend is not None:
        last = [put("Mul", last, "scaled", y), addend]
    node.attributes.clear()
    node.op_type = "Mul" if addend is None else "Add"
    maker = sums.producer()
    if maker is not None:  # it is the site now; what is left of the old node only scales, or adds
        node.name, maker.name = f"{name}_float", name
    node.resize_inputs(2)
    for index, value in enumerate(last):
        node.replace_input_with(index, value)


def _quantize_lstm(constants: Constants, node: ir.Node, grid: Grid) -> None:
    """Make an LSTM a DynamicQuantizeLSTM: W and R transposed, one scale for each row of each gate."""
    old, extra = list(node.inputs[1:3]), []
    node.resize_inputs(12)
    for index, value in enumerate(old, start=1):
        array = constant(value)
        if array is None or value is None:
            raise ValueError(f"{site_name(node)} has no constant weights")
        directions, rows, width = array.shape
        q, steps = round_plainly(array.reshape(-1, width), grid, width, 0.0, "minmax")
        scale = steps.scales.astype(np.float32)
        turned = np.ascontiguousarray(q.reshape(array.shape).transpose(0, 2, 1))
        node.replace_input_with(index, constants.add(f"{value.name}_q", turned))
        extra += [
            constants.add(f"{value.name}_scale", scale.reshape(directions, rows)),
            constants.add("zero", np.zeros((directions, rows), grid.dtype)),
        ]
    for index, value in enumerate(extra, start=8):
        node.replace_input_with(index, value)
    node.name = site_name(node)
    node.domain, node.op_type, node.version = MICROSOFT, "DynamicQuantizeLSTM", None
    node.attributes.pop("layout", None)
    constants.model.opset_imports[MICROSOFT] = 1
    drop_unread(constants.model, old)
