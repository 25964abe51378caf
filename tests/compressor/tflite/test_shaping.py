import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, behind_a_pool, one_op

DTYPES = st.sampled_from(["float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool"])


def example(shape, dtype="float32", seed=0):
    numbers = np.random.default_rng(seed).standard_normal(shape) * 40
    return numbers > 0 if dtype == "bool" else np.asarray(numbers).astype(dtype)


def shapes(low=1, high=5, longest=4):
    return st.lists(st.integers(1, longest), min_size=low, max_size=high).map(tuple)


def check(model, feeds, *, integers=True):
    """Exact as reals; and as integers, which a kernel that moves numbers leaves alone."""
    converted = assert_same(model, feeds, rtol=0, atol=0)
    if any(array.ndim in {3, 5} for array in feeds.values()):
        assert_same(behind_a_pool(model), feeds, rtol=0, atol=0)
    if integers and all(array.dtype == np.float32 for array in feeds.values()):
        assert_same_integers(model, feeds)
    return converted


@settings(deadline=None, max_examples=30)
@given(shapes(), DTYPES, st.data())
def test_reshape(shape, dtype, data):
    size = int(np.prod(shape))
    parts = data.draw(st.lists(st.sampled_from([p for p in range(1, size + 1) if size % p == 0]), max_size=2))
    target = [0, -1] if data.draw(st.booleans()) else [-1, *(p for p in parts[:1])]
    feeds = {"x": example(shape, dtype)}
    check(one_op("Reshape", feeds, constants={"s": np.array(target, np.int64)}), feeds)


def test_a_reshape_that_keeps_batch_and_channels_costs_no_transpose():
    feeds = {"x": example((2, 3, 4, 5))}
    model = chain(
        [("Reshape", {"s": np.array([2, 3, 20])}, {}), ("Transpose", {}, {"perm": [0, 2, 1]})], feeds
    )
    assert "TRANSPOSE" not in check(model, feeds).operators


@settings(deadline=None, max_examples=25)
@given(shapes(low=2), st.data())
def test_squeeze_unsqueeze_and_flatten(shape, data):
    feeds = {"x": example(shape)}
    axis = data.draw(st.integers(-len(shape), len(shape)))
    check(one_op("Flatten", feeds, axis=axis), feeds)
    ones = [at - len(shape) * data.draw(st.integers(0, 1)) for at, size in enumerate(shape) if size == 1]
    check(one_op("Squeeze", feeds, constants={"a": np.array(ones, np.int64)} if ones else {}), feeds)
    check(one_op("Unsqueeze", feeds, constants={"a": np.array([0, -1], np.int64)}), feeds)


@settings(deadline=None, max_examples=40)
@given(shapes(high=6, longest=3), DTYPES, st.data())
def test_transpose(shape, dtype, data):
    feeds = {"x": example(shape, dtype)}
    order = data.draw(st.permutations(range(len(shape))))
    check(one_op("Transpose", feeds, perm=order), feeds)


@pytest.mark.parametrize("order", [[0, 2, 3, 1], [0, 3, 1, 2]])
def test_transposes_that_undo_each_other_vanish(order):
    feeds = {"x": example((2, 3, 4, 5))}
    there, back = ("Transpose", {}, {"perm": order}), ("Transpose", {}, {"perm": list(np.argsort(order))})
    assert not check(chain([there, back], feeds), feeds, integers=False).operators


@settings(deadline=None, max_examples=25)
@given(shapes(high=4), DTYPES, st.data())
def test_expand_and_tile(shape, dtype, data):
    feeds = {"x": example(shape, dtype)}
    times = [data.draw(st.integers(1, 3)) for _ in shape]
    check(one_op("Tile", feeds, constants={"r": np.array(times, np.int64)}), feeds)
    wider = [size if size > 1 else time for size, time in zip(shape, times, strict=True)]
    front = data.draw(st.sampled_from([[], [2]]))
    check(one_op("Expand", feeds, constants={"s": np.array([*front, *wider], np.int64)}), feeds)


@settings(deadline=None, max_examples=25)
@given(shapes(), DTYPES, st.data())
def test_concat(shape, dtype, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    count = data.draw(st.integers(1, 3))
    feeds = {}
    for at in range(count):
        own = list(shape)
        own[axis] = data.draw(st.integers(1, 3))
        feeds[f"x{at}"] = example(own, dtype, seed=at)
    check(one_op("Concat", feeds, axis=axis), feeds)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from(["DCR", "CRD"]), st.sampled_from([1, 2, 3]))
def test_depth_to_space_and_back(channels, size, mode, block):
    feeds = {"x": example((2, channels * block**2, size, size + 1))}
    check(one_op("DepthToSpace", feeds, blocksize=block, mode=mode), feeds)
    feeds = {"x": example((2, channels, size * block, 2 * block))}
    check(one_op("SpaceToDepth", feeds, blocksize=block), feeds)


@pytest.mark.parametrize("op", ["Shape", "Size"])
def test_shapes_are_constants(op):
    feeds = {"x": example((2, 3, 4, 5))}
    assert not assert_same(one_op(op, feeds), feeds, rtol=0, atol=0).operators


@pytest.mark.parametrize("op", ["Transpose", "Tile", "Expand", "DepthToSpace"])
def test_a_batch_of_any_size(op):
    feeds = {"x": example((3, 4, 2, 6))}
    held = {"Tile": {"r": np.array([1, 2, 1, 3])}, "Expand": {"s": np.array([5, 1, 1, 1, 1])}}
    more = {"DepthToSpace": {"blocksize": 2}, "Transpose": {"perm": [0, 3, 1, 2]}}
    model = one_op(op, feeds, constants=held.get(op, {}), dynamic=True, **more.get(op, {}))
    assert not check(model, feeds, integers=False).notes


def chain(steps, feeds):
    """A model of nodes in a row: (type, constants, attributes) each."""
    nodes, held = [], []
    value = next(iter(feeds))
    for at, (op, constants, attributes) in enumerate(steps):
        names = [f"{at}_{name}" for name in constants]
        held += [onnx.numpy_helper.from_array(np.asarray(a), f"{at}_{n}") for n, a in constants.items()]
        nodes.append(onnx.helper.make_node(op, [value, *names], [f"y{at}"], **attributes))
        value = f"y{at}"
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in feeds.items()
    ]
    graph = onnx.helper.make_graph(nodes, "chain", ports, [onnx.ValueInfoProto(name=value)], held)
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True))
