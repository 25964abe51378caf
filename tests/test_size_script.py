"""The bars of `benchmarks/size.py`: what misses one is named, stored, and ends the script with 1."""

import json
from pathlib import Path
from typing import Any

import pytest
import size


def run(**changed: Any) -> dict[str, Any]:
    return {"exit_code": 0, "seconds": 10.0, "peak_above_mb": 500.0, **changed}


@pytest.mark.parametrize(
    ("name", "found", "short"),
    [
        ("large", {"mb_per_second": 60.0, "runs": [run()]}, []),
        ("large", {"mb_per_second": 12.0, "runs": [run()]}, ["12.0 MB/s, not 50"]),
        ("large", {"mb_per_second": 60.0, "runs": [run(peak_above_mb=1200.0)]}, ["1200 MB, not under 1000"]),
        ("nodes", {"runs": [run(), run(seconds=61.0)]}, ["61 s, not under 60"]),
        ("samples", {"runs": [run(), run(peak_above_mb=549.0)]}, []),
        ("samples", {"runs": [run(peak_above_mb=560.0), run()]}, ["peaks 60 MB apart, not under 50"]),
        ("wide", {"runs": [run(seconds=900.0)]}, []),
        ("wide", {"runs": [run(exit_code=70)]}, ["exit code 70"]),
        ("wide", {"runs": [{"exit_code": -9, "seconds": 1.0}]}, ["exit code -9"]),
    ],
)
def test_what_misses_a_bar_is_named(name: str, found: dict[str, Any], short: list[str]) -> None:
    assert size.shortfalls(name, found) == short


@pytest.mark.parametrize(("seconds", "met"), [(59.0, True), (61.0, False)])
def test_bars_are_stored_and_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, met: bool
) -> None:
    out = tmp_path / "size.json"
    monkeypatch.setitem(size.CASES, "nodes", lambda *_: {"runs": [run(seconds=seconds)]})
    monkeypatch.setattr("sys.argv", ["size.py", "--only", "nodes", "--out", str(out)])
    assert size.main() == (not met)
    case = json.loads(out.read_text())["cases"]["nodes"]
    assert (case["met"], bool(case["short"])) == (met, not met)
