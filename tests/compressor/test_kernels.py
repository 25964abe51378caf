"""Which measured kernel stands for a node, and costs that rest on them."""

from dataclasses import dataclass, field, replace

import models
import models_core
import models_flow
import numpy as np
import onnx_ir as ir
import oracles
import pytest

from edgepress.compressor.allocate import Knob, Weighing, layer_cost
from edgepress.compressor.channels import analyse
from edgepress.compressor.cost import layer_ns, node_costs
from edgepress.compressor.kernels import table_ns
from edgepress.compressor.layers import layer_of
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.predict import predicted_ns
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.sites import find_sites
from edgepress.runtime.engines.ort import OrtEngine

Ask = tuple[str, str, float, float, float]


@dataclass
class Table:
    """Keeps what it was asked; every kernel takes its own number of nanoseconds."""

    lacks: tuple[str, ...] = ()
    asked: list[Ask] = field(default_factory=list)

    def ns(
        self, kind: str, precision: str, inputs: float = 1, outputs: float = 1, positions: float = 1
    ) -> float | None:
        self.asked.append((kind, precision, inputs, outputs, positions))
        return None if kind in self.lacks or f"{kind} {precision}" in self.lacks else 1000.0 * len(kind)


def shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return dict(shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1)))


def asked(model: ir.Model) -> list[Ask]:
    table = Table()
    node_costs(model, shapes(model), replace(oracles.Board(), table=table, channel_multiple=1))
    return table.asked


def test_kernels_of_a_convolutional_net() -> None:
    assert asked(models.cnn()) == [
        ("conv", "fp32", 18, 4, 64), ("add", "fp32", 1, 1, 256), ("pool", "fp32", 4, 1, 64),
        ("conv", "fp32", 36, 8, 16), ("add", "fp32", 1, 1, 128), ("pool", "fp32", 16, 1, 8),
        ("node", "fp32", 1, 1, 1), ("product", "fp32", 8, 3, 1),
    ]  # fmt: skip


def test_widths_are_rounded_up_to_what_fills_the_lanes() -> None:
    model, table = models.cnn(), Table()
    node_costs(model, shapes(model), replace(oracles.Board(), table=table, channel_multiple=6))
    widths = [outputs for kind, _, _, outputs, _ in table.asked if kind in ("conv", "product")]
    assert widths == [6, 12, 6]


def test_pointwise_depthwise_and_one_dimensional_ones() -> None:
    kinds = [ask for ask in asked(models.depthwise()) if ask[0] != "add"]
    assert kinds == [
        ("pointwise", "fp32", 4, 8, 36), ("depthwise", "fp32", 9, 8, 36), ("pointwise", "fp32", 8, 4, 36),
    ]  # fmt: skip
    assert asked(models.conv1d())[0] == ("conv", "fp32", 6, 6, 10)
    assert asked(models.conv_transpose())[2:] == [("conv", "fp32", 64, 1, 16), ("sigmoid", "fp32", 1, 1, 64)]
    assert asked(models.matmul())[0] == ("product", "fp32", 6, 8, 3)


def test_a_recurrent_layer_is_a_product_for_all_steps_and_one_a_step() -> None:
    model = models.gru()
    table = Table()
    costs = node_costs(model, shapes(model), replace(oracles.Board(), table=table))
    assert table.asked[:2] == [("product", "fp32", 3, 12, 5), ("product", "fp32", 4, 12, 1)]
    assert costs[0].latency_ns == 7000 * (1 + 5)
    both = models_flow.recurrent("LSTM", both=True)
    costs = node_costs(both, shapes(both), replace(oracles.Board(), table=Table()))
    assert costs[0].latency_ns == 7000 * (1 + 2 * 5)


def test_in_eight_bits_those_kernels_are_asked_for_and_pairs_cost_half_each() -> None:
    model = models.cnn()
    Quantize().apply(model, oracles.context(model))
    kinds = {(kind, precision) for kind, precision, *_ in asked(model)}
    assert {("conv", "int8"), ("product", "int8"), ("pool", "int8"), ("quantize", "fp32")} <= kinds
    assert not {("conv", "fp32"), ("product", "fp32"), ("quantize", "int8")} & kinds
    node = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    assert table_ns(node, shapes(model), Table(), integer=False) == 1000 * len("quantize") / 2


def test_what_the_table_lacks_costs_what_the_rates_say() -> None:
    model = models.cnn()
    known, board = shapes(model), oracles.Board()
    bare = node_costs(model, known, board)
    partly = node_costs(model, known, replace(board, table=Table(lacks=("conv",))))
    for one, two in zip(bare, partly, strict=True):
        assert (one.latency_ns == two.latency_ns) == (one.op == "Conv")
    # an 8-bit kernel that was not measured is not quicker than the float one
    node = next(node for node in model.graph if node.op_type == "MaxPool")
    assert table_ns(node, known, Table(lacks=("pool int8",)), integer=True) == 4000
    assert layer_ns(replace(board, table=Table(lacks=("conv",))), ("conv", 4, 8, 2), 80, integer=False) == (
        board.node_overhead_ns + 64 / board.macs_per_ns_fp32 + 80 / board.bytes_per_ns
    )


@pytest.mark.parametrize("name", sorted(models.ALL))
def test_any_model_has_a_cost(name: str) -> None:
    """Also where shapes are unknown, bodies are inside, or operators have no kernel."""
    model = models.ALL[name]()
    board = replace(oracles.Board(), table=Table())
    for known in (shapes(model), {}):
        costs = node_costs(model, known, board)
        assert all(np.isfinite(c.latency_ns) and c.latency_ns > 0 for c in costs)
        assert predicted_ns(model, known, board) > 0


@pytest.mark.parametrize("name", sorted(models_core.ALL))
def test_the_search_sees_the_kernels_that_nodes_have(name: str) -> None:
    """Per site the same question as per node, widths rounded up to the lanes aside."""
    model = models_core.ALL[name]()
    known, table = shapes(model), Table()
    by_node = {}
    for node in model.graph:
        table.asked.clear()
        table_ns(node, known, table, integer=False)
        by_node[node] = table.asked[:1]
    channels = analyse(model)
    for site in find_sites(model):
        layer = layer_of(site, channels, (), (), known)
        table.asked.clear()
        layer_cost(layer, (), (), replace(oracles.Board(), table=table), Weighing(1.0, 0.0, "float", 1))
        if name != "column_bias":  # a batch of six that cannot be less
            assert table.asked == by_node[site.node], site.name


def test_a_split_layer_is_several_kernels() -> None:
    model = models.cnn()
    known, channels = shapes(model), analyse(model)
    site = find_sites(model)[1]
    forms = {
        "channels": [("conv", 36, 2, 16), ("pointwise", 2, 8, 16)],
        "space": [("conv", 12, 2, 16), ("conv", 6, 8, 16)],
        "tucker": [("pointwise", 4, 1, 16), ("conv", 9, 2, 16), ("pointwise", 2, 8, 16)],
    }
    for form, parts in forms.items():
        knob = Knob("rank", site.name, 4, (2,), (0.1,), form)  # type: ignore[arg-type]
        layer, table = layer_of(site, channels, (), (knob,), known), Table()
        board = replace(oracles.Board(), table=table)
        ns, _ = layer_cost(layer, (2,), (knob,), board, Weighing(1.0, 0.0, "int8", 1))
        assert table.asked == [(kind, "int8", *sizes) for kind, *sizes in parts]
        assert ns == sum(1000 * len(kind) for kind, *_ in parts)


def test_a_whole_model_has_the_run_and_no_activation_that_a_convolution_does() -> None:
    model = models.cnn()
    board = replace(oracles.Board(), table=Table())
    kinds = ("run", "conv", "pool", "conv", "pool", "node", "product")
    assert predicted_ns(model, shapes(model), board) == sum(1000 * len(kind) for kind in kinds)
    # an activation behind an Add, or whose input others read as well, is a node of its own
    residual = models.residual()
    alone = ("run", "conv", "conv", "conv", "add", "add", "pool", "node", "product")
    assert predicted_ns(residual, shapes(residual), board) == sum(1000 * len(kind) for kind in alone)
