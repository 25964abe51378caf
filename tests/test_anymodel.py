"""Every fortieth of onnx's own test models through everything; `make test-all` takes all of them."""

import anymodel
import numpy as np
import onnx_models
import pytest
from onnx import TensorProto, helper

STEP = 40


@pytest.fixture(scope="module")
def chosen() -> list[onnx_models.Case]:
    """Of each of the two forms a part."""
    return list(onnx_models.cases())[7::STEP]


def test_no_model_crashes_or_comes_out_wrong(chosen: list[onnx_models.Case]) -> None:
    records = list(anymodel.run(chosen))
    assert {record.name: record.faults for record in records if record.faults} == {}
    counts = anymodel.counted(records)
    compared = counts["canonical form"].get("equal", 0)
    assert compared > 0.6 * len(records)
    assert sum(n for what, n in counts["half precision"].items() if what.startswith("changed")) > 0


def case(node: str, expected: float) -> onnx_models.Case:
    """One node on three numbers, with what it ought to give."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(node, ["x"], ["y"])], "one", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    sets = ({"x": np.ones(3, np.float32)}, {"y": np.full(3, expected, np.float32)})
    return onnx_models.Case("one", model, (sets,), 1e-5, 1e-5)


def test_a_crash_and_a_wrong_output_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (fine,) = anymodel.run([case("Neg", -1)])
    assert not fine.faults
    assert fine.stages["canonical form"] == "equal"
    with monkeypatch.context() as patch:
        patch.setattr(anymodel, "_agrees", lambda *_: False)
        (wrong,) = anymodel.run([case("Neg", -1)])
    assert wrong.faults == {"canonical form": "wrong: other outputs"}
    monkeypatch.setattr(anymodel, "load", lambda _: 1 / 0)
    (crash,) = anymodel.run([case("Neg", -1)])
    assert crash.faults["load"].startswith("crash: ZeroDivisionError")


def test_weights_of_a_case_become_constants() -> None:
    found = {each.name: each for each in onnx_models.cases(("pytorch-operator",))}
    assert any(name.endswith(onnx_models.CONSTANT) for name in found)
    for each in found.values():
        assert len(each.sets) >= 1
