"""Every pass on every tiny model."""

from pathlib import Path

import conformance
import models
import models_core
import onnx_ir as ir
import oracles
import pytest

from edgepress.compressor import passes
from edgepress.compressor.model import to_bytes
from edgepress.compressor.passes.base import Context, Pass
from edgepress.compressor.recipe import from_json, to_json
from edgepress.compressor.shapes import infer_shapes


def inferred(name: str) -> ir.Model:
    """A tiny model with the shapes that `normalize` gives it."""
    model = models_core.ALL[name]()
    infer_shapes(model)
    return model


PICKED = (*models.ALL, *(name for name in models_core.CORE if not name.startswith("net_")))
NETS = ("net_excite", "net_slice", "net_multiplier", "net_transposed", "net_prelu", "net_dense_concat")


@pytest.fixture(autouse=True)
def packing_that_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else weights as few as these would never be packed, nor quantized."""
    monkeypatch.setattr("edgepress.compressor.numerics.packing.UNPACKING_BYTES", -(10**6))
    for module in ("dynamic", "weight_only"):
        monkeypatch.setattr(f"edgepress.compressor.passes.{module}.OVERHEAD", -(10**6))


every = pytest.mark.parametrize("kind", sorted(conformance.STRONG))


@every
@pytest.mark.parametrize("name", sorted((*PICKED, *NETS)))
def test_every_pass_keeps_its_promises(kind: str, name: str) -> None:
    model = inferred(name)
    conformance.check(model, conformance.STRONG[kind](model))


@every
@pytest.mark.parametrize("name", sorted(PICKED))
def test_neutral_parameters_change_nothing(kind: str, name: str) -> None:
    model = inferred(name)
    conformance.check_neutral(model, conformance.NEUTRAL[kind](model))


@every
@pytest.mark.parametrize("name", sorted(models.ALL))
def test_without_samples_passes_do_what_they_can(kind: str, name: str) -> None:
    model = inferred(name)
    conformance.check_without_samples(model, conformance.STRONG[kind](model))


@every
@pytest.mark.parametrize("name", sorted(models.ALL))
def test_nothing_that_the_user_leaves_is_touched(kind: str, name: str) -> None:
    model = inferred(name)
    conformance.check_left(model, conformance.STRONG[kind](model))


@every
def test_weights_in_a_file_beside_the_model_give_the_same_bytes(kind: str, tmp_path: Path) -> None:
    model = models.residual()
    infer_shapes(model)
    step = conformance.STRONG[kind](model)
    inside, _ = conformance.applied(step, model, oracles.context(model, 24))
    model_too = models.external(model, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    outside, _ = conformance.applied(step, model_too, oracles.context(model_too, 24))
    assert oracles.close(
        models.run(inside, models.feeds(model)), models.run(to_bytes(outside), models.feeds(model)), 1e-6
    )
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "kind", ["shrink", "low rank", "separable", "prune", "quantize", "threshold, by energy"]
)
@pytest.mark.parametrize(
    "then",
    ["shrink", "low rank", "separable", "prune", "quantize", "store", "threshold, by channel", "cluster"],
)
def test_passes_run_after_one_another_in_any_order(kind: str, then: str) -> None:
    """Each read back from its recipe entry, and run as onnx-ir runs passes."""
    model = models.residual()
    infer_shapes(model)
    context = oracles.context(model, 24)
    changed = model.clone()
    for make in (conformance.STRONG[kind], conformance.STRONG[then]):
        (step,) = from_json(to_json((make(changed),)))
        bound = step.bind(context)
        before = to_bytes(changed)
        result = bound(changed)
        assert result.modified == bound.outcome.modified == (to_bytes(changed) != before)
        conformance.sound(model, changed)


def test_every_registered_pass_is_tested() -> None:
    model = models.mlp()
    assert {type(make(model)) for make in conformance.STRONG.values()} == set(passes.ALL)
    assert {type(make(model)) for make in conformance.NEUTRAL.values()} == set(passes.ALL)
    assert all(step.kind for step in passes.ALL)


def test_a_pass_that_says_nothing_of_itself_is_refused() -> None:
    with pytest.raises(TypeError, match="does not say"):
        Pass().apply(models.mlp(), Context())


def test_a_context_gives_the_same_numbers_again() -> None:
    context = Context(seed=3)
    assert context.rng().integers(0, 10**9, 5).tolist() == context.rng().integers(0, 10**9, 5).tolist()
