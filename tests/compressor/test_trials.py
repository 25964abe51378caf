"""Candidates are judged on samples that they were not fitted to, and built once."""

from dataclasses import dataclass, field
from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest

from edgepress.compressor.data import Dataset, open_data
from edgepress.compressor.estimate import Estimate
from edgepress.compressor.folds import Samples, Setup, decoded
from edgepress.compressor.metrics import answers, resolve_metric, unread
from edgepress.compressor.model import input_specs, to_bytes
from edgepress.compressor.passes import LowRank, Pass, Shrink, StoreWeights
from edgepress.compressor.protocols import Array, Runner
from edgepress.compressor.trials import Trials, make_trials
from edgepress.runtime.engines.ort import OrtEngine


@dataclass
class Counting:
    """onnxruntime that counts what it loads."""

    name: str = "onnxruntime"
    version: str = "?"
    loaded: list[bytes] = field(default_factory=list)

    def load(self, model: bytes | Path, threads: int = 1) -> Runner:
        assert isinstance(model, bytes)
        self.loaded.append(model)
        return OrtEngine().load(model, threads)


def net(seed: int = 0) -> tuple[ir.Model, Dataset]:
    """A wide net of little depth, and samples labelled by its own answers."""
    model = models.mlp(32, 4)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    labels = models.run(model, {"x": x})["y"].argmax(1)
    return model, open_data({"x": x, "y": labels}, input_specs(model))


def trials(folds: int = 2, seed: int = 0, engine: Counting | None = None, rows: int = 300) -> Trials:
    model, data = net()
    data = data.subset(np.arange(rows))
    batch = next(iter(data.batches(32)))
    outputs = models.run(model, batch.feeds)
    metric = resolve_metric("top1", outputs, batch)
    told = answers(outputs, batch)
    setup = Setup(engine or Counting(), metric, told, data, oracles.Board(), seed, (), batch=32, folds=folds)
    return make_trials(model, setup)


@pytest.mark.parametrize("folds", [1, 2, 3])
def test_every_sample_is_judged_by_a_model_that_has_not_seen_it(folds: int) -> None:
    made = trials(folds)
    judged = [np.concatenate([b.rows for b in f.judged.batches()]) for f in made.folds]
    index = [set(f.judged.dataset.index.tolist()) for f in made.folds]
    assert sum(map(len, judged)) == (75 if folds == 1 else 300)
    for fold, held in zip(made.folds, index, strict=True):
        assert fold.context.rows == 300 - len(held)
        fitted = list(fold.context.stream.batches())  # type: ignore[union-attr]
        rows = np.concatenate([b["x"] for b in fitted])
        own = np.concatenate([b.feeds["x"] for b in fold.judged.batches()])
        assert not {r.tobytes() for r in rows} & {r.tobytes() for r in own}
    assert made.full.rows == 300


def test_the_original_loses_nothing() -> None:
    found = trials().estimate(())
    assert found == Estimate(100.0, 0.0, 0.0, 300, chance_percent=found.chance_percent)
    assert found.within(0.0)


def test_less_is_worse_and_the_same_recipe_is_judged_once() -> None:
    engine = Counting()
    made = trials(engine=engine)
    scores = [made.estimate((Shrink((("h", width),)),)).drop_percent for width in (24, 8, 2)]
    assert scores == sorted(scores)
    assert scores[-1] > 5
    before = len(engine.loaded)
    again = made.estimate((Shrink((("h", 8),)),))
    assert len(engine.loaded) == before
    assert again.drop_percent == scores[1]


def test_steps_in_common_are_built_once() -> None:
    made = trials()
    fold = made.folds[0]
    first = made.built((Shrink((("h", 8),)),), fold)
    data = to_bytes(first)
    stored = made.built((Shrink((("h", 8),)), StoreWeights()), fold)
    split = made.built((Shrink((("h", 8),)), LowRank((("y", 2),))), fold)
    assert made.built((Shrink((("h", 8),)),), fold) is first
    assert to_bytes(first) == data  # what came after worked on copies
    assert len({data, to_bytes(stored), to_bytes(split)}) >= 2
    assert to_bytes(made.original) == to_bytes(net()[0])


def test_the_final_model_is_fitted_to_all_samples_and_tells_what_it_left() -> None:
    made = trials()
    recipe: tuple[Pass, ...] = (Shrink((("h", 8), ("nobody", 3))),)
    model, skipped = made.final(recipe)
    assert [s.site for s in skipped] == ["nobody"]
    assert to_bytes(model) != to_bytes(made.built(recipe, made.folds[0]))
    assert to_bytes(model) == to_bytes(trials().final(recipe)[0])


def test_a_final_model_does_not_hang_on_those_fitted_before_it() -> None:
    shrunk = Shrink((("h", 12),))
    structure: tuple[Pass, ...] = (shrunk, LowRank((("y", 2),)))
    recipe = (*structure, StoreWeights(weight_bits=4))
    made = trials()
    made.final((Shrink((("h", 8),)),))
    made.final((*structure, StoreWeights(weight_bits=3)))
    loaded = len(made.setup.engine.loaded)  # type: ignore[attr-defined]
    model, _ = made.final(recipe)
    again = len(made.setup.engine.loaded) - loaded  # type: ignore[attr-defined]
    alone = trials()
    begun = len(alone.setup.engine.loaded)  # type: ignore[attr-defined]
    assert to_bytes(model) == to_bytes(alone.final(recipe)[0])
    assert again < len(alone.setup.engine.loaded) - begun  # type: ignore[attr-defined]
    assert to_bytes(made.final(structure)[0]) == to_bytes(alone.final(structure)[0])


def test_equal_seeds_part_equally() -> None:
    one, same, other = trials(seed=1), trials(seed=1), trials(seed=2)
    parts = [t.folds[0].judged.dataset.index.tolist() for t in (one, same, other)]
    assert parts[0] == parts[1] != parts[2]


def test_half_of_the_folds_will_do_where_the_budget_is_far() -> None:
    engine = Counting()
    made = trials(4, engine=engine)
    recipe: tuple[Pass, ...] = (Shrink((("h", 1),)),)
    assert made.estimate(recipe, 1.0).rows == 150
    half = made.estimate(recipe, 1.0)
    assert made.estimate(recipe).rows == 300
    assert made.estimate(recipe, 1.0).rows == 150
    assert made.estimate(recipe, half.cautious).rows == 300
    assert made.estimate((), 2.0).rows == 150
    assert made.estimate((), 0.1).rows == 300  # one more row that changes would break that


def test_outputs_of_the_original_are_kept_only_while_small(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = trials()
    monkeypatch.setattr("edgepress.compressor.folds.REFERENCE_BYTES", 100)
    not_kept = trials()
    assert kept.folds[0].reference
    assert not not_kept.folds[0].reference
    recipe: tuple[Pass, ...] = (Shrink((("h", 8),)),)
    assert kept.estimate(recipe) == not_kept.estimate(recipe)


def test_small_samples_are_read_once_and_stay_the_same_rows(tmp_path: Path) -> None:
    model, _ = net()
    rng = np.random.default_rng(3)
    x = rng.normal(size=(90, 6)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=rng.integers(0, 4, 90))
    some = open_data(tmp_path / "rows.npz", input_specs(model)).subset([80, 2, 5])
    before = list(some.batches(2))
    inside = decoded(some)
    (tmp_path / "rows.npz").unlink()
    for one, other in zip(before, inside.batches(2), strict=True):
        assert np.array_equal(one.feeds["x"], other.feeds["x"])
        assert np.array_equal(one.labels, other.labels)


def test_samples_read_in_part_are_read_anew() -> None:
    _, data = net()
    samples = Samples(data, 64)
    next(samples.feeds())
    rows: list[Array] = [b["x"] for b in samples.feeds()]
    assert sum(map(len, rows)) == data.rows


def heads(held: bool) -> Trials:
    model = models.two_heads()
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    data = open_data({"x": x}, input_specs(model))
    batch = next(iter(data.batches(32)))
    outputs = models.run(model, batch.feeds)
    metric = resolve_metric("agreement", outputs, batch)
    others = unread(metric, outputs) if held else ()
    told = answers(outputs, batch)
    setup = Setup(OrtEngine(), metric, told, data, oracles.Board(), 0, (), batch=32, folds=2, others=others)
    return make_trials(model, setup)


def test_the_output_that_loses_most_counts_whichever_the_metric_reads() -> None:
    recipe = (LowRank((("z", 2),)),)
    free, held = heads(False), heads(True)
    assert free.estimate(recipe).drop_percent == 0
    found = held.estimate(recipe)
    before = models.run(models.two_heads(), feeds := {"x": found_rows(held)})["z"]
    after = models.run(held.final(recipe)[0], feeds)["z"]
    lost = 100 * np.mean(np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1))
    assert found.drop_percent == pytest.approx(lost, rel=0.3)  # final is fitted to all, the folds to half
    assert found.margin_percent > 0
    assert (found.score, found.rows) == (100.0, 80)
    assert held.estimate(()).drop_percent == 0


def found_rows(made: Trials) -> Array:
    """All samples of both folds."""
    return np.concatenate([batch["x"] for fold in made.folds for batch in fold.judged.feeds()])


def test_what_is_shipped_does_not_hang_on_what_was_fitted_before() -> None:
    recipe: tuple[Pass, ...] = (Shrink((("h", 24),)), StoreWeights(weight_bits=3))
    made = trials()
    first = to_bytes(made.final(recipe)[0])
    made.final((Shrink((("h", 25),)), StoreWeights(weight_bits=2)))
    made.final((StoreWeights(weight_bits=2),))
    assert to_bytes(made.final(recipe)[0]) == first
    assert to_bytes(trials().final(recipe)[0]) == first
