"""Fixtures that several test files share."""

import shutil
import signal
from pathlib import Path

import pytest
from clicase import Case, make_case
from unskipped import pytest_runtest_makereport

from edgepress.compressor.cli import host

__all__ = ["pytest_runtest_makereport"]


def pytest_configure() -> None:
    """Ctrl-C means what it does at a terminal, also where a background job of a shell ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test works out is found by another; and no target is emulated unless a test is about that."""
    monkeypatch.setenv("EDGEPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("EDGEPRESS_NO_DEVICE", "1")


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


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves its run for the others."""
    return tmp_path_factory.mktemp("earlier") / "out"


@pytest.fixture
def ran(case: Case, earlier: Path) -> Case:
    """With an earlier run in `out`."""
    if not earlier.exists():
        assert case.compress("--budget", 5).code == 0
        shutil.copytree(case.out, earlier)
    else:
        shutil.copytree(earlier, case.out)
    return case
