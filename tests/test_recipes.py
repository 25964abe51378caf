"""Recipes that the user writes: each kind of pass goes through the whole job, and the report tells of it."""

import pytest
from clicase import Case

from edgepress.compressor.report.record import load_report

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
