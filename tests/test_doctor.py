import dataclasses
import json

import pytest
from click.testing import CliRunner

from edgepress.compressor.cli import doctor as module
from edgepress.compressor.cli.doctor import Package, diagnose, notes, packages
from edgepress.compressor.cli.options.doctor import doctor
from edgepress.runtime.environment import Environment


@pytest.fixture(scope="module")
def found():
    return diagnose()


def run(monkeypatch, diagnosis, *arguments):
    monkeypatch.setattr(module, "diagnose", lambda: diagnosis)
    return CliRunner().invoke(doctor, arguments)


def test_a_whole_installation_is_fine(monkeypatch, found):
    result = run(monkeypatch, found)
    assert result.exit_code == 0, result.output
    for name in ("python", "edgepress", "onnx", "onnx-ir", "onnxruntime", "numpy", "scipy", "processor"):
        assert name in result.output
    assert "compress can run here" in result.output


def test_json_is_one_object(monkeypatch, found):
    result = run(monkeypatch, found, "--json")
    record = json.loads(result.output)
    assert result.exit_code == 0
    assert record["ok"] is True
    assert record["problems"] == []
    assert {"python", "edgepress", "onnx", "onnx-ir", "onnxruntime", "numpy", "scipy"} <= set(
        record["versions"]
    )
    assert record["extras"]["report"]["install"] == "pip install 'edgepress[report]'"
    assert record["environment"]["cores"] >= 1


def test_a_missing_extra_comes_with_its_command_and_is_no_failure(monkeypatch, found):
    lacking = dataclasses.replace(
        found, packages=(*found.packages, Package("nosuch", "cluster", "1.0", None))
    )
    result = run(monkeypatch, lacking)
    assert result.exit_code == 0
    assert "missing: nosuch" in result.output
    assert "pip install 'edgepress[cluster]'" in result.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"packages": (Package("onnx", "", "1.20", None),)}, "onnx is missing: pip install 'onnx>=1.20'"),
        ({"packages": (Package("onnx", "", "1.20", "1.9.1"),)}, "onnx 1.9.1 is too old"),
        ({"engine_error": "onnxruntime does not run here (bad ELF)"}, "bad ELF"),
        ({"version": None}, "edgepress is not installed as a package"),
    ],
)
def test_what_stops_compress_is_exit_2_with_its_remedy(monkeypatch, found, change, said):
    broken = dataclasses.replace(found, **change)
    result = run(monkeypatch, broken)
    assert result.exit_code == 2
    assert said in result.output
    result = run(monkeypatch, broken, "--json")
    assert result.exit_code == 2
    assert said in json.loads(result.output)["problems"][0]


def test_requirements_are_read_from_the_packages_own_metadata():
    lines = [
        "numpy>=2.0",
        'pillow>=11; extra == "images"',
        'no-such-package>=3; extra == "tflite"',
        'edgepress[report,images]; extra == "all"',
        'ruff>=0.14; extra == "dev"',
        "click",
    ]
    found = packages(lines)
    assert [(p.name, p.extra, p.least) for p in found] == [
        ("numpy", "", "2.0"),
        ("pillow", "images", "11"),
        ("no-such-package", "tflite", "3"),
        ("click", "", ""),
    ]
    assert [p.ok for p in found if not p.extra] == [True, True]
    assert found[2].installed is None


@pytest.mark.parametrize(
    ("installed", "least", "ok"),
    [("1.20", "1.20", True), ("1.20.0rc1", "1.20", True), ("1.9.9", "1.20", False), ("2.0", "", True)],
)
def test_versions_compare_by_number(installed, least, ok):
    assert Package("any", "", least, installed).ok is ok


def machine(arch, *features, governor=None, load=0.0):
    return Environment(arch, "cpu", features, 2, governor, load, "Linux", "3.11", {})


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (machine("x86_64", "avx2", "avx_vnni"), "weights use all 8 bits"),
        (machine("x86_64", "avx2"), "weights use 7 bits"),
        (machine("x86_64"), "7 bits, to be safe"),
        (machine("aarch64", "asimd", "asimddp"), "8-bit kernels are fast"),
        (machine("aarch64", "asimd"), "hardly faster"),
        (machine("riscv64"), "name a --target"),
        (machine("x86_64", governor="powersave"), "powersave"),
        (machine("x86_64", load=5.0), "noisy"),
    ],
)
def test_features_are_put_into_words(host, said):
    assert said in " ".join(notes(host))
