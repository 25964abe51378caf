"""Models in the forms that people really bring: none ends in a crash, none comes out changed, larger or invalid."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import models_wild
import numpy as np
import onnx
import pytest
from models_exports import proto

from edgepress.compressor.cli.host import make_host
from edgepress.compressor.equality import same_outputs
from edgepress.compressor.errors import DeviceError, ModelError
from edgepress.compressor.job import Findings, Host, Job
from edgepress.compressor.model import input_specs, load
from edgepress.compressor.normalize import normalize
from edgepress.compressor.passes import Dynamic, LowRank, Pass, Quantize, Shrink, StoreWeights, WeightOnly
from edgepress.compressor.protocols import Array, Feeds
from edgepress.compressor.report.build import build_report
from edgepress.compressor.samples import synthetic_feeds
from edgepress.compressor.serialize import serialize
from edgepress.compressor.session import run

REFUSED = {"explicit_domain": "checker"}
"""What the onnx checker does not take."""
NOT_RUN = {"custom", "odd_names", "sequence_in", "strings"}
"""What cannot be run here, or not without samples; strings where the system has no locale en_US."""
STACKED = {"states", "scalar_input", "streaming"}
"""What is fed run by run."""
RECIPES: Mapping[str, tuple[Pass, ...]] = {
    "8 bits": (Quantize(), StoreWeights(min_elements=2)),
    "4 bits": (StoreWeights(4, min_elements=2),),
    "half as wide": (Shrink(share=0.5, criterion="qr"), Dynamic(min_elements=2)),
    "low rank": (LowRank(energy=0.8), WeightOnly(min_elements=2)),
}


@pytest.fixture(scope="module")
def host() -> Host:
    """This machine without its clock: costs are predicted."""
    made = make_host("x86", 1, 0, 1.0, lambda *_: None, workers=1, device=False)
    return replace(made, stopwatch=None, glance=None, memory=None, tflite=lambda: None)


def written(folder: Path, name: str) -> Path:
    file = folder / "model.onnx"
    file.write_bytes(models_wild.ALL[name]().SerializeToString())
    return file


def samples(file: Path, rows: int = 48, *, stacked: bool = False) -> dict[str, Array]:
    """Random rows for every input, or where they are stacked the feeds of single runs."""
    rng, found = np.random.default_rng(0), {}
    for spec in input_specs(load(file)):
        shape = [7 if not isinstance(d, int) else d for d in spec.shape or ()]
        if stacked:
            shape = [rows, *(1 if not isinstance(d, int) else d for d in spec.shape or ())]
        elif shape:
            shape[0] = rows
        if spec.dtype.kind == "f":
            found[spec.name] = np.asarray(rng.standard_normal(shape), spec.dtype)
        else:
            found[spec.name] = np.asarray(rng.integers(0, 50, shape), spec.dtype)
    return found


def sound(found: Findings) -> None:
    """What goes out is valid, says so in its report, and runs."""
    assert isinstance(found.exported, bytes)
    onnx.checker.check_model(found.exported, full_check=True)
    report = build_report(found)
    assert report.exit_code in (0, 1, 4)
    if found.one_row:
        run_it = found.host.engine.load(found.exported)
        before = found.host.engine.load(serialize(found.source))(found.one_row)
        after = run_it(found.one_row)
        assert after.keys() == before.keys()
        for name, value in before.items():
            assert type(after[name]) is type(value), name
            if isinstance(value, np.ndarray):
                assert (after[name].shape, after[name].dtype) == (value.shape, value.dtype), name


@pytest.mark.parametrize("name", sorted(set(models_wild.ALL) - set(REFUSED)))
def test_without_samples_the_result_is_valid_and_no_larger(name: str, tmp_path: Path, host: Host) -> None:
    file = written(tmp_path, name)
    found = run(Job(file, formats=("onnx",)), host)
    sound(found)
    assert len(found.exported) <= file.stat().st_size
    assert bool(found.one_row) or name in NOT_RUN | {"no_input"}
    for recipe in RECIPES.values():
        sound(run(Job(file, recipe=recipe, formats=("onnx",)), host))


@pytest.mark.parametrize(
    "name",
    sorted(set(models_wild.ALL) - set(REFUSED) - NOT_RUN - {"random_numbers", "noise_inside", "alone"}),
)
def test_the_canonical_form_gives_the_same_and_no_step_is_undone(
    name: str, tmp_path: Path, host: Host
) -> None:
    file = written(tmp_path, name)
    source = load(file)
    runner = host.engine.load(file.read_bytes())
    feeds: Feeds | None = samples(file, 3)
    try:
        expected = runner(feeds)
    except DeviceError:  # not of three rows
        feeds = synthetic_feeds(source, runner, 0)
        assert feeds
        expected = runner(feeds)

    def check(candidate: object) -> bool:
        return same_outputs(expected, host.engine.load(serialize(candidate))(feeds), 1e-4)  # type: ignore[arg-type]

    steps = normalize(source, check).steps
    assert not [step for step in steps if "rolled back" in step.why]


@pytest.mark.parametrize(
    "name",
    [
        "maps_out",
        "sequence_out",
        "sequences",
        "states",
        "scalar_input",
        "streaming",
        "opset_7",
        "loop",
        "scan",
        "many_ends",
        "boxes",
        "boxes_of_many",
        "alone",
        "tied_turned",
        "noise_inside",
    ],
)
def test_with_samples_the_search_ends_with_a_verdict(name: str, tmp_path: Path, host: Host) -> None:
    file = written(tmp_path, name)
    data = samples(file, stacked=name in STACKED)
    if name == "scan":
        data = {key: array[:48] for key, array in samples(file).items()}
    for recipe in (None, *RECIPES.values()):
        found = run(Job(file, data=data, recipe=recipe, formats=("onnx",)), host)
        sound(found)
        assert found.exit_code in (0, 1)
        if recipe is None:
            assert len(found.exported) <= file.stat().st_size


def test_a_map_keeps_its_type_and_its_numbers(tmp_path: Path, host: Host) -> None:
    file = written(tmp_path, "maps_out")
    found = run(Job(file, recipe=(StoreWeights(min_elements=2),), formats=("onnx",)), host)
    before, after = onnx.load(file), onnx.load_from_string(bytes(found.exported))  # type: ignore[arg-type]
    assert [v.type for v in after.graph.output] == [v.type for v in before.graph.output]
    assert not any(v.metadata_props for v in after.graph.output)
    feeds = samples(file, 3)
    want, got = (host.engine.load(data)(feeds) for data in (file.read_bytes(), found.exported))
    pairs = zip(want["probabilities"], got["probabilities"], strict=True)
    assert all(abs(one[k] - other[k]) < 0.05 for one, other in pairs for k in one)


def test_what_functions_cost_is_predicted(tmp_path: Path, host: Host) -> None:
    """A call counted as one cheap node would make every result look slower than the file that came."""
    found = run(Job(written(tmp_path, "functions"), formats=("onnx",)), host)
    assert found.best is not None
    assert found.best.recipe
    assert not [warning for warning in found.warnings if "slower" in warning]


@pytest.mark.parametrize("recipe", [None, (StoreWeights(min_elements=2),)])
def test_weights_inside_of_control_flow_get_few_bits(
    recipe: tuple[Pass, ...] | None, tmp_path: Path, host: Host
) -> None:
    file = written(tmp_path, "two_nets")
    rng = np.random.default_rng(0)
    # a run of its own for each sample, so that both branches are taken
    data = {
        "x": rng.standard_normal((64, 1, 16)).astype(np.float32),
        "r": rng.integers(0, 2, (64, 1)),
    }
    found = run(Job(file, data=data, recipe=recipe, formats=("onnx",)), host)
    sound(found)
    assert len(found.exported) < 0.5 * file.stat().st_size
    before, after = (host.engine.load(model) for model in (file.read_bytes(), found.exported))
    for branch in (0, 1):
        feeds = {"x": data["x"][:, 0], "r": np.array([branch])}
        want, got = before(feeds)["y"], after(feeds)["y"]
        assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
        assert np.abs(want).max() > 0.1


def test_what_is_computed_from_a_weight_alone_is_a_weight(tmp_path: Path, host: Host) -> None:
    """Each slice is kept beside the weight that others read; the whole chain is no larger than the weight."""
    file = written(tmp_path, "joined_gates")
    found = run(Job(file, recipe=(StoreWeights(min_elements=2),), formats=("onnx",)), host)
    sound(found)
    assert len(found.exported) < 0.35 * file.stat().st_size


def test_what_reads_an_input_says_how_large_it_is(tmp_path: Path, host: Host) -> None:
    found = run(Job(written(tmp_path, "dynamic_everything"), formats=("onnx",)), host)
    assert found.one_row["x"].shape[1] == 3


def test_a_table_of_words_that_is_the_last_layer_too_is_one_weight(tmp_path: Path, host: Host) -> None:
    file = written(tmp_path, "tied_turned")
    for bits, most in ((8, 0.36), (4, 0.3)):
        found = run(Job(file, recipe=(StoreWeights(bits),), formats=("onnx",)), host)
        sound(found)
        assert len(found.exported) < most * file.stat().st_size


def test_it_is_said_which_weights_are_read_in_other_ways_too(tmp_path: Path, host: Host) -> None:
    file = tmp_path / "model.onnx"
    body = "h = MatMul(x, w) d = Mul(w, z) s = ReduceSum <keepdims = 0> (d, axes) y = Add(h, s)"
    weights = {"w": np.ones((16, 12), np.float32), "axes": np.array([0], np.int64)}
    model = proto("(float[N, 16] x, float[16, 12] z) => (float[N, 12] y)", body, weights)
    model.graph.node[1].name = "gates"
    file.write_bytes(model.SerializeToString())
    found = run(Job(file, recipe=(StoreWeights(min_elements=2),), formats=("onnx",)), host)
    assert [s.reason for s in found.left_alone] == ["Mul gates reads its weights, too"]


def test_rows_that_a_model_takes_one_by_one_only_are_run_so(tmp_path: Path, host: Host) -> None:
    file = written(tmp_path, "alone")
    found = run(
        Job(file, data=samples(file), recipe=(StoreWeights(min_elements=2),), formats=("onnx",)), host
    )
    assert any("each is run by itself" in warning for warning in found.warnings)
    assert build_report(found).exit_code in (0, 1)


def test_a_size_without_a_name_stays_without_one(tmp_path: Path, host: Host) -> None:
    """As scikit-learn's converter writes batches."""
    model = proto(
        "(float[N, 16] x) => (float[N, 12] y)",
        "t = Cast <to = 1> (x) g = MatMul(t, w) y = Cast <to = 1> (g)",
        {"w": np.ones((16, 12), np.float32)},
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_param")
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    found = run(Job(file, recipe=(StoreWeights(min_elements=2),), formats=("onnx",)), host)
    sound(found)
    assert not [warning for warning in found.warnings if "rolled back" in warning]
    after = onnx.load_from_string(bytes(found.exported))  # type: ignore[arg-type]
    assert not after.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_it_is_said_that_trees_are_left_alone(tmp_path: Path, host: Host) -> None:
    file = written(tmp_path, "maps_out")
    found = run(Job(file, recipe=(StoreWeights(min_elements=2),), formats=("onnx",)), host)
    assert [s.reason for s in found.left_alone if "attributes" in s.reason] == []
    tree = onnx.helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], "forest", domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0], nodes_nodeids=[0], nodes_featureids=[0], nodes_values=[0.0], nodes_modes=["LEAF"],
        nodes_truenodeids=[0], nodes_falsenodeids=[0], target_treeids=[0], target_nodeids=[0], target_ids=[0],
        target_weights=[1.0],
    )  # fmt: skip
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(n, kind, ["N", k]) for n, k in (("x", 4), ("y", 1))]
    graph = onnx.helper.make_graph([tree], "trees", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    file.write_bytes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    found = run(Job(file, formats=("onnx",)), host)
    assert [(s.site, "attributes" in s.reason) for s in found.left_alone] == [("forest", True)]


def boxes_per_picture(outputs: Mapping[str, Array], labels: Array | None) -> list[float]:
    """A user's metric: rows of a batch are pictures, whatever comes out of them."""
    return [float(len(each)) for each in outputs["found"]]


def all_boxes(outputs: Mapping[str, Array], labels: Array | None) -> list[float]:
    """Another one, that looks at all pictures together."""
    return [float(sum(len(each) for each in outputs["found"])) / len(outputs["found"])]


all_boxes.whole = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("metric", ["boxes_per_picture", "all_boxes"])
@pytest.mark.parametrize("name", ["boxes", "boxes_of_many"])
def test_a_users_metric_sees_the_boxes_of_each_picture(
    metric: str, name: str, tmp_path: Path, host: Host
) -> None:
    file = written(tmp_path, name)
    data = samples(file)
    recipe = (StoreWeights(min_elements=2),)
    found = run(Job(file, data=data, metric=f"{__name__}:{metric}", recipe=recipe, formats=("onnx",)), host)
    report, runner = build_report(found), host.engine.load(file.read_bytes())
    assert found.test is not None
    each = [len(runner(batch.feeds)["found"]) for batch in found.test.batches(1)]
    assert len(set(each)) > 2
    assert report.baseline.score == pytest.approx(np.mean(each))
    assert report.compressed.score == pytest.approx(np.mean(each), rel=0.2)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_is_told_in_a_line(name: str, tmp_path: Path, host: Host) -> None:
    with pytest.raises(ModelError, match=REFUSED[name]):
        run(Job(written(tmp_path, name)), host)


def test_sizes_that_the_model_does_not_take_are_refused(tmp_path: Path, host: Host) -> None:
    file = tmp_path / "model.onnx"
    weight = {"w": np.ones((16, 12), np.float32)}
    file.write_bytes(
        proto("(float[N, M] x) => (float[N, 12] y)", "y = MatMul(x, w)", weight).SerializeToString()
    )
    job = Job(file, shapes={"x": (1, 7)}, recipe=(StoreWeights(min_elements=2),), formats=("onnx",))
    with pytest.raises(ModelError, match="with the sizes of --shape") as caught:
        run(job, host)
    assert caught.value.hint == "Leave --shape out."


def test_it_is_said_that_nothing_checks_what_cannot_be_run(tmp_path: Path, host: Host) -> None:
    file = written(tmp_path, "custom")
    for recipe, words in (
        (None, "handed back as it is"),
        (RECIPES["4 bits"], "nothing checks what the recipe"),
    ):
        found = run(Job(file, recipe=recipe, formats=("onnx",)), host)
        assert any(words in warning for warning in found.warnings)
        assert (len(found.exported) < file.stat().st_size) is (recipe is not None)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([np.ones(2), np.zeros(3)], [np.ones(2), np.zeros(3)], True),
        ([np.ones(2)], [np.ones(2), np.ones(2)], False),
        ([{0: 0.25, 1: 0.75}], [{0: 0.25000001, 1: 0.75}], True),
        ([{0: 0.25, 1: 0.75}], [{0: 0.35, 1: 0.65}], False),
        ([{0: 0.25}], [{1: 0.25}], False),
        (None, None, True),
        (None, np.ones(2), False),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False),
        (np.array([1, 1.003], np.float16), np.array([1, 1.002], np.float16), True),
        (np.array([1, 1.02], np.float16), np.array([1, 1.0], np.float16), False),
    ],
)
def test_outputs_that_are_no_tensors_of_floats_are_compared_too(
    one: object, other: object, same: bool
) -> None:
    compare: Callable[..., bool] = same_outputs
    assert compare({"y": one}, {"y": other}, 1e-4) is same
