"""Training: it learns, chance is repeatable, checkpoints go on, images move, degrees are told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepress.compressor.errors import UsageError
from edgepress.compressor.evolve import checkpoint, compiled, kernels, plain
from edgepress.compressor.evolve.augment import Augmentation
from edgepress.compressor.evolve.degrees import degrees, shape_of
from edgepress.compressor.evolve.layers import SparseLayer
from edgepress.compressor.evolve.samples import LEAST, Samples, Scaling
from edgepress.compressor.evolve.schedules import METHODS, Method, Schedule
from edgepress.compressor.evolve.topology import Topology, erdos_renyi
from edgepress.compressor.evolve.training import Settings, Training

SETTINGS = Settings((20, 60, 50, 3), epsilon=4, epochs=4, batch=16, seed=5)


def blobs(rows: int, seed: int) -> Samples:
    """Three classes around three points, with features of very different size."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    centres = np.random.default_rng(0).normal(size=(3, 20))
    values = centres[labels] + random.normal(0, 0.8, (rows, 20))
    return Samples((values * np.logspace(-2, 2, 20) + 7).astype(np.float32), labels)


def training(settings: Settings = SETTINGS, module: object = plain) -> Training:
    return Training(settings, blobs(400, 1), blobs(200, 2), module)  # type: ignore[arg-type]


def state(of: Training) -> list[npt.NDArray[np.float32]]:
    return [array for layer in of.layers for array in (layer.weights, layer.velocity, layer.bias)]  # type: ignore[attr-defined]


def same(one: Training, two: Training) -> bool:
    pairs = zip(state(one), state(two), strict=True)
    return all(a.shape == b.shape and (a == b).all() for a, b in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_counts(method: Method) -> None:
    run = training(replace(SETTINGS, schedule=Schedule(method), epochs=8))
    began = [layer.connections for layer in run.layers]
    for _ in range(7):
        run.epoch()
        assert [layer.connections for layer in run.layers] == began
    topology = [layer.topology.keys.tolist() for layer in run.layers if isinstance(layer, SparseLayer)]
    last = run.epoch()
    assert last.accuracy > 85
    assert last.loss < run.history[0].loss
    evolves = method not in ("fixprob", "dense")
    assert (sum(began) > last.connections) == evolves  # the last epoch removes, and adds nothing
    assert run.layers[-1].connections == began[-1]  # the output layer never evolves
    if method == "fixprob":
        assert topology == [layer.topology.keys.tolist() for layer in run.layers]  # type: ignore[attr-defined]


def test_the_last_epoch_may_keep_all() -> None:
    run = training(replace(SETTINGS, last="keep"))
    counts = {run.epoch().connections for _ in range(4)}
    assert len(counts) == 1
    assert run.history[-1].zeta == 0


def test_chance_is_repeatable_and_seeded() -> None:
    one, two, other = training(), training(), training(replace(SETTINGS, seed=6))
    for run in (one, two, other):
        run.epoch()
    assert same(one, two)
    assert not same(one, other)


def test_threads_do_not_change_a_bit() -> None:
    runs = []
    for threads in (1, 2):
        kernels.choose("numba", threads)
        runs.append(training(module=compiled))
        runs[-1].epoch()
    assert same(*runs)


def test_both_kernels_learn_the_same() -> None:
    one, two = training(module=compiled), training(module=plain)
    assert one.epoch().loss == pytest.approx(two.epoch().loss, rel=1e-4)
    for a, b in zip(one.layers, two.layers, strict=True):
        assert isinstance(a, SparseLayer)
        assert isinstance(b, SparseLayer)
        if (a.topology.keys == b.topology.keys).all():  # else a tie was broken the other way
            np.testing.assert_allclose(a.weights, b.weights, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("method", ["set", "dense"])
def test_a_checkpoint_goes_on_to_the_same_bits(method: Method, tmp_path: Path) -> None:
    settings = replace(SETTINGS, schedule=Schedule(method))
    whole, first, second = (training(settings) for _ in range(3))
    for _ in range(4):
        whole.epoch()
    for _ in range(2):
        first.epoch()
    path = tmp_path / "c.npz"
    checkpoint.save(path, first.layers, first.state())
    checkpoint.restore(path, second.layers)
    second.go_on(checkpoint.facts_of(path))
    for _ in range(2):
        second.epoch()
    assert same(whole, second)
    assert [e.loss for e in whole.history] == [e.loss for e in second.history]
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def _set_targets(arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    arrays["targets0"] = arrays["targets0"] + np.int32(1000)


def _objects(arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    arrays["weights0"] = np.array([{}], object)


def _repeat(arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    arrays["targets0"] = np.zeros_like(arrays["targets0"])


def _shorten(arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    arrays["weights1"] = arrays["weights1"][:-1]


def _lose(arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    del arrays["bias1"]


def _widen(arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    arrays["velocity0"] = arrays["velocity0"].astype(np.float64)


@pytest.mark.parametrize("spoil", [_set_targets, _objects, _repeat, _shorten, _lose, _widen])
def test_a_spoilt_checkpoint_is_refused(spoil: object, tmp_path: Path) -> None:
    run, path = training(), tmp_path / "c.npz"
    checkpoint.save(path, run.layers, run.state())
    with np.load(path) as file:
        arrays = dict(file)
    spoil(arrays)  # type: ignore[operator]
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="checkpoint"):
        checkpoint.restore(path, run.layers)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x04N."])
def test_what_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(UsageError, match="damaged"):
        checkpoint.facts_of(tmp_path / "c.npz")


def test_scaling_centres_and_bounds() -> None:
    rows = np.random.default_rng(0).normal(5, [1.0, 2.0, 1e-6, 0.0], (1500, 4)).astype(np.float32)
    scaling = Scaling.of(rows)
    out = scaling.apply(rows, np.empty((4, 1500), np.float32))
    np.testing.assert_allclose(out.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(out[:2].std(axis=1), 1, atol=1e-3)
    usual = np.sqrt(np.mean(rows.std(axis=0).astype(np.float64) ** 2))
    np.testing.assert_allclose(scaling.factor[2:], 1 / (LEAST * usual), rtol=1e-3)


@given(
    st.integers(0, 2**32),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([(5, 4), (1, 5, 4), (3, 2, 7)]),
)
def test_images_move_as_pixel_by_pixel(seed: int, shift: int, flip: bool, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(seed).integers(1, 255, (6, *shape), np.uint8)
    found = Augmentation(shift, flip).apply(images, np.random.default_rng(seed))
    height, width = shape[-2:]
    for before, after in zip(
        images.reshape(6, -1, height, width), found.reshape(6, -1, height, width), strict=True
    ):
        possible = []
        for mirrored in (False, True) if flip else (False,):
            for down in range(-shift, shift + 1):
                for right in range(-shift, shift + 1):
                    moved = np.zeros_like(before)
                    for i in range(height):
                        for j in range(width):
                            if 0 <= i - down < height and 0 <= j - right < width:
                                moved[:, i, j] = before[:, i - down, j - right]
                    possible.append(moved[..., ::-1] if mirrored else moved)
        assert any((after == each).all() for each in possible)


def test_degrees_count_connections() -> None:
    topology = Topology.of(np.array([0, 1, 3, 5], np.int64), 3, 3)
    before, behind = degrees(topology)
    assert before.tolist() == [2, 2, 0]
    assert behind.tolist() == [2, 1, 1]


def test_a_power_law_is_known_from_a_random_graph() -> None:
    random = np.random.default_rng(0)
    scale_free = shape_of(np.minimum(random.zipf(2.5, 3000), 300))
    assert scale_free is not None
    assert scale_free.verdict == "power law"
    assert scale_free.exponent == pytest.approx(2.5, abs=0.15)
    for side in degrees(erdos_renyi(3000, 3000, 20, random)):
        found = shape_of(side)
        assert found is not None
        assert found.verdict == "exponential"


def test_too_few_neurons_tell_nothing() -> None:
    assert shape_of(np.arange(20)) is None
    assert shape_of(np.full(500, 7)) is None
