"""The wheel holds what the tree holds: no package, profile, template or schema is forgotten."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("compressor", "devices", "runtime")
LEFT_OUT = {".pyc", ".swp", ".nbi", ".nbc"}


def tree() -> set[str]:
    """Files of the packages, as the wheel names them."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file()]
    return {
        f"edgepress/{file.relative_to(ROOT).as_posix()}"
        for file in files
        if file.suffix not in LEFT_OUT
        and not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy: nothing is left behind in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in sorted(tree()):
        file = Path(name).relative_to("edgepress")
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_bytes((ROOT / file).read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(out)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return zipfile.ZipFile(found)


def test_the_wheel_holds_what_the_tree_holds(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == tree()


def test_the_wheel_installs_commands_and_licence(wheel: zipfile.ZipFile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = wheel.namelist()
    points = next(name for name in names if name.endswith("entry_points.txt"))
    said = wheel.read(points).decode()
    assert all(f"{command} = {where}" in said for command, where in project["scripts"].items())
    assert "[pytest11]\nedgepress = edgepress.compressor.cli.pytest_plugin" in said
    assert any(name.endswith("LICENSE") for name in names)


def test_nothing_is_installed_at_the_top_level(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgepress"}
