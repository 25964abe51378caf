"""Matrix products with constant weights, however a model writes them: what `dynamic` and `weight_only` rewrite.

Y = X W + c        MatMul, or Gemm with alpha and transB in W [in, out] and beta in c
"""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepress.compressor.guard import count_bad
from edgepress.compressor.mapped import release
from edgepress.compressor.numerics.grids import Array
from edgepress.compressor.passes.base import Context, Skipped
from edgepress.compressor.passes.calibrate import (
    bias_takes_mean,
    correct_bias,
    site_means,
)
from edgepress.compressor.passes.constants import Constants
from edgepress.compressor.sites import Site, attribute, constant, int_attribute, site_name, site_of

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = frozenset({"MatMul", "Gemm"})

NO_CONSTANT = "its second factor is no float constant of the file: an activation, or stored in another form"
SHARED = "its weights are read by what stays as it is, too: the file would grow"


@dataclass(frozen=True)
class Product:
    """A node Y = X W + c of the main graph.

    Attributes:
        node: a MatMul or Gemm.
        name: of its site.
        x: the input that varies.
        weight: the node's own constant.
        flipped: whether the node's own constant is Wᵀ.
        alpha: what the constant is multiplied by.
    """

    node: ir.Node
    name: str
    x: ir.Value
    weight: ir.Value
    flipped: bool
    alpha: float = 1.0

    @property
    def rows(self) -> Array:
        """Wᵀ [out, in], float32, alpha included; a view of the constant where alpha is 1."""
        rows = self._array if self.flipped else self._array.T
        return rows if self.alpha == 1.0 else rows * np.float32(self.alpha)

    @property
    def _array(self) -> Array:
        """The node's own constant."""
        array = constant(self.weight)
        if array is None:
            raise ValueError(f"{self.name} has no weights")
        return array

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs."""
        outputs, inputs = self._array.shape if self.flipped else self._array.shape[::-1]
        return inputs, outputs

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def site(self) -> Site | None:
        """The same as a site, whose inputs can be looked at; None where alpha or beta is not one."""
        return site_of(self.node)

    @property
    def stem(self) -> str:
        """What names of new constants begin with."""
        return self.weight.name or self.name

    def insert(self, node: ir.Node) -> None:
        """Put a node in front of the product."""
        if isinstance(self.node.graph, ir.Graph):
            self.node.graph.insert_before(self.node, node)

    def addend(self, constants: Constants) -> ir.Value | None:
        """The value c that is added, beta included; nodes for it come before the product."""
        value = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        beta = attribute(self.node, "beta", 1.0)
        if value is None or beta == 1.0 or not isinstance(beta, float):
            return value
        array = constant(value)
        if array is not None:
            return constants.add(f"{value.name}_beta", (np.float32(beta) * array).astype(np.float32))
        factor = constants.add("beta", np.array(beta, np.float32))
        node = ir.Node("", "Mul", [value, factor], outputs=[constants.value(f"{value.name}_beta")])
        self.insert(node)
        return node.outputs[0]


def product_of(node: ir.Node) -> Product | str:
    """A node as a product, or why it is none that can be rewritten."""
    x, weight = node.inputs[:2]
    array = constant(weight)
    if refused := weight_refusal(weight):
        return refused
    if x is None or weight is None or array is None:
        return NO_CONSTANT
    if array.ndim != 2:
        return "its weights are no matrix"
    if x.const_value is not None:
        return "its input is constant"
    if int_attribute(node, "transA", 0):
        return "its input is transposed"
    flipped = node.op_type == "Gemm" and bool(int_attribute(node, "transB", 0))
    alpha = attribute(node, "alpha", 1.0)
    product = Product(node, site_name(node), x, weight, flipped, alpha if isinstance(alpha, float) else 1.0)
    if product.alpha != 1.0 and any(count_bad(product.rows)):
        return "its weights are not finite"
    return product


def weight_refusal(value: ir.Value | None) -> str | None:
    """Why a weight cannot be replaced, or None; who else reads it is looked at elsewhere."""
    array = constant(value)
    if value is None or array is None:
        return NO_CONSTANT
    if array.dtype != np.float32:
        return f"{array.dtype} weights: only float32 ones are replaced"
    if not array.size:
        return "it has no weights"
    if value.is_graph_output():
        return "its weights are an output of the model: they must stay, and the file would grow"
    bad = any(count_bad(array))
    release(value)
    return "its weights are not finite" if bad else None


def left_out(
    name: str, size: int, context: Context, sites: Sequence[str], leave: Collection[str], fewest: int
) -> str | None:
    """Why the user or the recipe leaves a site alone, or None.

    Args:
        name: of the site.
        size: how many weights it has.
        context: knows what the user leaves.
        sites: regular expressions of the sites that the recipe is for; empty for all.
        leave: names of those that it leaves.
        fewest: weights that are worth it.
    """
    if context.left_by_user(name):
        return "--leave names it"
    if name in leave or (sites and not any(re.search(pattern, name) for pattern in sites)):
        return "the recipe leaves it as it is"
    return f"it has fewer than {fewest} weights" if size < fewest else None


def choose(
    model: ir.Model, context: Context, refusal: Callable[[Product], str | None]
) -> tuple[list[Product], list[Skipped]]:
    """The products to rewrite, and those left alone, with the reason.

    Where one reader of a weight is left alone, so are the others: else the file would hold it twice.

    Args:
        model: is not changed.
        context: knows what the user leaves.
        refusal: why a product stays as it is, or None.
    """
    found: list[Product] = []
    skipped: list[Skipped] = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type not in PRODUCTS or node.domain not in ("", "ai.onnx"):
            continue
        product = product_of(node) if node.graph is model.graph else "inside control flow"
        reason = product if isinstance(product, str) else refusal(product)
        if context.left_by_user(site_name(node)):
            reason = "--leave names it"
        if reason is not None:
            skipped.append(Skipped(site_name(node), reason))
        elif isinstance(product, Product):
            found.append(product)
    nodes = {product.node for product in found}
    kept = []
    for product in found:
        if all(use.node in nodes and use.idx == 1 for use in product.weight.uses()):
            kept.append(product)
        else:
            skipped.append(Skipped(product.name, SHARED))
    return kept, skipped


def bias_means(model: ir.Model, products: Sequence[Product], context: Context) -> dict[ir.Node, Array]:
    """Mean inputs [in] of those products whose bias can take up the error of their weights; none without samples."""
    sites = []
    for product in products:
        site = product.site
        if site is not None and len(product.weight.uses()) == 1 and bias_takes_mean(site):
            sites.append(site)
    if context.stream is None or not sites:
        return {}
    return site_means(model, sites, context)


def take_up(product: Product, error: Callable[[], Array], means: dict[ir.Node, Array]) -> None:
    """Let the bias take up the mean of what an error of the weights does, where that is known.

    Args:
        product: not rewritten yet.
        error: gives W_q − W [in, out]; only asked where the bias can take it up.
        means: as `bias_means` gives them.
    """
    site = product.site
    if site is not None and product.node in means:
        found = error()
        correct_bias(site, found.T if product.flipped else found, means[product.node])


def drop_unread(model: ir.Model, values: Sequence[ir.Value | None]) -> None:
    """Take initializers out that nobody reads any more."""
    for value in values:
        if value is not None and not value.uses() and value.is_initializer() and not value.is_graph_output():
            model.graph.initializers.pop(value.name or "", None)
