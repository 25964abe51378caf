"""CI may skip nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """import pytest

@pytest.mark.skipif(True, reason="no board here")
def test_marked(): pass

def test_skips_itself(): pytest.skip("no phone here")

@pytest.mark.xfail
def test_fails(): assert False

def test_passes(): pass
"""


@pytest.mark.parametrize(
    ("wanted", "outcome"), [("", "1 passed, 2 skipped"), ("1", "1 failed, 1 passed, 1 xfailed, 1 error")]
)
def test_a_skipped_test_fails_where_none_may_be(tmp_path: Path, wanted: str, outcome: str) -> None:
    (tmp_path / "test_it.py").write_text(TESTS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "unskipped", "-p", "no:cacheprovider", "-rsfE", "--rootdir", tmp_path],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "EDGEPRESS_NO_SKIPS": wanted},
    )  # fmt: skip
    assert done.returncode == bool(wanted)
    assert outcome in done.stdout
    assert "1 xfailed" in done.stdout
    assert "no board here" in done.stdout
    assert "no phone here" in done.stdout
