"""The pruning cycles: gradients, what is taken out, and that they end with few units and no more loss."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cycles
from cycle_nets import AutoEncoder, Summation, Weights, weights_of, widths_of


class Small(Summation):
    """A few units, and rows in thousands."""

    units, rows, batch, start_epochs, cycle_epochs = 30, 20_000, 100, 4, 4


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mnist") / "mnist.npz"
    rng = np.random.default_rng(0)
    np.savez(
        file, **{name: rng.integers(0, 256, (40, 1, 28, 28), np.uint8) for name in ("x_train", "x_test")}
    )
    return file


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 6), st.sampled_from([0.0, 0.3]))
def test_gradients_are_those_of_finite_differences(seed: int, units: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    w: Weights = {
        name: rng.standard_normal(shape)  # type: ignore[misc]  # in double precision here
        for name, shape in {"w1": (2, units), "bias_1": (units,), "w2": (units, 1), "b2": (1,)}.items()
    }
    x = rng.uniform(-1, 1, (20, 2))
    y = x.sum(axis=1, keepdims=True)
    z = x @ w["w1"] + w["bias_1"]
    x, y = x[(abs(z - threshold) > 1e-3).all(axis=1)], y[(abs(z - threshold) > 1e-3).all(axis=1)]
    if not len(x):
        return

    def squared(held: Weights) -> float:
        z = x @ held["w1"] + held["bias_1"]
        return float(np.square(np.where(z > threshold, z, 0) @ held["w2"] + held["b2"] - y).mean())

    found = Summation.gradients(w, x, y, threshold)
    for name, gradient in found.items():
        assert gradient.shape == w[name].shape
        for at in np.ndindex(gradient.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = {key: value.copy() for key, value in w.items()}
                moved[name][at] += step
                sides.append(squared(moved))
            assert float(gradient[at]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4, abs=1e-6)


def test_units_that_never_fire_are_left_out_to_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Small(0)
    weights = net.start(0)
    weights["bias_1"][[0, 9]] = -30
    found = net.train(weights, 2, 0)
    monkeypatch.setattr(net, "fires", lambda w, threshold: np.ones(len(w["bias_1"]), bool))
    expected = net.train(weights, 2, 0)
    for name in weights:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert (found["w1"] != weights["w1"]).any(axis=0).sum() == 28


class Brief(Summation):
    """As wide as the real one, with fewer rows."""

    rows, batch, start_epochs = 100_000, 100, 2


def test_seeds_learn_that_would_not_with_larger_weights_at_the_start() -> None:
    found = {}
    for seed, deviation in ((0, 0.7), (1, 0.7), (1, 1.0)):
        net = Brief(seed)
        net.deviation = np.float32(deviation)
        found[seed, deviation] = cycles.loss(net, net.train(net.start(seed), net.start_epochs, seed), 0.0)
    constant = float(np.var(Brief(0).test_targets))
    assert Brief.deviation == np.float32(0.7)
    assert max(found[0, 0.7], found[1, 0.7]) < 0.1 * constant
    assert found[1, 1.0] > 0.9 * constant


def test_what_never_fires_goes_and_the_outputs_stay() -> None:
    net = Small(0)
    weights = net.start(0)
    weights["bias_1"][[3, 7, 20]] = -50
    before = cycles.loss(net, weights, 0.0)
    left = cycles.pruned(net, weights, cycles.Variant())
    assert widths_of(left) == [27]
    assert set(left) == set(weights)
    assert cycles.loss(net, left, 0.0) == pytest.approx(before, rel=1e-5)
    high = cycles.pruned(net, weights, cycles.Variant(threshold=1.5))
    h = net.train_rows @ weights["w1"] + weights["bias_1"]
    assert widths_of(high) == [int((h > 1.5).any(axis=0).sum())]


def test_zeros_are_counted_behind_the_activation() -> None:
    net = Small(0)
    weights = net.start(0)
    z = net.test_rows @ weights["w1"] + weights["bias_1"]
    for threshold in (0.0, 0.5):
        expected = 100 * float((z <= threshold).mean())
        assert cycles.zeros_percent(net, weights, threshold) == pytest.approx(expected, abs=0.01)


def test_outliers_go_too() -> None:
    net = Small(0)
    weights = net.start(0)
    weights["w1"][:], weights["bias_1"][:] = 0.5, 2
    weights["bias_1"][4], weights["w1"][:, 4] = 0.02, 0.001
    assert widths_of(cycles.pruned(net, weights, cycles.Variant())) == [30]
    assert widths_of(cycles.pruned(net, weights, cycles.Variant(outliers=True))) == [29]


@pytest.mark.parametrize("distorted", [False, True])
def test_regularised_cycles_end_with_few_units_and_no_more_loss(distorted: bool) -> None:
    net = Small(1)
    net.penalty = 0.1
    net.cycle_epochs = 10
    variant = replace(cycles.VARIANTS["regularised"], distorted=distorted)
    first = net.train(net.start(1), net.start_epochs, 1)
    found = cycles.run_cycles(net, variant, first, 1)
    assert sum(found["widths"]) <= 5 < widths_of(first)[0]
    assert found["loss"] <= cycles.loss(net, first, 0.0)
    assert [row["widths"] for row in found["cycles"]] == sorted(
        (row["widths"] for row in found["cycles"]), reverse=True
    )


def test_distortion_is_less_where_weights_vary_more() -> None:
    rng = np.random.default_rng(0)
    wide, equal = np.float32([-9, 9]), np.full(2, 3, np.float32)
    moved = Summation.distorted({"wide": wide, "equal": equal}, rng)
    assert np.array_equal(moved["wide"], wide)
    assert (moved["equal"] != equal).all()
    assert (abs(moved["equal"] - equal) <= 1).all()


def test_dead_channels_of_the_auto_encoder_go_with_all_that_is_theirs(mnist: Path) -> None:
    net = AutoEncoder(mnist, Path("python"))
    weights = net.start(0)
    assert widths_of(weights) == [32, 64, 32]
    for place, dead in ((1, [0, 5]), (2, [1, 2, 3]), (3, [31])):
        weights[f"beta{place}"][dead] = -100
    before = cycles.loss(net, weights, 0.0)
    left = cycles.pruned(net, weights, cycles.Variant())
    assert widths_of(left) == [30, 61, 31]
    shapes = {name: left[name].shape for name in ("w1", "w2", "w3", "w4", "gamma2", "var3")}
    assert shapes == {
        "w1": (30, 1, 3, 3), "w2": (61, 30, 3, 3), "w3": (61, 31, 3, 3), "w4": (31, 1, 3, 3),
        "gamma2": (61,), "var3": (31,),
    }  # fmt: skip
    assert cycles.loss(net, left, 0.0) == pytest.approx(before, rel=1e-4)
    assert weights_of(net.model(left)).keys() == weights.keys()


def test_a_second_run_goes_on_where_the_first_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cycles, "Summation", Small)
    words = [
        "cycles.py",
        "--nets",
        "sum",
        "--seeds",
        "0",
        "--out",
        str(tmp_path / "cycles.json"),
        "--variants",
    ]
    for variants, trained in ((["vanilla"], 1), (["vanilla", "outliers"], 1), (["vanilla"], 0)):
        monkeypatch.setattr("sys.argv", [*words, *variants])
        capsys.readouterr()
        assert cycles.main() == 0
        assert capsys.readouterr().err.count("seed 0") == trained
    rows = json.loads((tmp_path / "cycles.json").read_bytes())["results"]
    assert [row["variant"] for row in rows] == ["vanilla", "outliers"]
    assert all(len(row["cycles"]) >= 1 and row["start_widths"] == [30] for row in rows)


def test_the_table_has_a_line_for_each_run() -> None:
    row = {
        "net": "sum",
        "variant": "vanilla",
        "seed": 0,
        "widths": [1],
        "start_loss": 0.5,
        "loss": 0.25,
        "cycles": [1],
    }
    assert cycles.table([row]).splitlines()[2:] == ["| sum | vanilla | 0 | 1 | 0.5 | 0.25 | 1 |"]
