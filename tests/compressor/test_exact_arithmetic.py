"""What a precision was computed in, by kernels, and how that is told."""

import pytest

from edgepress.compressor.exact import cases, constructions
from edgepress.compressor.exact.arithmetic import casts, computed_in, products
from edgepress.compressor.exact.judge import Judgement
from edgepress.compressor.exact.models import precisions
from edgepress.compressor.exact.suite import Outcome, Refusal, Trial
from edgepress.compressor.report.selftest import Selftest, arithmetic_of, check_of, verdict_of
from edgepress.compressor.report.selftest_words import HEADINGS, notes, rows
from edgepress.runtime.engines.base import Kernel

CAST = (Kernel("Cast", ("float16",)), Kernel("Cast", ("float32",)), Kernel("FusedGemm", ("float32",)))
"""As onnxruntime runs halves where it has no kernels for them."""

INTEGERS = (
    Kernel("QuantizeLinear", ("float32", "float32", "uint8")),
    Kernel("QLinearConv", ("uint8", "float32", "uint8", "int8")),
    Kernel("DequantizeLinear", ("uint8", "float32", "uint8")),
)


@pytest.mark.parametrize(
    ("kernels", "computed", "named", "cast"),
    [
        (CAST, ("fp32",), {"FusedGemm"}, {"Cast"}),
        ((Kernel("Gemm", ("float16", "float16")),), ("fp16",), {"Gemm"}, set()),
        (INTEGERS, ("int8",), {"QLinearConv"}, set()),
        ((Kernel("FULLY_CONNECTED", ("int8", "int8", "int32")),), ("int8",), {"FULLY_CONNECTED"}, set()),
        ((*INTEGERS, *CAST), ("fp32", "int8"), {"FusedGemm", "QLinearConv"}, {"Cast"}),
        (
            (Kernel("DEQUANTIZE", ("float16",)), Kernel("CONV_2D", ("float32", "float32"))),
            ("fp32",), {"CONV_2D"}, {"DEQUANTIZE"},
        ),
        ((Kernel("MatMulNBits", ("float32", "float32", "uint8")),), ("fp32",), {"MatMulNBits"}, set()),
        ((Kernel("Gemm", ("float8e4m3",)),), ("float8e4m3",), {"Gemm"}, set()),
        ((Kernel("Gemm", ()),), None, {"Gemm"}, set()),
        ((Kernel("Relu", ("float32",)),), None, set(), set()),
        ((), None, set(), set()),
        (None, None, set(), set()),
    ],
)  # fmt: skip
def test_arithmetic_is_what_products_read(
    kernels: tuple[Kernel, ...] | None, computed: tuple[str, ...] | None, named: set[str], cast: set[str]
) -> None:
    assert computed_in(kernels) == computed
    assert products(kernels) == named
    assert casts(kernels) == cast


def outcome(precision: str, kernels: tuple[Kernel, ...] | None, *, refused: bool = False) -> Outcome:
    case = cases.answers(constructions.words(2, 1, 6), precisions("uint8", 8)[precision], 1)
    right = Judgement(len(case.rows), 0, (), None, 1.0, 0)
    return Outcome(Trial(case, "gemm", "onnx"), Refusal("none") if refused else right, kernels)


def recorded(*found: Outcome) -> Selftest:
    checks = tuple(map(check_of, found))
    return Selftest(
        device="toy", transport="local", cpu="none", engines={}, threads=1, quick=True,
        verdict=verdict_of(checks), seconds=0.0, arithmetic=arithmetic_of(found), checks=checks,
    )  # fmt: skip


def told(record: Selftest) -> dict[str, str]:
    """Precision → what the table says it was computed in."""
    column = HEADINGS.index("computed in")
    return {row[1]: row[column] for row in rows(record)}


def test_halves_that_are_stored_alone_are_told_as_such() -> None:
    record = recorded(outcome("fp16", CAST), outcome("int8", INTEGERS), outcome("fp32", CAST[2:]))
    assert told(record) == {"fp16": "fp32", "int8": "int8", "fp32": "fp32"}
    assert notes(record) == ["onnx, fp16: fp16 is stored, and computed in fp32 (Cast around FusedGemm)"]
    assert [check.computed_in for check in record.checks] == [("fp32",), ("int8",), ("fp32",)]


def test_halves_that_are_multiplied_are_told_as_such() -> None:
    record = recorded(outcome("fp16 subnormal", (Kernel("Gemm", ("float16",)),)))
    assert told(record) == {"fp16 subnormal": "fp16"}
    assert not notes(record)


def test_what_no_engine_tells_is_not_known() -> None:
    record = recorded(outcome("fp16", None), outcome("int8", INTEGERS), outcome("int8", None))
    assert told(record) == {"fp16": "not known", "int8": "int8, not known of 1"}
    assert record.checks[0].computed_in is None
    assert record.arithmetic[0].computed_in is None
    assert not notes(record)


def test_of_what_was_refused_nothing_is_told() -> None:
    record = recorded(outcome("fp16", None, refused=True), outcome("fp32", CAST[2:]))
    assert told(record) == {"fp16": "", "fp32": "fp32"}
    assert [each.precision for each in record.arithmetic] == ["fp32"]
