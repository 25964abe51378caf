"""`compress devices`: the list, and a profile of this machine, with a sweep of no time."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clicase import Case

from edgepress.compressor.cli import devices as module
from edgepress.compressor.cli import host, targets
from edgepress.compressor.report.record import load_report
from edgepress.devices import opening, profile
from edgepress.devices.profile import LOCAL, load_profile
from edgepress.devices.table import Kernel, KernelTable
from edgepress.runtime.environment import describe
from edgepress.runtime.record import EngineError


def kernel(kind: str, precision: str) -> Kernel:
    return Kernel(kind, precision, (4.0,), (8.0,), (1.0, 16.0), (((400.0, 6400.0),),))


TABLE = KernelTable(
    (
        *(kernel(kind, p) for kind in ("conv", "product", "add") for p in ("fp32", "int8")),
        kernel("node", "fp32"),
    )
)


@pytest.fixture
def own(case: Case, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's profiles; sweeps are over at once."""
    folder = case.folder / "settings" / "devices"
    for each in (targets, module):
        monkeypatch.setattr(each, "user_profiles", lambda: [folder])
    sweeping(monkeypatch, lambda spec, **_: TABLE)
    return folder


def sweeping(monkeypatch: pytest.MonkeyPatch, sweep: Callable[..., Any]) -> None:
    monkeypatch.setattr(module, "sweep", sweep)


def listed(case: Case) -> dict[str, dict[str, Any]]:
    found = case.run("devices", "--json")
    assert found.code == 0, found.err
    return {row["name"]: row for row in json.loads(found.out)}


def test_the_list_says_what_costs_rest_on(case: Case, own: Path) -> None:
    rows = listed(case)
    assert rows["cortex-a72"]["costs"] == rows["cortex-a72"]["predicted_by"] == "counted"
    assert (rows["local"]["costs"], rows["local"]["predicted_by"]) == ("measured", "rates")
    assert rows["cortex-a53"]["arch"] == "aarch64"
    said = case.run("devices").out
    assert all(name in said for name in rows)
    assert "measured here; rates" in said


def test_list_is_a_word_of_its_own(case: Case, own: Path) -> None:
    for words in ((), ("--json",)):
        found = case.run("devices", "list", *words)
        assert found.code == 0, found.err
        assert found.out == case.run("devices", *words).out


def test_the_list_says_how_a_device_is_reached_and_whether_it_can_be_used_now(
    case: Case, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.mkdir(parents=True)
    (own / "shelf.toml").write_text('base = "arm"\naddress = "board"\n', encoding="utf-8")
    (own / "phone.toml").write_text(
        'base = "android-arm64"\nbenchmark = "./benchmark_model"\n', encoding="utf-8"
    )
    monkeypatch.setattr(opening.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(opening, "prepared", lambda: False)
    rows = listed(case)
    found = {name: (row["transport"], row["usable"]) for name, row in rows.items()}
    assert found["local"] == ("local", True)
    assert found["shelf"] == ("ssh", None)
    assert "devices check shelf" in rows["shelf"]["use"]
    assert found["phone"] == ("adb", None)
    assert found["android-arm64"] == ("adb", False)
    assert "--benchmark" in rows["android-arm64"]["use"]
    assert found["cortex-a72"] == ("qemu", None)
    assert rows["cortex-a72"]["source"] == "emulated"
    monkeypatch.setattr(opening, "prepared", lambda: True)
    assert listed(case)["cortex-a72"]["usable"] is True
    monkeypatch.setattr(opening.shutil, "which", lambda name: None)
    rows = listed(case)
    assert rows["shelf"]["usable"] is rows["phone"]["usable"] is False
    assert "no ssh" in rows["shelf"]["use"]


def test_a_target_that_makes_8_bit_products_in_another_way_is_predicted_with_a_warning(
    case: Case, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(describe(), arch="x86_64", features=("avx2", "fma"))
    for each in (profile, host):
        monkeypatch.setattr(each, "describe", lambda: plain)
    monkeypatch.setattr(profile, "architecture", lambda: "x86_64")
    told = case.compress("--recipe", recipe(case), target="x86")
    assert "x86-avx2" in told.err
    assert load_report(case.out / "report.json").cost_kind == "predicted"
    refused = case.run("bench", "model.onnx", "--device", "x86")
    assert (refused.code, "x86-avx2" in refused.err) == (3, True)
    told = case.compress("--recipe", recipe(case), "--force", target="x86-avx2")
    assert "warning: x86" not in told.err
    assert load_report(case.out / "report.json").cost_kind == "measured"


def test_a_profile_made_here_is_a_target_with_a_table(case: Case, own: Path) -> None:
    made = case.run("devices", "profile", "--name", "board")
    assert made.code == 0, made.err
    assert "--target board" in made.out
    assert [path.name for path in own.iterdir()] == ["board.toml"]
    spec = load_profile("board", [own])
    assert (spec.table, spec.source) == (TABLE, "measured")
    assert spec.macs_per_ns_fp32 == pytest.approx(4 * 8 * 16 / 6400)
    assert spec.node_overhead_ns == 400
    row = listed(case)["board"]
    assert (row["costs"], row["predicted_by"]) == ("measured", "table")


def test_without_a_name_it_is_what_local_means_here_from_then_on(case: Case, own: Path) -> None:
    assert load_profile(LOCAL, [own]).table is None
    assert case.run("devices", "profile", "--quiet").out == ""
    assert load_profile(LOCAL, [own]).table == TABLE
    assert listed(case)["local"]["predicted_by"] == "table"
    text = (own / "local.toml").read_text("utf-8")
    cpu = describe().cpu.lower()
    (own / "local.toml").write_text(text.replace(f'cpu = "{cpu}"', 'cpu = "another machine"'), "utf-8")
    assert load_profile(LOCAL, [own]).table is None, "a file from another machine is not this machine's"


def test_a_report_says_that_a_table_told(case: Case, own: Path) -> None:
    """A device that is not here: predicted from its kernels, else from its rates."""
    assert case.run("devices", "profile", "--out", "board.toml").code == 0
    text = Path("board.toml").read_text("utf-8")
    arch = next(a for a in ("x86_64", "aarch64") if f'arch = "{a}"' not in text)
    Path("board.toml").write_text(
        text.replace(f'arch = "{describe().arch}"', f'arch = "{arch}"'), encoding="utf-8"
    )
    told = case.compress("--recipe", recipe(case), target="board.toml")
    assert told.code == 0, told.err
    report = load_report(case.out / "report.json")
    assert (report.cost_kind, report.latency_source) == ("predicted", "table")
    assert "latency, predicted by table" in told.out
    assert "kernels that were measured on the device" in (case.out / "report.html").read_text("utf-8")
    told = case.compress("--recipe", recipe(case), "--force")
    report = load_report(case.out / "report.json")
    assert (report.cost_kind, report.latency_source) == ("predicted", "counted")


def recipe(case: Case) -> Path:
    path = case.folder / "recipe.toml"
    path.write_text('[[pass]]\nkind = "quantize"\n', encoding="utf-8")
    return path


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineError("no such kernel")])
def test_a_sweep_that_does_not_end_leaves_the_old_profile(
    case: Case, own: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    case.run("devices", "profile")
    before = (own / "local.toml").read_bytes()

    def broken(spec: Any, **_: Any) -> KernelTable:
        raise error

    sweeping(monkeypatch, broken)
    found = case.run("devices", "profile")
    assert found.code == (130 if isinstance(error, KeyboardInterrupt) else 3)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == {"local.toml": before}


def test_ctrl_c_while_writing_leaves_nothing_behind(
    case: Case, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    assert case.run("devices", "profile").code == 130
    assert list(own.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--name", "../up"), "is no name of a profile"),
        (("--name", "a", "--out", "b.toml"), "exclude each other"),
        (("--out", "b.json"), "is no TOML file"),
        (("--out", "notes.toml"), "is no profile; it is not overwritten"),
        (("--time-limit", "0"), "--time-limit"),
    ],
)
def test_bad_usage_is_refused_before_any_sweep(
    case: Case, own: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    sweeping(monkeypatch, lambda spec, **_: pytest.fail("swept"))
    Path("notes.toml").write_text("title = 'mine'", encoding="utf-8")
    found = case.run("devices", "profile", *words)
    assert found.code == 2
    assert says in found.err
    assert Path("notes.toml").read_text("utf-8") == "title = 'mine'"


def test_a_damaged_profile_is_listed_as_such(case: Case, own: Path) -> None:
    own.mkdir(parents=True)
    (own / "bad.toml").write_text('base = "x86"\nkernel = 3', encoding="utf-8")
    assert listed(case)["bad"]["costs"] is None
    found = case.run("devices")
    assert found.code == 0
    assert "damaged" in found.out


def test_an_own_file_is_overwritten_by_out(case: Case, own: Path) -> None:
    assert case.run("devices", "profile", "--out", "b.toml").code == 0
    assert case.run("devices", "profile", "--out", "b.toml").code == 0
