"""Interpolation over measured kernels against a slow oracle, and tables on disk."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from edgepress.devices.profile import DeviceSpec, ProfileError, dump_profile, load_profile
from edgepress.devices.table import Kernel, KernelTable, monotone

AXIS = st.lists(st.integers(1, 5000), min_size=1, max_size=4, unique=True).map(sorted)
SIZE = st.floats(0.25, 20000)


@st.composite
def kernels(draw: st.DrawFn, *, rising: bool) -> Kernel:
    """A kernel of random times; `rising` ones never fall along any axis, as those of a quiet machine."""
    inputs, outputs, positions = (tuple(map(float, draw(AXIS))) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    ns = rng.uniform(10, 1e6, (len(inputs), len(outputs), len(positions)))
    if rising:
        ns = np.cumsum(np.cumsum(np.cumsum(ns, 0), 1), 2)
    return Kernel("conv", "fp32", inputs, outputs, positions, nested(ns))


def nested(ns: np.ndarray) -> tuple[tuple[tuple[float, ...], ...], ...]:
    return tuple(tuple(tuple(map(float, line)) for line in plane) for plane in ns)


def axes(kernel: Kernel) -> list[tuple[float, ...]]:
    return [kernel.inputs, kernel.outputs, kernel.positions]


def oracle(kernel: Kernel, sizes: tuple[float, float, float]) -> float:
    """By scipy on doubled axes where one has a single point; beyond the grid in proportion, below it as at its edge."""
    log_ns = np.log(np.array(kernel.ns))
    grid = []
    for axis, values in enumerate(axes(kernel)):
        logs = np.log(values)
        if len(logs) == 1:
            logs, log_ns = np.array([logs[0], logs[0] + 1]), np.concatenate([log_ns, log_ns], axis)
        grid.append(logs)
    inside = [min(max(s, a[0]), a[-1]) for s, a in zip(sizes, axes(kernel), strict=True)]
    beyond = math.prod(max(s / a[-1], 1.0) for s, a in zip(sizes, axes(kernel), strict=True))
    return float(np.exp(RegularGridInterpolator(grid, log_ns)(np.log(inside))[0])) * beyond


@settings(deadline=None, max_examples=80)
@given(kernels(rising=True), SIZE, SIZE, SIZE)
def test_times_are_those_of_the_oracle(kernel: Kernel, i: float, j: float, k: float) -> None:
    assert kernel.time(i, j, k) == pytest.approx(oracle(kernel, (i, j, k)), rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(kernels(rising=True))
def test_what_was_measured_is_given_back(kernel: Kernel) -> None:
    for (i, a), (j, b), (k, c) in itertools.product(*(enumerate(axis) for axis in axes(kernel))):
        assert kernel.time(a, b, c) == pytest.approx(kernel.ns[i][j][k], rel=1e-9)


@settings(deadline=None, max_examples=80)
@given(kernels(rising=False), SIZE, SIZE, SIZE, st.floats(1, 50))
def test_more_outputs_or_positions_never_cost_less(
    kernel: Kernel, i: float, j: float, k: float, factor: float
) -> None:
    """Whatever noise the table has; and never more than times measured at all, within the grid."""
    here = kernel.time(i, j, k)
    assert kernel.time(i, j * factor, k) >= here * (1 - 1e-9)
    assert kernel.time(i, j, k * factor) >= here * (1 - 1e-9)
    beyond = math.prod(max(s / a[-1], 1.0) for s, a in zip((i, j, k), axes(kernel), strict=True))
    values = np.array(kernel.ns)
    assert values.min() * (1 - 1e-9) <= here / beyond <= values.max() * (1 + 1e-9)


def test_twice_the_positions_beyond_the_grid_take_twice_as_long() -> None:
    kernel = Kernel("product", "fp32", (4.0,), (8.0, 16.0), (1.0, 64.0), (((5.0, 50.0), (7.0, 80.0)),))
    assert kernel.time(4, 16, 128) == pytest.approx(160)
    assert kernel.time(8, 16, 128) == pytest.approx(320)
    assert kernel.time(1, 2, 0.5) == kernel.time(0, 0, 0) == pytest.approx(5)
    assert kernel.time(4, 8, 8) == pytest.approx(math.sqrt(5 * 50))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_monotone_lies_between_the_running_extremes(values: list[float]) -> None:
    array = np.array(values)
    found = monotone(array)
    assert np.all(np.diff(found) >= 0)
    for index, value in enumerate(found):
        assert value == pytest.approx((max(values[: index + 1]) + min(values[index:])) / 2)


def table() -> KernelTable:
    ns = nested(np.arange(1, 13).reshape(2, 2, 3) * 100.5)
    conv = Kernel("conv", "int8", (9.0, 36.0), (16.0, 64.0), (1.0, 16.0, 196.0), ns)
    return KernelTable((conv, Kernel("run", "fp32", (1.0,), (1.0,), (1.0,), (((4500.0,),),))))


def spec(name: str, **changed: object) -> DeviceSpec:
    fields: dict[str, object] = {
        "arch": "aarch64", "activation_dtype": "int8", "weight_bits": 8, "channel_multiple": 8,
        "runtime_version": "1.30", "macs_per_ns_fp32": 12.5, "macs_per_ns_int8": 40.0, "bytes_per_ns": 8.0,
        "node_overhead_ns": 900.0, "cpu": 'a "core" \\ with\ttabs\x7f', "description": "ä 64 °C", "table": table(),
    }  # fmt: skip
    return DeviceSpec(name=name, **(fields | changed))  # type: ignore[arg-type]


def test_a_profile_with_a_table_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(dump_profile(spec("board")), encoding="utf-8")
    found = load_profile("board", [tmp_path])
    assert found == spec("board")
    assert found.table is not None
    assert found.table.ns("conv", "int8", 9, 16, 1) == pytest.approx(100.5)
    assert found.table.ns("run", "fp32") == pytest.approx(4500)
    assert found.table.ns("conv", "fp32", 9, 16, 1) is None


def test_a_profile_takes_the_table_of_its_base_unless_it_has_one(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(dump_profile(spec("board")), encoding="utf-8")
    (tmp_path / "fast.toml").write_text('base = "board"\nmacs_per_ns_fp32 = 99', encoding="utf-8")
    assert load_profile("fast", [tmp_path]).table == table()
    (tmp_path / "bare.toml").write_text('base = "board"\nkernel = []', encoding="utf-8")
    assert load_profile("bare", [tmp_path]).table is None


def test_counts_are_times_at_the_devices_rate(tmp_path: Path) -> None:
    """And stay the same counts, whatever rate a profile that builds on it assumes."""
    own = spec("board", instructions_per_ns=4.0, table=replace(table(), counted=True))
    text = dump_profile(own)
    assert "\ninstructions = [" in text
    assert "\nns = [" not in text
    assert "18000]" in text, "4500 ns at 4 a nanosecond"
    (tmp_path / "board.toml").write_text(text, encoding="utf-8")
    (tmp_path / "slow.toml").write_text('base = "board"\ninstructions_per_ns = 1', encoding="utf-8")
    found, slow = (load_profile(name, [tmp_path]).table for name in ("board", "slow"))
    assert found is not None
    assert slow is not None
    assert found.counted
    assert found.ns("run", "fp32") == pytest.approx(4500)
    assert slow.ns("run", "fp32") == pytest.approx(18000)


def test_counts_and_times_do_not_mix(tmp_path: Path) -> None:
    counted = {("instructions" if key == "ns" else key): value for key, value in GOOD.items()}
    lines = [f"[[kernel]]\n{_lines(each)}" for each in (counted, GOOD | {"precision": '"int8"'})]
    (tmp_path / "board.toml").write_text("\n".join(['base = "x86"', *lines]), encoding="utf-8")
    with pytest.raises(ProfileError, match="either all have ns, or all instructions"):
        load_profile("board", [tmp_path])


def test_emulated_cores_come_with_counts() -> None:
    """The dot product shows in them, and rates that differ by core alone change none."""
    names = ("cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1")
    specs = {name: load_profile(name) for name in names}
    conv = {}
    for name, found in specs.items():
        assert found.table is not None
        assert found.table.counted
        ns = found.table.ns("conv", "int8", 576, 64, 196), found.table.ns("conv", "fp32", 576, 64, 196)
        assert all(ns)
        conv[name] = [(each or 0.0) / found.ns_of(1) for each in ns]
    assert conv["cortex-a53"] == pytest.approx(conv["cortex-a72"])
    assert conv["neoverse-n1"] == pytest.approx(conv["cortex-a76"])
    assert conv["cortex-a72"][1] == pytest.approx(conv["cortex-a76"][1], rel=0.01)
    assert conv["cortex-a72"][0] > 2 * conv["cortex-a76"][0]


GOOD = {
    "kind": '"add"', "precision": '"fp32"', "inputs": "[1]", "outputs": "[1]", "positions": "[1, 8]",
    "ns": "[[[10, 20]]]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("kind", '"convolution"', "kind must be one of conv,"),
        ("kind", "3", "kind must be one of"),
        ("precision", '"fp16"', "precision must be fp32 or int8"),
        ("positions", "[8, 1]", "positions must be positive numbers that grow"),
        ("positions", "[1, 1]", "positions must be positive numbers that grow"),
        ("positions", "[]", "positions must be positive numbers that grow"),
        ("inputs", "[0]", "inputs must be positive"),
        ("inputs", "1", "inputs must be numbers in brackets"),
        ("outputs", "[true]", "outputs must be numbers in brackets"),
        ("outputs", '["16"]', "outputs must be numbers in brackets"),
        ("ns", "[[[10]]]", "ns must be 1 × 1 × 2 numbers"),
        ("ns", "[[[10, 20]], [[10, 20]]]", "ns must be 1 × 1 × 2 numbers"),
        ("ns", "[10, 20]", "ns must be numbers in brackets"),
        ("ns", "[[[10, -20]]]", "ns must be positive and finite"),
        ("ns", "[[[10, nan]]]", "ns must be positive and finite"),
        ("ns", "[[[10, inf]]]", "ns must be positive and finite"),
        ("ns", None, "missing ns"),
        ("extra", "1", "unknown key extra"),
    ],
)
def test_a_damaged_table_is_refused_with_its_number(
    tmp_path: Path, key: str, value: str | None, says: str
) -> None:
    wrong = {name: each for name, each in (GOOD | {key: value}).items() if each is not None}
    entries = [GOOD | {"precision": '"int8"'}, wrong]
    lines = ['base = "x86"', *(f"[[kernel]]\n{_lines(entry)}" for entry in entries)]
    (tmp_path / "board.toml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ProfileError, match=r"profile board: \[\[kernel\]\] 2: ") as caught:
        load_profile("board", [tmp_path])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kernel = 3", "must be"),
        ("kernel = [3]", "must be a table"),
        ("[[kernel]]\n{0}\n[[kernel]]\n{0}", "two kernels are of one kind and precision"),
    ],
)
def test_other_damage_is_refused_too(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "board.toml").write_text('base = "x86"\n' + text.format(_lines(GOOD)), encoding="utf-8")
    with pytest.raises(ProfileError, match=says):
        load_profile("board", [tmp_path])


def _lines(entry: dict[str, str]) -> str:
    return "\n".join(f"{key} = {value}" for key, value in entry.items())
