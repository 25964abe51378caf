"""`compress report` on folders of earlier runs, `--json` and colour everywhere, and completion."""

import json
import os
import re
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from clicase import Case

from edgepress.compressor.cli.commands import COMMANDS, cli
from edgepress.compressor.report import manifest
from edgepress.compressor.report.record import load_report


def test_a_run_leaves_what_the_page_tells_of_single_layers(ran: Case) -> None:
    report = load_report(ran.out / "report.json")
    sites = {row.name for row in report.sites}
    assert {row.site for row in report.sensitivity} <= sites
    for row in report.sensitivity:
        assert len(row.values) == len(row.damage) > 0
        assert row.chosen is None or row.chosen < row.full
    turned = {
        site for step in report.recipe for field in ("widths", "ranks") for site, _ in step.get(field) or []
    }  # type: ignore[union-attr, misc]
    assert {row.site for row in report.sensitivity if row.chosen is not None and row.kind != "bits"} == turned
    assert report.layer_errors
    assert {row.site for row in report.layer_errors} <= sites
    page = (ran.out / "report.html").read_text("utf-8")
    for title in ("Sensitivity", "Layer by layer", "Sparsity"):
        assert f">{title}</h2>" in page


def test_the_page_is_drawn_again_and_the_manifest_knows_it(ran: Case) -> None:
    page = ran.out / "report.html"
    drawn = page.read_bytes()
    page.write_text("gone", encoding="utf-8")
    assert manifest.verify(ran.out) == ["report.html"]
    outcome = ran.run("report", ran.out)
    assert outcome.code == 0
    assert page.read_bytes() == drawn
    assert manifest.verify(ran.out) == []
    assert "smaller" in outcome.out
    assert str(page) in outcome.out


def test_the_record_alone_is_enough_and_out_leaves_the_folder_as_it_is(ran: Case) -> None:
    elsewhere = ran.folder / "mail" / "run.json"
    elsewhere.parent.mkdir()
    shutil.copy(ran.out / "report.json", elsewhere)
    before = manifest.hash_files(ran.out)
    assert ran.run("report", elsewhere, "--out", "pages/my.html", "--quiet").out == ""
    assert Path("pages/my.html").read_bytes() == (ran.out / "report.html").read_bytes()
    assert ran.run("report", elsewhere).code == 0
    assert (elsewhere.parent / "report.html").is_file()
    assert manifest.hash_files(ran.out) == before


def test_several_runs_stand_side_by_side(ran: Case) -> None:
    other = shutil.copytree(ran.out, ran.folder / "other")
    document = json.loads((other / "report.json").read_text("utf-8"))
    document["target"] = "x86"
    (other / "report.json").write_text(json.dumps(document), encoding="utf-8")
    outcome = ran.run("report", ran.out, other)
    assert outcome.code == 0
    assert len(re.findall(r"^\S+ +kept ", outcome.out, re.MULTILINE)) == 2
    text = Path("report.html").read_text("utf-8")
    assert "different targets: arm, x86" in text
    points = len(document["front"])
    assert text.count("<circle") == 4 * points
    for at in range(2):
        assert f'href="#/{at}/compressed/size_bytes"' in text
        assert f'id="/{at}/compressed/size_bytes"' in text
    assert json.loads(ran.run("report", ran.out, other, "--json").out)[1]["target"] == "x86"


def test_a_page_here_that_is_not_ours_stays(ran: Case) -> None:
    Path("report.html").write_text("<p>somebody else's</p>", encoding="utf-8")
    outcome = ran.run("report", ran.out, ran.out)
    assert outcome.code == 2
    assert "--out" in outcome.err
    assert Path("report.html").read_text("utf-8") == "<p>somebody else's</p>"
    assert ran.run("report", ran.out, ran.out, "--out", "report.html").code == 0
    assert ran.run("report", ran.out, ran.out).code == 0


def spoil(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Change the record in a folder."""

    def spoilt(folder: Path) -> None:
        document = json.loads((folder / "report.json").read_text("utf-8"))
        change(document)
        (folder / "report.json").write_text(json.dumps(document), encoding="utf-8")

    return spoilt


@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        (lambda folder: (folder / "report.json").unlink(), (), "Cannot read"),
        (lambda folder: (folder / "report.json").write_text("{"), (), "not valid JSON"),
        (spoil(lambda d: d.update(verdict="great")), (), "damaged at verdict"),
        (spoil(lambda d: d.update(surprise=1)), (), "damaged at surprise"),
        (spoil(lambda d: d.update(schema_version=7)), (), "schema version 7"),
        (spoil(lambda d: d["compressed"].update(size_bytes="<b>")), (), "compressed.size_bytes"),
        (shutil.rmtree, (), "Cannot read"),
        (lambda folder: None, ("--out", "model.onnx"), "no name of a page"),
        (lambda folder: (folder / "a.html").mkdir(), ("--out", "out/a.html"), "is a folder"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    ran: Case, change: Callable[[Path], None], words: tuple[str, ...], says: str
) -> None:
    model = ran.model.read_bytes()
    change(ran.out)
    outcome = ran.run("report", ran.out, *words)
    assert outcome.code == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.err.count("\n") == 2  # what is wrong, and what to do
    assert ran.model.read_bytes() == model


def test_without_a_folder_the_usage_is_told(case: Case) -> None:
    assert case.run("report").code == 2


@pytest.mark.parametrize("there", [True, False])
def test_the_browser_is_asked_for_the_page(ran: Case, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(shown.append(address)) or there)
    outcome = ran.run("report", ran.out, "--open")
    assert outcome.code == 0
    assert shown == [(ran.out / "report.html").resolve().as_uri()]
    assert ("no browser" in outcome.err) != there


def commands(
    group: click.Group = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda each: " ".join(each) if isinstance(each, tuple) else ""
)
def test_machines_can_read_what_every_command_says(path: tuple[str, ...], command: click.Command) -> None:
    """All but the one whose words are a script for a shell."""
    options = [option for parameter in command.params for option in parameter.opts]
    assert "--json" in options or path == ("completion",)


def test_replay_prints_the_record_for_machines(ran: Case) -> None:
    outcome = ran.run("replay", ran.out, "--out", "again", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["verdict"] == "kept"


def test_profiles_can_be_read_by_machines(case: Case) -> None:
    assert json.loads(case.run("devices", "show", "arm", "--json").out)["arch"] == "aarch64"


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
@pytest.mark.parametrize("several_runs", [False, True])
def test_colour_is_for_terminals_that_want_it(
    ran: Case, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool, several_runs: bool
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    outcome = ran.run("report", *[ran.out] * (2 if several_runs else 1))
    assert (re.search(r"\x1b\[[\d;]*3[1-6]m", outcome.out) is not None) == coloured


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_both_names(case: Case, shell: str) -> None:
    outcome = case.run("completion", shell)
    assert outcome.code == 0
    assert "_COMPRESS_COMPLETE" in outcome.out
    for name in ("compress", "edgepress"):
        assert re.search(rf"\b{name}\b", outcome.out)
    program = shutil.which(shell)
    if program is not None:
        options = ["--no-execute"] if shell == "fish" else ["-n"]
        subprocess.run([program, *options], input=outcome.out, text=True, check=True)


def test_completion_refuses_other_shells(case: Case) -> None:
    outcome = case.run("completion", "tcsh")
    assert outcome.code == 2
    assert "bash" in outcome.err


@pytest.mark.parametrize(
    ("typed", "offers", "files"),
    [
        ("", {"run", "report", "completion"}, True),
        ("rep", {"report", "replay"}, True),
        ("--bud", {"--budget"}, False),
        ("model.onnx --obj", {"--objective"}, False),
        ("model.onnx --objective ", {"latency", "size", "memory"}, False),
        ("model.onnx --data ", set(), True),
        ("report ", set(), True),
        ("devices sh", {"show"}, False),
    ],
)
def test_bash_gets_the_words_that_fit(typed: str, offers: set[str], files: bool) -> None:
    words = typed.split(" ")
    program = [sys.executable, "-c", "from edgepress.compressor.cli import main; main()"]
    variables = {
        "_COMPRESS_COMPLETE": "bash_complete",
        "COMP_WORDS": f"compress {typed}",
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        program, env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    found = [line.split(",", 1) for line in done.stdout.split()]
    plain = {word for kind, word in found if kind == "plain"}
    assert offers <= plain
    assert all(word.startswith(words[-1]) for word in plain)
    assert any(kind == "file" for kind, _ in found) == files
    kinds = [kind for kind, _ in found]
    assert "file" not in kinds[1:]  # what stands before a file is forgotten


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_by_its_name(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
