"""Help and the completion of shells come at once: what commands work with is loaded when they are run."""

import os
import subprocess
import sys
from collections.abc import Sequence

import click
import pytest

from edgepress.compressor import job
from edgepress.compressor.certify import choose
from edgepress.compressor.cli.commands import COMMANDS, cli
from edgepress.compressor.export.tflite.convert import BORDERS

LIBRARIES = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "pydantic", "rich", "scipy"}
"""Those that commands work with; each takes longer to load than all that help needs."""

SCRIPT = """
import sys
from edgepress.compressor.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules, file=sys.stderr)
"""


def loaded(words: Sequence[str], **environment: str) -> tuple[str, set[str]]:
    """What `compress WORDS` prints in a process of its own, and the packages that it has loaded by then."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        capture_output=True, text=True, check=True, env=os.environ | environment,
    )  # fmt: skip
    return done.stdout, {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "words", [[], ["run"], ["gate"], ["certify"], ["evolve"], ["devices"], ["devices", "add"], ["selftest"]]
)
def test_help_loads_no_library_that_commands_work_with(words: list[str]) -> None:
    said, known = loaded([*words, "--help"])
    assert said.startswith(" ".join(["Usage: compress", *words]))
    assert "click" in known
    assert not known & LIBRARIES


def test_neither_does_the_version() -> None:
    said, known = loaded(["--version"])
    assert "version" in said
    assert not known & LIBRARIES


def test_neither_does_the_completion_of_a_shell() -> None:
    said, known = loaded([], _COMPRESS_COMPLETE="bash_complete", COMP_WORDS="compress ", COMP_CWORD="1")
    assert {f"plain,{name}" for name in COMMANDS} <= set(said.split())
    assert not known & LIBRARIES


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_a_command_what_its_own_help_begins_with(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.get_short_help_str(limit=200).rstrip(".:") == COMMANDS[name].rstrip(".")


@pytest.mark.parametrize(
    ("command", "option", "known"),
    [("certify", "method", choose.METHODS), ("export", "io", BORDERS)],
)
def test_choices_are_those_that_the_work_knows(command: str, option: str, known: Sequence[str]) -> None:
    assert set(found(command, option).type.choices) == set(known)  # type: ignore[attr-defined]


def test_all_forms_of_a_result_are_written_unless_some_are_named() -> None:
    assert found("run", "formats").default == ",".join(job.FORMATS)


def found(command: str, option: str) -> click.Parameter:
    given = cli.get_command(click.Context(cli), command)
    assert given is not None
    return next(each for each in given.params if each.name == option)
