import models
import numpy as np
import onnx_ir as ir
import pytest
from normalizing import kinds, normalized

from edgepress.compressor import shapes
from edgepress.compressor.equality import same_outputs
from edgepress.compressor.errors import DeviceError
from edgepress.compressor.export.onnx import save, verify
from edgepress.compressor.model import dims, to_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.passes.shrink import shrinkable
from edgepress.compressor.shapes import infer_shapes
from edgepress.runtime.engines.ort import OrtEngine


@pytest.mark.parametrize("name", models.ALL)
def test_every_model_keeps_its_outputs_and_gets_names_and_shapes(name: str) -> None:
    result = normalized(models.ALL[name](), 2e-3 if name == "half" else 1e-5)
    names = [node.name for node in ir.traversal.RecursiveGraphIterator(result.model.graph)]
    assert all(names)
    assert len(set(names)) == len(names)
    assert shapes.missing_shapes(result.model) == ()
    again = normalize(result.model)
    assert to_bytes(again.model) == to_bytes(result.model)


def test_constant_nodes_become_weights_and_expressions_of_them_are_computed() -> None:
    model = models.text(
        "(float[N, 4] x) => (float[N, 2] y)",
        """
        a = Constant <value = float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}> ()
        axes = Constant <value_ints = [1, 0]> ()
        two = Constant <value_float = 2.0> ()
        w = Mul(a, two) z = Identity(w) g = MatMul(x, z) y = Dropout(g)
        """,
    )
    result = normalized(model)
    assert kinds(result.model) == {"MatMul": 1}
    assert [tensor.name for tensor in result.model.graph.initializers.values()] == ["z"]
    assert result.model.graph[0].outputs[0].name == "y"


def test_an_output_that_says_less_than_what_is_learnt_does_not_keep_constants_from_being_computed() -> None:
    model = models.text(
        "(float[2, 3] x) => (float[N, 3] y)",
        "pads = Concat <axis = 0> (zeros, zeros) p = Pad(x, pads) y = Relu(p)",
        {"zeros": models.array(0, 0, dtype=np.int64)},
    )
    result = normalized(model)
    assert kinds(result.model)["Concat"] == 0
    assert dims(result.model.graph.outputs[0]) == ("N", 3)


def test_quantized_and_compact_weights_are_not_unpacked() -> None:
    rng = np.random.default_rng(0)
    weights = {
        "q": rng.integers(-9, 9, (80, 80)).astype(np.int8),
        "p": rng.integers(-9, 9, (80, 80)).astype(np.int8),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8),
    }
    model = models.text(
        "(float[N, 80] x) => (float[N, 80] y)",
        "w = DequantizeLinear(q, scale, zero) h = MatMul(x, w) "
        "c = Cast <to = 1> (p) v = Mul(c, scale) y = MatMul(h, v)",
        weights,
    )
    result = normalized(model)
    assert kinds(result.model) == {"DequantizeLinear": 1, "MatMul": 2, "Cast": 1, "Mul": 1}


def test_large_fills_are_not_written_into_the_file() -> None:
    model = models.text(
        "(float[300, 300] x) => (float[300, 300] y)",
        "f = Expand(one, shape) y = Add(x, f)",
        {"one": np.array(1, np.float32), "shape": models.array(300, 300, dtype=np.int64)},
    )
    assert len(to_bytes(normalized(model).model)) < 2000


def test_a_batch_size_read_from_the_input_leaves_no_nodes_behind() -> None:
    model = models.text(
        "(float[N, 3, 2] x) => (float[N, 6] y)",
        "s = Shape(x) n = Slice(s, zero, one) t = Concat <axis = 0> (n, six) f = Reshape(x, t) y = Relu(f)",
        {name: models.array(value, dtype=np.int64) for name, value in (("zero", 0), ("one", 1), ("six", 6))},
    )
    result = normalized(model)
    assert kinds(result.model) == {"Reshape": 1, "Relu": 1}
    assert dims(result.model.graph.inputs[0]) == ("N", 3, 2)


@pytest.mark.parametrize(
    "body",
    [
        "y = Identity(x)",
        "h = Relu(x) y = Identity(h) z = Identity(h)",
        "y = Relu(x) z = Identity(y)",
        "h = Identity(x) y = Relu(h) g = Identity(y) z = Abs(g)",
    ],
)
def test_outputs_survive_when_identities_go(body: str) -> None:
    second = ", float[N, 2] z" if " z =" in body else ""
    result = normalized(models.text(f"(float[N, 2] x) => (float[N, 2] y{second})", body))
    assert kinds(result.model)["Identity"] <= 1


def test_weights_among_the_inputs_become_constants() -> None:
    model = models.text(
        "(float[N, 4] x) => (float[N, 2] y)", "y = MatMul(x, w)", models.constants(0, w=(4, 2)), 8, 3
    )
    model.graph.inputs.append(model.graph.initializers["w"])
    result = normalized(model)
    assert [value.name for value in result.model.graph.inputs] == ["x"]
    assert result.model.ir_version == 4


def test_functions_are_inlined_and_control_flow_is_named() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 18, "own" : 1]> g (float[N, 2] x) => (float[N, 2] y)
        { h = own.twice(x) y = Relu(h) }
        <domain: "own", opset_import: ["" : 18]> twice (a) => (b) { b = Add(a, a) }"""
    )
    result = normalized(model)
    assert kinds(result.model) == {"Add": 1, "Relu": 1}
    (skipped,) = normalized(models.control_flow()).left_alone
    assert (skipped.site, "If" in skipped.reason) == ("z", True)


def test_an_unknown_domain_is_left_alone_and_named() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18, "acme" : 1]> g (float[N, 2] x) => (float[N, 2] y)'
        "{ h = acme.Magic(x) y = Relu(h) }"
    )
    result = normalize(model)
    assert kinds(result.model) == {"Magic": 1, "Relu": 1}
    assert "'acme'" in result.left_alone[0].reason
    assert shapes.missing_shapes(result.model) == ("h",)


def test_a_step_that_changes_the_outputs_is_rolled_back() -> None:
    model = models.batchnorm()
    result = normalize(model, check=lambda candidate: kinds(candidate)["BatchNormalization"] > 0)
    (step,) = [step for step in result.steps if step.name == "affine"]
    assert (step.changed, step.kept) == (True, False)
    assert "rolled back" in step.why
    assert kinds(result.model) == kinds(model)


def test_same_outputs_sees_small_and_shape_differences() -> None:
    one = {"y": np.array([1.0, np.inf, np.nan, 0], np.float32)}
    assert same_outputs(one, {"y": one["y"].copy()}, 0.0)
    assert same_outputs(one, {"y": one["y"] + np.float32(1e-6)}, 1e-5)
    assert not same_outputs(one, {"y": one["y"] + np.float32(1e-3)}, 1e-5)
    assert not same_outputs(one, {"y": np.array([1.0, 5, np.nan, 0], np.float32)}, 1e-5)
    assert not same_outputs(one, {"y": one["y"][:3]}, 1e-5)
    assert not same_outputs(one, {"z": one["y"]}, 1e-5)
    assert not same_outputs({"k": np.array([1, 2])}, {"k": np.array([1, 3])}, 1.0)


def test_shapes_that_inference_misses_are_seen_in_a_run() -> None:
    model = models.cnn()
    infer_shapes(model)
    values = ir.convenience.create_value_mapping(model.graph)
    values["r1"].shape = values["c2"].shape = None
    values["f"].shape, values["f"].type = None, None
    seen = shapes.seen_shapes(model, OrtEngine(), [models.feeds(model)])
    assert set(seen) == {"r1", "c2", "f"}
    shapes.write_shapes(model, seen)
    assert dims(values["r1"]) == (None, 4, 8, 8)
    assert dims(values["f"]) == (None, 8)
    assert values["f"].dtype is ir.DataType.FLOAT
    assert shapes.seen_shapes(model, OrtEngine(), []) == {}


def test_a_dimension_that_never_varied_is_not_called_fixed() -> None:
    model = models.text("(float[N, 3, H] x) => (float[N, 3, H] y)", "r = Relu(x) y = Abs(r)")
    one = {"x": np.zeros((4, 3, 5), np.float32)}
    assert shapes.seen_shapes(model, OrtEngine(), [one])["r"][0] == (None, None, None)
    two = {"x": np.zeros((4, 3, 7), np.float32)}
    assert shapes.seen_shapes(model, OrtEngine(), [one, two])["r"][0] == (None, 3, None)


def test_a_sequence_has_no_shape_to_be_seen() -> None:
    model = models.text(
        "(float[N, 4] x) => (float[N, 2] y)",
        "s = SplitToSequence <axis = 1> (x, two) a = SequenceAt(s, zero) y = Relu(a)",
        {"two": np.array(2, np.int64), "zero": np.array(0, np.int64)},
    )
    seen = shapes.seen_shapes(model, OrtEngine(), [models.feeds(model)])
    assert seen == {"a": ((None, 2), ir.DataType.FLOAT)}


def beyond_inference() -> ir.Model:
    """Dense layers over three axes behind an operator that onnx does not know, but the runtime does."""
    return ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> g (float[N, 3, 6] x) => (float[N, 3, 4] y)'
        "{ q = com.microsoft.QuickGelu (x) h = MatMul(q, w1) a = Relu(h) y = MatMul(a, w2) }",
        initializers=[
            ir.tensor(weight, name=name) for name, weight in models.constants(1, w1=(6, 8), w2=(8, 4)).items()
        ],
    )


def test_what_lies_behind_an_unknown_operator_can_shrink_once_its_rank_is_seen() -> None:
    model = beyond_inference()
    feeds = models.feeds(model)
    blind = normalize(model)
    seen = normalize(model, observe=lambda m: shapes.seen_shapes(m, OrtEngine(), [feeds]))
    assert shapes.missing_shapes(blind.model)
    assert not shapes.missing_shapes(seen.model)
    assert [group.name for group in shrinkable(blind.model)[1]] == []
    assert [group.name for group in shrinkable(seen.model)[1]] == ["h"]
    (step,) = [step for step in seen.steps if step.name == "observe"]
    assert (step.changed, step.kept) == (True, True)
    assert dims(seen.model.graph.inputs[0]) == ("N", 3, 6)
    assert dims(ir.convenience.create_value_mapping(seen.model.graph)["q"]) == (None, 3, 6)
    assert np.array_equal(models.run(seen.model, feeds)["y"], models.run(model, feeds)["y"])


def test_shapes_that_cannot_be_seen_do_not_end_the_run() -> None:
    def fail(_: ir.Model) -> dict[str, shapes.Seen]:
        raise DeviceError("no such kernel")

    result = normalize(beyond_inference(), observe=fail)
    (step,) = [step for step in result.steps if step.name == "observe"]
    assert "no such kernel" in step.why
    assert result.steps[-1].name == "shapes"


def test_a_sequence_in_the_middle_is_not_taken_for_a_tensor() -> None:
    model = models.text(
        "(float[2, 3] x, float[1, 3] z) => (float[M, 3] y, int64 n)",
        "empty = SequenceEmpty() one = SequenceInsert(empty, x) two = SequenceInsert(one, z) "
        "n = SequenceLength(two) y = SequenceAt(two, at)",
        {"at": np.array(1, np.int64)},
    )
    normalized(model)
    infer_shapes(model)
    assert models.run(model, models.feeds(model))["n"] == 2
    values = {value.name: value for node in model.graph for value in node.outputs}
    assert all(isinstance(values[name].type, ir.SequenceType) for name in ("empty", "one", "two"))


def test_an_output_that_is_a_constant_goes_out() -> None:
    model = models.text(
        "(float[N, 3] x) => (float[N, 3] y, float[2] anchors)",
        "y = Relu(x) c = Constant <value = float[2] {1.0, 2.0}> () anchors = Mul(c, c)",
    )
    result = normalized(model)
    assert [node.op_type for node in result.model.graph] == ["Relu"]
    saved = save(result.model)
    verify(model, saved)
    assert models.run(saved, models.feeds(model))["anchors"].tolist() == [1, 4]


def test_a_model_of_which_no_node_is_left_goes_out() -> None:
    model = models.text("() => (float[2] y)", "c = Constant <value = float[2] {1.0, 2.0}> () y = Neg(c)")
    result = normalized(model)
    assert not list(result.model.graph)
    saved = save(result.model)
    verify(model, saved)
    assert models.run(saved, {})["y"].tolist() == [-1, -2]


def test_what_nothing_reads_in_a_branch_goes_too() -> None:
    model = models.text(
        "(float[N, 3] x, bool yes) => (float[N, 3] y)",
        "y = If (yes) <then_branch = a () => (float[n, 3] o) { o = Relu(x) }, "
        "else_branch = b () => (float[n, 3] p) { p = Neg(x) }>",
    )
    for body in model.graph.subgraphs():
        left = ir.Value(name=f"left_{body.name}", const_value=ir.tensor(np.ones(512, np.float32)))
        body.register_initializer(left)
    result = normalized(model)
    assert [len(body.initializers) for body in result.model.graph.subgraphs()] == [0, 0]
