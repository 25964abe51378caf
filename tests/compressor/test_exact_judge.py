"""Devices that compute as they should, and planted faults: each is found, and found where it is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgepress.compressor.exact import cases, constructions, known
from edgepress.compressor.exact.cases import Case, exercised, expected
from edgepress.compressor.exact.judge import Judgement, judge
from edgepress.compressor.exact.models import FORMS, ExactModel, Form, build, precisions
from edgepress.compressor.exact.networks import ExactNet
from edgepress.compressor.exact.suite import Outcome, Ran, Refusal, Trial, outcomes
from edgepress.compressor.export.tflite.convert import convert
from edgepress.compressor.report.selftest import Selftest, check_of, verdict_of
from edgepress.compressor.report.selftest_words import faults, headline, notes, rows
from edgepress.compressor.serialize import parse
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.engines.ort import OrtEngine

PRECISIONS = precisions("uint8", 8)
BLOCKS = "int4 blocks"
Outputs = dict[str, Any]


def made(case: Case, form: Form = "gemm") -> ExactModel:
    return build(case.net, form, case.precision, case.biases, case.steps)


def here(case: Case, model: ExactModel) -> Outputs:
    """By onnxruntime; its kernels are right on this machine, or the tests below that say so fail."""
    return OrtEngine().load(model.data)(model.feeds(case.rows))


def answers(net: ExactNet, precision: str) -> Case:
    return cases.answers(net, PRECISIONS[precision], 2)


def edited(model: ExactModel, name: str, change: Callable[[Any], Any]) -> ExactModel:
    """The model with one of its constants changed."""
    proto = onnx.load_from_string(model.data)
    place = [each.name for each in proto.graph.initializer].index(name)
    array = numpy_helper.to_array(proto.graph.initializer[place]).copy()
    change(array)
    proto.graph.initializer[place].CopyFrom(numpy_helper.from_array(array, name))
    return replace(model, data=proto.SerializeToString())


def as_outputs(case: Case, model: ExactModel, layers: list[Any]) -> Outputs:
    """What a device would give whose layers give these steps."""
    return {f"y{place + 1}": each / case.steps * model.unit for place, each in enumerate(layers)}


@pytest.mark.parametrize("activation", ["uint8", "int8"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [name for name in PRECISIONS if name != BLOCKS])
def test_both_runtimes_answer_exactly(activation: str, form: Form, name: str) -> None:
    precision = precisions(activation, 8)[name]
    net = constructions.words(4, 3, 30)
    for case in filter(None, (cases.answers(net, precision, 2), cases.changed(net, precision, 20))):
        model = made(case, form)
        assert judge(case, model, here(case, model)).right
        lite = LiteRTEngine(as_onnx=True).load(convert(parse(model.data)).data)
        found = judge(case, model, lite(model.feeds(case.rows)))
        assert found.right
        if name != "fp32 subnormal":  # which that interpreter makes 0, on purpose
            assert not found.deviations


@given(
    st.sampled_from(["fp32", "fp16", "int8", "int4"]),
    st.sampled_from(list(known.WINDOWS)),
    st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=20)
def test_what_is_expected_lies_on_the_grid_and_below_the_largest_code(
    name: str, windows: tuple[int, int], seed: int
) -> None:
    net = constructions.words(*windows, 12)
    for case in (
        cases.answers(net, PRECISIONS[name], 2, seed),
        cases.changed(net, PRECISIONS[name], 10, seed),
    ):
        assert case is not None
        for layer in (case.rows * case.steps, *case.biases, *expected(case)):
            assert (np.abs(layer - np.rint(layer)) < 1e-6).all()
        if PRECISIONS[name].integer:
            assert max(layer.max() for layer in expected(case)) <= 250  # a step too much must show, too
        limits, r = case.threshold, case.r if case.kind == "changed" else case.threshold
        for place in range(0, len(limits), 50):
            mine = (case.category == case.category[place]) & (case.feature == case.feature[place])
            below, above = r[mine & (r <= limits)], r[mine & (r > limits)]
            assert above.min() - (below.max() if len(below) else 0) <= 1 / case.steps + 1e-9


@pytest.mark.parametrize("windows", [(2, 1), (3, 2), (4, 3)])
def test_every_weight_would_show(windows: tuple[int, int]) -> None:
    seen, total = exercised(cases.answers(constructions.words(*windows), PRECISIONS["int8"]))
    assert seen == total


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("step", [-1, 1])
def test_one_weight_that_is_one_step_off_is_found_and_located(layer: int, step: int) -> None:
    net = constructions.words(4, 3, 30)
    case = answers(net, "int8")
    right = made(case)
    neuron = 3
    weight = net.weights[layer - 1].toarray()
    source = int(np.flatnonzero(weight[neuron] == (step < 0))[2 if step > 0 else 0])

    def change(codes: Any) -> None:
        codes[neuron, source] += step

    model = edited(right, f"layer{layer}_codes", change)
    found = judge(case, right, here(case, model))
    assert [each.layer for each in found.deviations] == [layer]
    (deviation,) = found.deviations
    assert deviation.operator == "Gemm"
    assert deviation.neuron == net.labels[layer][neuron]
    assert net.labels[layer - 1][source] in deviation.cause
    assert f"{step:+d} step of its grid" in deviation.cause
    assert not found.right


@pytest.mark.parametrize("windows", list(known.WINDOWS))
def test_weights_in_blocks_answer_exactly(windows: tuple[int, int]) -> None:
    net = constructions.words(*windows, 30)
    for case in (answers(net, BLOCKS), cases.changed(net, PRECISIONS[BLOCKS], 20)):
        assert case is not None
        model = made(case, "matmul")
        found = judge(case, model, here(case, model))
        assert found.right
        assert not found.deviations
        kinds = {node.op_type for node in onnx.load_from_string(model.data).graph.node}
        assert kinds == {"MatMulNBits", "Add", "Relu"}


@pytest.mark.parametrize("nibble", [0x01, 0x10])
def test_one_step_in_a_block_is_found_and_located(nibble: int) -> None:
    net = constructions.words(4, 3, 30)
    case = answers(net, BLOCKS)
    right = made(case, "matmul")

    def change(codes: Any) -> None:
        codes[3, 1, 2] ^= nibble

    found = judge(case, right, here(case, edited(right, "layer2_codes", change)))
    (deviation,) = found.deviations
    assert not found.right
    assert (deviation.layer, deviation.neuron) == (2, net.labels[2][3])
    assert net.labels[1][32 + 4 + (nibble > 1)] in deviation.cause


@given(st.sampled_from(["int8", "int4"]), st.data())
@settings(deadline=None, max_examples=40)
def test_whichever_weight_is_a_step_off_it_is_found_where_it_is(name: str, data: st.DataObject) -> None:
    """The kernels are an integer product here, so that nothing but the one weight is wrong."""
    net = constructions.words(*data.draw(st.sampled_from(list(known.WINDOWS))), 25)
    case = answers(net, name)
    place = data.draw(st.integers(0, len(net.weights) - 1))
    shape = net.weights[place].shape
    neuron, source = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
    codes = case.precision.weight_codes
    y, layers = np.rint(case.rows * case.steps), []
    for at, (weight, bias) in enumerate(zip(net.weights, case.biases, strict=True)):
        stored = weight.toarray() * codes
        if at == place:
            stored[neuron, source] += 1 if not stored[neuron, source] else data.draw(st.sampled_from([-1, 1]))
        right = np.clip((weight @ y.T).T + bias, 0, 255)
        y = np.clip(np.rint(y @ stored.T / codes + bias), 0, 255)
        if at == place:
            assume((y != right).any())  # few rows: some weights are read by no neuron that fires
        layers.append(y)
    found = judge(case, made(case), as_outputs(case, made(case), layers))
    (deviation,) = found.deviations
    assert (deviation.layer, deviation.neuron) == (place + 1, net.labels[place + 1][neuron])
    assert net.labels[place][source] in deviation.cause or " or others" in deviation.cause


def test_a_bias_that_is_off_is_named() -> None:
    case = answers(constructions.words(3, 2, 20), "fp32")
    right = made(case)

    def change(values: Any) -> None:
        values[5] -= 0.125

    found = judge(case, right, here(case, edited(right, "layer2_bias", change)))
    (deviation,) = found.deviations
    assert (deviation.layer, deviation.cause) == (
        2,
        f"the bias of {case.net.labels[2][5]} is off by -0.125",
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_kernel_that_saturates_is_found_and_named(form: Form) -> None:
    """As u8·s8 products are added up on x86 without VNNI: two by two, in 16 bits."""
    case = answers(constructions.from_images("digits", known.digits()), "int8")
    model = made(case, form)
    weight = case.net.weights[0].toarray() * 127
    codes = np.rint(case.rows * case.steps)
    if codes.shape[1] % 2:
        weight, codes = (np.pad(each, ((0, 0), (0, 1))) for each in (weight, codes))
    products = codes[:, None] * weight[None]
    sums = np.clip(products[..., 0::2] + products[..., 1::2], -(2**15), 2**15 - 1).sum(axis=2)
    outputs = as_outputs(case, model, [np.rint(np.maximum(sums / 127 + case.biases[0], 0))])
    found = judge(case, model, outputs)
    assert not found.right
    assert found.wrong_rows > 0
    assert found.deviations[0].cause == "as if sums of two products were cut at 16 bits"


def test_a_kernel_that_rounds_to_eight_bits_of_float_is_found() -> None:
    """As fast modes with bfloat16 do: 0/1 alone would not show it, changed features do."""
    case = cases.changed(constructions.words(4, 1, 20), PRECISIONS["fp32"], 20)
    assert case is not None
    model = made(case)
    feeds = model.feeds(case.rows)["x"]
    short = (feeds.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    layers = [np.maximum(short @ case.net.weights[0].toarray().T * case.steps + case.biases[0], 0)]
    found = judge(case, model, as_outputs(case, model, layers))
    assert not found.right
    assert found.threshold_error is not None
    assert found.threshold_error > 1e-6


def test_subnormal_numbers_that_become_0_are_told_and_not_wrong() -> None:
    case = answers(constructions.words(2, 2, 12), "fp32 subnormal")
    model = made(case)
    found = judge(case, model, {name: each * 0 for name, each in here(case, model).items()})
    assert found.right
    assert found.deviations[0].harmless
    half = {name: each / 2 for name, each in here(case, model).items()}
    assert not judge(case, model, half).right


def test_no_number_is_wrong() -> None:
    case = answers(constructions.words(2, 1, 12), "fp32")
    model = made(case)
    outputs = here(case, model)
    outputs["y1"][3, 4] = np.nan
    (deviation,) = judge(case, model, outputs).deviations
    assert (deviation.wrong, deviation.found) == (1, None)


def test_a_false_alarm_and_a_category_lost_too_soon_are_wrong() -> None:
    case = cases.changed(constructions.words(2, 1, 12), PRECISIONS["fp32"], 6)
    assert case is not None
    model = made(case)
    loud, deaf = here(case, model), here(case, model)
    loud["y1"][0, :] = 1
    found = judge(case, model, loud)
    assert found.false_alarms > 0
    deaf["y1"][case.r < 1] = 0
    assert judge(case, model, deaf).threshold_error == pytest.approx(
        max(case.r[case.r < 1]) - case.threshold.min()
    )


def test_a_run_tells_refusals_deaths_and_faults_apart() -> None:
    net = constructions.words(2, 1, 10)
    todo = [
        Trial(answers(net, name), "gemm", kind) for name in ("fp32", "int8") for kind in ("onnx", "tflite")
    ]

    def run(files: Any, feeds: Any) -> list[Any]:
        right = Ran(OrtEngine().load(files[0])(feeds[0]))
        return [right, Refusal("no kernel"), Refusal("killed", died=True), Ran({"y1": np.zeros(3)})]

    found = list(outcomes(todo, run))
    assert [each.trial for each in found] == todo
    assert [each.right for each in found] == [True, True, False, False]
    record = recorded(found)
    assert [each.verdict for each in record.checks] == ["right", "refused", "wrong", "wrong"]
    assert record.verdict == "wrong"
    assert any("onnx, int8, gemm: killed" in line for line in faults(record))
    assert notes(record) == ["tflite, fp32 is not offered: no kernel"]
    assert headline(record).startswith("WRONG: toy (local, none) computes 2 of 3 models wrong")


@pytest.mark.parametrize(("together", "parts"), [(1, [1, 1, 1]), (900, [2, 1]), (10**6, [3])])
def test_models_go_in_parts_of_so_many_values_and_come_in_order(together: int, parts: list[int]) -> None:
    nets = [constructions.words(2, 1, count) for count in (6, 8, 10)]
    todo = [Trial(answers(net, "fp32"), "gemm", "onnx") for net in nets]
    asked = []

    def run(files: Any, feeds: Any) -> list[Any]:
        asked.append(len(files))
        return [Ran(OrtEngine().load(file)(each)) for file, each in zip(files, feeds, strict=True)]

    found = list(outcomes(todo, run, together))
    assert asked == parts
    assert [each.trial for each in found] == todo
    assert all(each.right for each in found)


def recorded(found: list[Outcome]) -> Selftest:
    checks = tuple(map(check_of, found))
    return Selftest(
        device="toy", transport="local", cpu="none", engines={}, threads=1, quick=True,
        verdict=verdict_of(checks), seconds=0.0, checks=checks,
    )  # fmt: skip


def test_words_name_device_precision_operator_and_cause() -> None:
    case = answers(constructions.words(3, 2, 20), "int8")
    right = made(case)

    def change(codes: Any) -> None:
        codes[2, np.flatnonzero(codes[2])[0]] -= 1

    found: Judgement = judge(case, right, here(case, edited(right, "layer2_codes", change)))
    record = recorded([Outcome(Trial(case, "gemm", "onnx"), found)])
    (line,) = faults(record)
    assert line.startswith("toy, onnx, int8, Gemm, layer 2 of 2: ")
    assert "-1 step of its grid" in line
    assert rows(record)[0][:2] == ("onnx", "int8")
    assert rows(record)[0][5] == "1 wrong"
