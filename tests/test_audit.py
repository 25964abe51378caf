"""`make audit`: what pip-audit says is told, and nothing said is not taken for nothing found."""

import pytest

import audit

SKIPPED = {
    "name": "numpy",
    "skip_reason": "Dependency not found on PyPI and could not be audited: numpy (2.0)",
}
CLEAN = {"name": "click", "version": "8.2", "vulns": []}
OWN = {"name": "edgepress", "skip_reason": "Dependency not found on PyPI"}
BAD = {
    "name": "pillow",
    "version": "9.0",
    "vulns": [{"id": "PYSEC-2022-10", "fix_versions": ["9.0.1"], "aliases": [], "description": ""}],
}


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ([CLEAN, OWN], 0, "1 packages audited, 0 vulnerabilities"),
        ([CLEAN, BAD], 1, "pillow 9.0: PYSEC-2022-10, mended in 9.0.1"),
        ([CLEAN, SKIPPED], 0, "do not know them: numpy"),
        ([SKIPPED, OWN], 0, "skipped: nothing was audited"),
        ([], 0, "skipped: nothing was audited"),
    ],
)
def test_what_is_told(packages: list[dict[str, object]], code: int, says: str) -> None:
    found, lines = audit.told(audit.read({"dependencies": packages, "fixes": []}))
    assert found == code
    assert says in "\n".join(lines)


def test_no_answer_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(audit, "ENVIRONMENT", tmp_path)  # where pip-audit is not
    assert [audit.ask(service) for service in audit.SERVICES] == [None, None]
    code, lines = audit.told(None)
    assert (code, len(lines)) == (0, 1)
