"""Recipes that the user writes: each kind of pass goes through the whole job, and the report tells of it."""

import models
import numpy as np
import onnx
import oracles
import pytest
from clicase import Case

from edgepress.compressor.model import load, to_proto
from edgepress.compressor.report.record import Report, load_report

PARAMETERS = {
    "kind = 'shrink'\nwidths = [['h', 8]]": {"width": 8},
    "kind = 'low_rank'\nranks = [['h', 2]]": {"rank": 2},
    "kind = 'prune'\namounts = [['h', 0.25]]": {"sparsity": 0.25},
    "kind = 'threshold_relu'\nthresholds = [['a', 0.1]]": {"threshold": 0.1},
    "kind = 'quantize'\nbits = [['h', 4]]": {"bits": 4},
    "kind = 'store'\nbits = [['h', 3]]\nmin_elements = 1": {"bits": 3},
    "kind = 'cluster'\nbits = 6\nsite_bits = [['h', 2]]\nmin_elements = 1": {"bits": 2},
}
"""A pass with a parameter for one site, and that parameter in the report."""


@pytest.mark.parametrize(("entry", "wanted"), PARAMETERS.items())
def test_report_tells_of_a_site_of_its_own(case: Case, entry: str, wanted: dict[str, object]) -> None:
    (case.folder / "recipe.toml").write_text(f"[[pass]]\n{entry}\n")
    assert case.compress(recipe=case.folder / "recipe.toml").code in (0, 1)
    report = load_report(case.out / "report.json")
    steps = [step.parameters for step in report.steps if step.site and step.kept]
    told = [{name: each[name] for name in wanted} for each in steps if wanted.keys() <= each.keys()]
    assert told == [wanted]


@pytest.mark.parametrize(
    ("entry", "treatment", "operator"),
    [
        ("kind = 'dynamic'", "8-bit arithmetic", "MatMulInteger"),
        (
            "kind = 'dynamic'\nweight_bits = 4",
            "8-bit arithmetic on weights stored in 4 bits",
            "MatMulInteger",
        ),
        ("kind = 'weight_only'", "weights stored in 4 bits", "MatMulNBits"),
        ("kind = 'weight_only'\nbits = 8\nblock_size = 16", "weights stored in 8 bits", "MatMulNBits"),
    ],
)
def test_operators_of_the_runtime_go_through_the_whole_job_and_in_again(
    case: Case, entry: str, treatment: str, operator: str
) -> None:
    onnx.save(to_proto(models.mlp(512, 64)), case.model)
    (case.folder / "recipe.toml").write_text(f"[[pass]]\n{entry}\nsites = ['^y$']\n")
    assert case.compress(recipe=case.folder / "recipe.toml", metric="agreement").code in (0, 1)
    report = load_report(case.out / "report.json")
    assert {row.name: row.treatment for row in report.sites} == {"h": "as it was", "y": treatment}
    assert report.compressed.macs == report.baseline.macs
    assert report.compressed.parameters == report.baseline.parameters
    assert report.compressed.size_bytes < report.baseline.size_bytes / 2
    result = case.out / "model.onnx"
    assert operator in {node.op_type for node in load(result).graph}
    inspected = case.run("inspect", result)
    assert inspected.code == 0
    assert operator in inspected.out
    words = (
        result,
        "--data",
        case.folder / "calib.npz",
        "--target",
        "arm",
        "--out",
        case.folder / "again",
        "--metric",
        "agreement",
    )
    again = case.run(*words)
    assert again.code in (0, 1, 4), again.err


def recipe(case: Case, text: str) -> Report:
    (case.folder / "recipe.toml").write_text(text)
    assert case.compress(recipe=case.folder / "recipe.toml", budget=90).code in (0, 1)
    return load_report(case.out / "report.json")


CUT = "[[pass]]\nkind = 'threshold_relu'\nthresholds = [['a', 0.4]]\ncompensate = false\n"


def test_report_tells_of_zeros_by_layer_where_a_recipe_makes_them(case: Case) -> None:
    prune = (
        "[[pass]]\nkind = 'prune'\nsparsity = 0.5\ncompensate = false\nmin_elements = 1\nsites = ['^y$']\n"
    )
    found = {(row.of, row.site): row for row in recipe(case, CUT + prune).zeros}
    with np.load(case.folder / "test.npz") as rows:
        a = oracles.values(models.mlp(32), {"x": rows["x"]}, ["a"])["a"]
    assert {key for key in found if key[0] == "activations"} == {("activations", "a")}
    activation = found["activations", "a"]
    assert activation.before == pytest.approx(100 * (a == 0).mean())
    assert activation.after == pytest.approx(100 * (a <= 0.4).mean())
    assert activation.after > activation.before + 10
    assert activation.values == a.size
    assert (found["weights", "y"].before, found["weights", "y"].after) == (0, 50)
    assert found["weights", "h"].after == 0
    page = (case.out / "report.html").read_text()
    assert f"{activation.before:.1f} %" in page
    assert f"{activation.after:.1f} %" in page


def test_what_is_shrunk_away_counts_as_zero_and_what_is_packed_is_unpacked(case: Case) -> None:
    rest = "[[pass]]\nkind = 'shrink'\nwidths = [['h', 8]]\n[[pass]]\nkind = 'prune'\nmin_elements = 1\n"
    last = "[[pass]]\nkind = 'store'\nmin_elements = 1\nweight_bits = 8\n"
    found = {(row.of, row.site): row for row in recipe(case, CUT + rest + last).zeros}
    assert 75 <= (found["activations", "a"].after or 0) < 100
    assert found["weights", "y"].after == pytest.approx(50, abs=7)
    others = recipe(case, "[[pass]]\nkind = 'store'\n").zeros
    assert [(row.of, row.site) for row in others] == [("activations", "a")]


def test_report_tells_how_far_each_layer_is_from_the_original(case: Case) -> None:
    """Against both files run on the same rows, all values shown."""
    found = {
        row.site: row.error_percent
        for row in recipe(case, "[[pass]]\nkind = 'store'\nweight_bits = 4\nmin_elements = 1\n").layer_errors
    }
    with np.load(case.folder / "test.npz") as rows:
        feeds = {"x": rows["x"][:16]}
    before = oracles.values(models.mlp(32), feeds, ["h", "y"])
    result = load(case.out / "model.onnx")
    names = [
        node.outputs[0].name or "" for node in result.graph if node.op_type == "Gemm"
    ]  # shortened in the file
    after = oracles.values(result, feeds, names)
    for name, value, now in zip(before, before.values(), (after[each] for each in names), strict=True):
        wanted = 100 * np.linalg.norm(now - value) / np.linalg.norm(value)
        assert 0.1 < wanted < 50
        assert found[name] == pytest.approx(wanted, rel=1e-4)


def test_removed_channels_are_no_error_of_a_layer(case: Case) -> None:
    shrink = "[[pass]]\nkind = 'shrink'\nwidths = [['h', 8]]\ncompensate = false\n"
    found = {row.site: row.error_percent for row in recipe(case, shrink).layer_errors}
    assert found["h"] is None or found["h"] < 1e-3  # those that are left are what they were
    assert (found["y"] or 0) > 1
