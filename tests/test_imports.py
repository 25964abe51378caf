"""Every module can be imported first, by itself."""

import importlib.util
import pkgutil
import subprocess
import sys

import pytest

from edgepress import compressor, devices, runtime


def modules() -> list[str]:
    found = []
    for package in (compressor, devices, runtime):
        found.append(package.__name__)
        found += [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    return sorted(found)


ONE_BY_ONE = """
import sys
failed = []
for name in sys.argv[1:]:
    for known in [m for m in sys.modules if m.split(".")[0] == "edgepress"]:
        del sys.modules[known]
    try:
        __import__(name)
    except ImportError as error:
        failed.append(f"{name}: {error}")
sys.exit("\\n".join(failed) or 0)
"""


def test_modules_import_in_any_order() -> None:
    """Each as the first of ours, in a process that keeps only other people's libraries."""
    script = [sys.executable, "-W", "ignore", "-c", ONE_BY_ONE, *modules()]
    found = subprocess.run(script, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("name", ["compressor", "runtime", "devices"])
def test_nothing_of_ours_takes_a_bare_name(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is None or "edgepress" not in str(spec.origin)
