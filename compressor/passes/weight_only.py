"""Weight-only quantization: weights in blocks of 2, 4 or 8 bits that stay so in memory, for large products.

    Y = X W + c        w ≈ s_b (q − z_b), one scale for each output and `block_size` inputs (numerics/blocks.py)

Each MatMul or Gemm becomes onnxruntime's `MatMulNBits`, which reads packed weights and unpacks them block by block:
where time goes into fetching weights (few rows of X, wide layers) fewer bytes are faster. At `accuracy_level` 4 blocks
of X become 8 bits at run time, too; at 0 it computes in floats. A DequantizeLinear with `block_size` in front of a
MatMul becomes the same kernel, but there a session's option chooses the level, not the file, and it needs opset 21.
With samples weights are rounded so that outputs keep (Frantar et al. 2023, GPTQ; numerics/rounding.py), and a bias
takes up the mean of the error.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import ClassVar, Literal

import onnx_ir as ir

from edgepress.compressor.errors import UsageError
from edgepress.compressor.mapped import release
from edgepress.compressor.numerics.blocks import (
    Blocks,
    packed_blocks,
    packed_zeros,
    round_in_blocks,
    unblocked,
)
from edgepress.compressor.numerics.grids import Array
from edgepress.compressor.numerics.rounding import Seen
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns
from edgepress.compressor.passes.constants import Constants
from edgepress.compressor.passes.dynamic import MICROSOFT
from edgepress.compressor.passes.products import (
    CONVOLUTIONS,
    RECURRENT,
    Product,
    bias_means,
    choose,
    drop_unread,
    left_out,
    take_up,
)
from edgepress.compressor.passes.rounding import inputs_in_turn
from edgepress.compressor.sites import constant, site_name

OVERHEAD = 150
"""Bytes that the node takes more than the one it replaces."""

FAST_BLOCKS = {2: (32, 64, 128), 4: (16, 32, 64, 128, 256), 8: (16, 32, 64, 128, 256)}
"""Block sizes by bits; with 2 bits the others run 30 times slower than floats (onnxruntime 1.31, x86)."""

KERNEL_SINCE = {2: (1, 24), 8: (1, 23)}
"""Bits → first onnxruntime taken for one that computes with them. Seen: 1.23 does not load 2 bits, 1.20 not 8."""


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Keep weights of large products in blocks of few bits, in memory too: for wide layers that see few rows.

    Attributes:
        bits: 2, 4 or 8.
        block_size: inputs that share a scale: 16, 32, 64, 128 or 256 (with 2 bits 32, 64 or 128); no wider than needed.
        accuracy_level: 4 computes in 8 bits, 0 in floats (4 bits alone have a fast kernel for that).
        symmetric: leave out zero points, a few bits a block.
        compensate: with samples, round so that outputs keep, and let a bias take up the mean error.
        min_elements: sites with fewer weights stay as they are.
        sites: regular expressions of sites to quantize; empty for all.
        leave: names of sites not to quantize.
    """

    kind: ClassVar[str] = "weight_only"
    bits: Literal[2, 4, 8] = 4
    block_size: Literal[16, 32, 64, 128, 256] = 32
    accuracy_level: Literal[0, 4] = 4
    symmetric: bool = False
    compensate: bool = True
    min_elements: int = 1024
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.accuracy_level == 0 and self.bits != 4:
            raise UsageError(
                f"{self.kind}: {self.bits} bits at accuracy_level 0 are many times slower than floats",
                "Choose accuracy_level 4, or 4 bits; `store` keeps weights small at float speed.",
            )
        if self.block_size not in FAST_BLOCKS[self.bits]:
            known = ", ".join(map(str, FAST_BLOCKS[self.bits]))
            raise UsageError(
                f"{self.kind}: blocks of {self.block_size} with {self.bits} bits have no fast kernel",
                f"Choose block_size {known}.",
            )
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Quantize `model` in place; samples are used where there are any."""
        products, skipped = choose(model, context, lambda product: self._reason(product, context))
        skipped += _others(model, context)
        constants = Constants(model)
        means = bias_means(model, products, context) if self.compensate else {}
        rounded: Iterable[tuple[Array, Blocks, Array | None]] = (
            self._rounded(product, seen, centred=product.node in means)
            for product, seen in zip(products, self._seen(model, products, context, means), strict=True)
        )
        if context.stream is not None:  # all is looked at before anything is changed
            rounded = list(rounded)
        old = [value for product in products for value in product.node.inputs[1:]]
        for product, (packed, levels, codes) in zip(products, rounded, strict=True):
            take_up(product, partial(_error, product, codes, levels), means)
            stored = [
                constants.add(f"{product.stem}_q", packed),
                constants.add(f"{product.stem}_scale", levels.scales.T),
            ]
            if not self.symmetric:
                stored.append(constants.add(f"{product.stem}_zero", packed_zeros(levels, self.bits)))
            self._rewrite(constants, product, stored)
        drop_unread(model, old)
        changed = tuple(product.name for product in products)
        return Outcome(bool(changed), changed, tuple(dict.fromkeys(skipped)))

    def _rounded(
        self, product: Product, seen: Seen | None, *, centred: bool
    ) -> tuple[Array, Blocks, Array | None]:
        """A product's packed codes, their levels, and the codes themselves [out, in] where a bias is to be corrected.

        Those take four times as much: of all products together they would be a large part of the model.
        """
        block = self._block(product)
        codes, levels = round_in_blocks(product.rows, self.bits, block, self.symmetric, seen)
        release(product.weight)
        return packed_blocks(codes, self.bits, block), levels, codes if centred else None

    def _reason(self, product: Product, context: Context) -> str | None:
        """Why a product stays as it is, or None."""
        inputs, outputs = product.shape
        block = self._block(product)
        blocks = -(-inputs // block)
        zeros = 0 if self.symmetric else -(-blocks * self.bits // 8)
        packed = outputs * (blocks * (block * self.bits // 8 + 4) + zeros)
        if 4 * product.size <= packed + OVERHEAD:
            return "the file would not get smaller"
        if self.bits in KERNEL_SINCE and context.target is not None:
            found = re.match(r"(\d+)\.(\d+)", context.target.runtime_version)
            if found is not None and (int(found[1]), int(found[2])) < KERNEL_SINCE[self.bits]:
                return f"onnxruntime {context.target.runtime_version} has no kernel for {self.bits} bits"
        name, size = product.name, product.size
        return left_out(name, size, context, self.sites, self.leave, self.min_elements)

    def _block(self, product: Product) -> int:
        """Inputs of a block: as many as the recipe says, or the least that hold all."""
        inputs = product.shape[0]
        return next(size for size in FAST_BLOCKS[self.bits] if size >= min(inputs, self.block_size))

    def _seen(
        self, model: ir.Model, products: Sequence[Product], context: Context, centred: Collection[ir.Node]
    ) -> Iterator[Seen | None]:
        """Moments of the products' inputs, one after another, where there are any to go by."""
        if not self.compensate or context.stream is None:
            return repeat(None, len(products))
        return inputs_in_turn(model, [product.site for product in products], context, centred)

    def _rewrite(self, constants: Constants, product: Product, stored: Sequence[ir.Value]) -> None:
        """Make the node a MatMulNBits, in its place; an addend that is no row of outputs is added behind it."""
        node, addend, y = product.node, product.addend(constants), product.node.outputs[0]
        inputs, outputs = product.shape
        array = constant(addend)
        values: list[ir.Value | None] = [product.x, *stored]
        if array is not None and array.size == outputs == math.prod(array.shape[-1:]):
            row = addend if array.ndim == 1 else constants.add(f"{product.stem}_bias", array.reshape(-1))
            values, addend = [*values, *[None] * (5 - len(values)), row], None
        node.attributes.clear()
        kernel, result = node, y
        if addend is not None:
            result = constants.value(f"{y.name}_product")
            result.type, result.shape = y.type, y.shape
            kernel = ir.Node("", "MatMul", [], outputs=[result])
            product.insert(kernel)
            node.op_type, node.name = "Add", f"{product.name}_add"
            _read(node, [result, addend])
        kernel.name, kernel.domain, kernel.op_type, kernel.version = (
            product.name,
            MICROSOFT,
            "MatMulNBits",
            None,
        )
        numbers = {"K": inputs, "N": outputs, "bits": self.bits, "block_size": self._block(product)}
        for name, number in (numbers | {"accuracy_level": self.accuracy_level}).items():
            kernel.attributes[name] = ir.AttrInt64(name, number)
        _read(kernel, values)
        constants.model.opset_imports[MICROSOFT] = 1


def _error(product: Product, codes: Array | None, levels: Blocks) -> Array:
    """What rounding does to the weights [in, out]."""
    if codes is None:
        raise ValueError(f"the codes of {product.name} were not kept")
    error: Array = (unblocked(codes, levels) - product.rows).T
    return error


def _read(node: ir.Node, values: Sequence[ir.Value | None]) -> None:
    """Let a node read these values and no others."""
    node.resize_inputs(len(values))
    for index, value in enumerate(values):
        node.replace_input_with(index, value)


def _others(model: ir.Model, context: Context) -> list[Skipped]:
    """Nodes with weights that have no kernel of this kind."""
    return [
        Skipped(
            site_name(node),
            "--leave names it"
            if context.left_by_user(site_name(node))
            else f"there is no such kernel for {node.op_type}: `store` makes its weights smaller",
        )
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.domain in ("", "ai.onnx") and node.op_type in RECURRENT | CONVOLUTIONS
    ]
