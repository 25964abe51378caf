"""Graphs with a part that no row has, or that never runs: neither is in the way of the rest."""

import models
import onnx_ir as ir
import pytest
from clicase import Case
from models import constants

from edgepress.compressor.hoist import hoist_constants
from edgepress.compressor.model import to_proto

W = constants(7, w=(6, 4))


def replace_model(case: Case, model: ir.Model) -> None:
    case.model.write_bytes(to_proto(model).SerializeToString())


@pytest.mark.parametrize("outputs", ["float m, float[N, 4] y", "float[N, 4] y, float m"])
@pytest.mark.parametrize("chosen", [(), ("--output", "y")])
def test_a_loss_beside_what_is_given_row_by_row(case: Case, outputs: str, chosen: tuple[str, ...]) -> None:
    body = "y = MatMul(x, w) m = ReduceMean <keepdims = 0> (y)"
    replace_model(case, models.text(f"(float[N, 6] x) => ({outputs})", body, W))
    done = case.compress(*chosen)
    assert done.code in (0, 1), done.err


def test_a_branch_that_never_runs_may_be_of_any_size(case: Case) -> None:
    body = """
        h = MatMul(x, w) big = Constant <value_ints = [1000000, 1000000]> ()
        most = ReduceMax <keepdims = 0> (x) far = Constant <value_float = 1e9> () yes = Greater(most, far)
        y = If (yes) <
            then_branch = large () => (float[n, 4] o) {
                e = ConstantOfShape(big) s = ReduceSum <keepdims = 0> (e) o = Add(h, s) },
            else_branch = usual () => (float[n, 4] p) { p = Relu(h) }>
    """
    replace_model(case, models.text("(float[N, 6] x) => (float[N, 4] y)", body, W))
    assert case.compress().code in (0, 1)


def test_a_loop_of_somebody_else_is_none_of_ours() -> None:
    body = """
        l = Loop(x) no = Constant <value = bool {0}> ()
        y = If (no) <then_branch = a () => (float[N, 6] o) { o = Relu(l) },
                     else_branch = b () => (float[N, 6] p) { p = Neg(l) }>
    """
    model = models.text("(float[N, 6] x) => (float[N, 6] y)", body)
    next(node for node in model.graph if node.op_type == "Loop").domain = "my.ops"
    assert hoist_constants(model) == 0
    assert next(iter(model.graph)).op_type == "Loop"
