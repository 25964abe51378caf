"""Fixtures that several test files share."""

from pathlib import Path

import pytest
from clicase import Case, make_case

from edgepress.compressor.cli import host


@pytest.fixture
def case(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Case:
    """A model with samples in the working directory; memory is not measured."""
    monkeypatch.setattr(host, "memory_peak_bytes", lambda *_, **__: 1)
    monkeypatch.chdir(tmp_path)
    return make_case(tmp_path, capsys)


@pytest.fixture
def functions(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module in the working directory with what the test file's FUNCTIONS says."""
    name = f"{request.module.__name__}_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(request.module.FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return name
