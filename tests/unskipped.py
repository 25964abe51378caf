"""Where EDGEPRESS_NO_SKIPS is set, as in CI, a test that would be skipped fails: what it needs must be there."""

import os
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports of skipped tests as failures; expected failures stay what they are."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("EDGEPRESS_NO_SKIPS"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"may not be skipped here: {reason}"
    return report
