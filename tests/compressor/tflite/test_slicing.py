import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import STEP, assert_same, assert_same_integers, behind_a_pool, graph, one_op

DTYPES = st.sampled_from(["float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool"])
FAR = [-(2**63), -(2**31), 2**31 - 1, 2**63 - 1]


def example(shape, dtype="float32", seed=0):
    numbers = np.random.default_rng(seed).standard_normal(shape) * 40
    return numbers > 0 if dtype == "bool" else np.asarray(numbers).astype(dtype)


def check(model, feeds, steps=STEP):
    """Exact as reals; and as integers, which a kernel that moves numbers leaves alone."""
    converted = assert_same(model, feeds, rtol=0, atol=0)
    if any(array.ndim in {3, 5} for array in feeds.values()):
        assert_same(behind_a_pool(model), feeds, rtol=0, atol=0)
    if all(array.dtype == np.float32 for array in feeds.values()):
        assert_same_integers(model, feeds, steps=steps)
    return converted


@st.composite
def slices(draw: st.DrawFn) -> tuple:
    """A shape and slices of it that leave something."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    starts, ends, steps = [], [], []
    for axis in axes:
        size = shape[axis]
        bound = st.one_of(st.integers(-size - 1, size + 1), st.sampled_from(FAR))
        part = draw(
            st.tuples(bound, bound, st.sampled_from([1, 1, 2, -1, -2])).filter(
                lambda each, size=size: len(range(*slice(*each).indices(size))) > 0
            )
        )
        for held, number in zip((starts, ends, steps), part, strict=True):
            held.append(number)
    negative = draw(st.booleans())
    return shape, starts, ends, [axis - len(shape) if negative else axis for axis in axes], steps


@settings(deadline=None, max_examples=60)
@given(slices(), DTYPES)
def test_slice(form, dtype):
    shape, *operands = form
    feeds = {"x": example(shape, dtype)}
    held = dict(zip("seap", (np.array(each, np.int64) for each in operands), strict=True))
    check(one_op("Slice", feeds, constants=held), feeds)


@settings(deadline=None, max_examples=30)
@given(slices().filter(lambda form: len(form[0]) < 6), st.integers(2, 4))
def test_a_slice_whose_operands_are_fed(form, count):
    shape, *operands = form
    if count == 2:  # neither axes nor steps: all from the first one on
        operands[2:] = list(range(len(operands[0]))), [1] * len(operands[0])
    taken = [slice(None)] * len(shape)
    for start, end, axis, step in zip(*operands, strict=True):
        taken[axis] = slice(start, end, step if count > 3 else 1)
    result = example(shape)[tuple(taken)]
    if result.size:
        late = {name: np.array(each, np.int64) for name, each in zip("seap"[:count], operands, strict=False)}
        declared(one_op("Slice", {"x": example(shape), **late}), result.shape, {"x": example(shape), **late})


def declared(model, shape, feeds):
    """Check a model whose output's shape only its declaration tells."""
    proto = ir.to_proto(model)
    kind = proto.graph.output[0].type.tensor_type.elem_type
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y0", kind, shape))
    assert_same(ir.from_proto(proto), feeds, rtol=0, atol=0)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), DTYPES, st.data())
def test_split(shape, dtype, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    shape[axis] = sum(sizes)
    feeds = {"x": example(shape, dtype)}
    held = {"s": np.array(sizes, np.int64)}
    wide = 8  # steps are those of the first output's grid
    check(one_op("Split", feeds, constants=held, outputs=len(sizes), axis=axis), feeds, wide)
    if sum(sizes) > 2:
        check(one_op("Split", feeds, outputs=2, axis=axis, num_outputs=2), feeds, wide)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(2, 5), min_size=1, max_size=5),
    st.sampled_from(["float32", "int8", "uint8", "int32", "int64", "bool"]),
    st.sampled_from(["constant", "reflect", "edge", "wrap"]),
    st.data(),
)
def test_pad(shape, dtype, mode, data):
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    low = -1 if mode in {"constant", "edge"} else 0
    widths = st.lists(st.integers(low, 1), min_size=len(axes), max_size=len(axes))
    pads = [*data.draw(widths), *data.draw(widths)]
    if any(shape[axis] + min(pads) * 2 < 1 for axis in axes):
        pads = [abs(each) for each in pads]
    feeds = {"x": example(shape, dtype)}
    held = {"p": np.array(pads, np.int64)}
    value = data.draw(st.sampled_from([None, 0, 1, 7, -20, 1000.0])) if mode == "constant" else None
    if (
        value is not None and not (value < 0 and dtype[0] in "ub") and abs(value) < 100
    ) or dtype == "float32":
        held["v"] = np.array(value or 0).astype(dtype)
    names = ["x", "p", "v" if "v" in held else "", "a"]
    held["a"] = np.array(axes, np.int64)
    check(one_op("Pad", feeds, constants=held, order=names, mode=mode), feeds)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [[1, 0, 2, 1], [0, 3, 0, 0], [1, -1, 0, -1]])
def test_pads_that_are_fed(mode, pads):
    if mode != "constant" and min(pads) < 0:
        return
    x, given_pads = example((3, 4, 5)), np.array(pads)
    wide = [(0, 0), (pads[0], pads[2]), (pads[1], pads[3])]
    shape = tuple(size + sum(each) for size, each in zip(x.shape, wide, strict=True))
    feeds = {"x": x, "p": given_pads, "a": np.array([1, -1])}
    declared(one_op("Pad", feeds, order=["x", "p", "", "a"], mode=mode), shape, feeds)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.lists(st.integers(1, 3), max_size=2),
    DTYPES,
    st.booleans(),
    st.data(),
)
def test_gather(shape, places, dtype, fed, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    indices = (
        np.random.default_rng(1)
        .integers(-size, size, places)
        .astype(data.draw(st.sampled_from(["int32", "int64"])))
    )
    feeds = {"x": example(shape, dtype)}
    feeds |= {"i": indices} if fed else {}
    check(one_op("Gather", feeds, constants={} if fed else {"i": indices}, axis=axis), feeds)


def test_a_table_of_constants_is_looked_up():
    feeds = {"i": np.array([[3, 0, -1]])}
    model = one_op("Gather", feeds, constants={"t": example((5, 4))}, order=["t", "i"])
    check(model, feeds)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), DTYPES, st.booleans(), st.data())
def test_gather_nd(shape, dtype, fed, data):
    batches = data.draw(st.integers(0, len(shape) - 1))
    depth = data.draw(st.integers(1, len(shape) - batches))
    places = [*shape[:batches], *data.draw(st.lists(st.integers(1, 3), max_size=1))]
    sizes = np.array(shape[batches : batches + depth])
    indices = np.random.default_rng(2).integers(-sizes, sizes, (*places, depth))
    feeds = {"x": example(shape, dtype)}
    feeds |= {"i": indices} if fed else {}
    check(one_op("GatherND", feeds, constants={} if fed else {"i": indices}, batch_dims=batches), feeds)


@pytest.mark.parametrize(
    ("op", "held", "attributes"),
    [
        ("Slice", {"s": [1, -1], "e": [4, -(2**31)], "a": [1, 2], "p": [2, -1]}, {}),
        ("Pad", {"p": [0, 1, 2, 0, 0, 0, 1, 0]}, {}),
        ("Pad", {"p": [0, 1, 2, 0, 0, 0, 1, 0]}, {"mode": "edge"}),
        ("Gather", {"i": [[1, -1]]}, {"axis": 2}),
    ],
)
def test_a_batch_of_any_size(op, held, attributes):
    feeds = {"x": example((2, 4, 5, 6))}
    constants = {name: np.array(each) for name, each in held.items()}
    assert not check(one_op(op, feeds, constants=constants, dynamic=True, **attributes), feeds).notes


def test_pads_that_are_worked_out_before_the_model_runs():
    """As PyTorch writes them, with an output of sizes that are not said."""
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)}
    model = graph(
        """
        g (float[2, 6] x) => (float[rows, columns] y)
        <int64[2] ends = {2, 1}, int64[2] none = {0, 0}, int64[2] pairs = {-1, 2}, int64[1] flat = {-1}>
        {
            both = Concat <axis = 0> (none, ends)
            table = Reshape(both, pairs)
            turned = Transpose <perm = [1, 0]> (table)
            pads = Reshape(turned, flat)
            wide = Pad <mode = "reflect"> (x, pads)
            y = Relu(wide)
        }
        """
    )
    assert_same(model, feeds, rtol=0, atol=0)
