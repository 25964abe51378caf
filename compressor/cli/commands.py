"""The group of commands, and how errors are told."""

import contextlib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import click
from click.shell_completion import CompletionItem

from edgepress.compressor.errors import EdgepressError, nearest
from edgepress.compressor.printable import showable

COMMANDS = {
    "run": "Compress MODEL for a device, within a budget; write model, report and manifest to a folder.",
    "bench": "Time MODELS, .onnx, .tflite or sparse .npz, against the first of them.",
    "gate": "Let CANDIDATE pass if it keeps what BASELINE has, fail it if it does not, and say so where rows are "
    "too few.",
    "certify": "Zero weights of MODEL under a proved limit, or bound how far CANDIDATE can be from MODEL.",
    "inspect": "Show inputs, outputs, parameters, MACs and bytes per site, and what can be compressed.",
    "export": "Write MODEL in another form, with the numbers that it has.",
    "evolve": "Train a perceptron with few connections, which move after every epoch; write it as ONNX and sparse.",
    "report": "Draw the page of an earlier run again from its report.json; of several DIRs one page, side by side.",
    "passes": "List the passes of a recipe (`compress MODEL --recipe FILE`) with their fields.",
    "devices": "List device profiles (`--target NAME`) and what costs on each rest on.",
    "selftest": "Run networks whose right answer is known exactly, and name every operator that computes something "
    "else.",
    "replay": "Rebuild the result that MANIFEST describes: the same bytes on the same machine, else exit 2.",
    "doctor": "Show versions, engines and processor features, and how to get what is missing.",
    "completion": "Print a script for a shell; have it read at every start.",
}
"""Each in a module of its name in `options`; and how its own help begins, known without loading it."""

_NO_THREAD = "can't start new thread"
"""What Python says where memory or the number of processes is at its limit."""

_LOOP = "Symlink loop from"
"""What `Path.resolve` says, before Python 3.13, where links lead to themselves."""


class DefaultGroup(click.Group):
    """A group whose first command is meant where the first word is none of them: `compress model.onnx`.

    A command's options are loaded when it is asked for, and its work when it is run: that takes a second or two.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"edgepress.compressor.cli.options.{cmd_name}")
        return cast("click.Command", getattr(module, cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List all commands, without loading one."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take `compress MODEL …` for `compress run MODEL …`."""
        if args and args[0] not in COMMANDS:
            args = ["run", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let options come before the model, too."""
        if args and args[0].startswith("-") and args[0] not in ("--help", "--version"):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands, and what `run` takes: a model, and its options."""
        if incomplete.startswith("-"):
            run = self.get_command(ctx, "run")
            of_run = run.shell_complete(ctx, incomplete) if run is not None else []
            return [*super().shell_complete(ctx, incomplete), *of_run]
        # The file comes first: bash's script forgets what stands before it.
        return [CompletionItem(incomplete, type="file"), *super().shell_complete(ctx, incomplete)]


@click.group(cls=DefaultGroup, no_args_is_help=True, context_settings={"max_content_width": 100})
@click.version_option(package_name="edgepress")
def cli() -> None:
    """Compress a trained ONNX model for a small device, within an accuracy budget.

    \b
    compress MODEL [OPTIONS]     the main job; see `compress run --help` for its options

    \b
    Exit codes: 0 kept · 1 broken, or a limit missed · 2 bad input or usage · 3 device trouble
                4 cannot tell (no samples, or too few) · 70 an error of the tool · 130 interrupted
    """  # noqa: D301  click wants the character itself, to leave a paragraph's lines alone


def execute(words: Sequence[str]) -> int:
    """Run the command that `words` name, and return the exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    try:
        code = cli.main(list(words), prog_name="compress", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except EdgepressError as error:
        return _told(error, words)
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.NoSuchOption as error:
        return _fail(
            f"No such option: {error.option_name}", nearest(error.option_name, _options(error.ctx)), 2
        )
    except click.BadParameter as error:
        return _fail(error.format_message(), _hint(error), 2)
    except click.ClickException as error:
        return _fail(error.format_message(), _meant(words), error.exit_code)
    except BrokenPipeError:
        # `compress inspect … | head`: the reader has what it wanted; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, MemoryError, RuntimeError) as error:
        if (known := _of_the_system(error)) is None:
            raise
        return _told(known, words)


def _of_the_system(error: OSError | MemoryError | RuntimeError) -> EdgepressError | None:
    """What the system refused, as the user's to mend; None for what else there is."""
    from edgepress.compressor.cli.troubles import memory_error, system_error

    if isinstance(error, OSError):
        return system_error(error)
    if _LOOP in str(error):
        return system_error(OSError(errno.ELOOP, str(error)))
    return memory_error() if isinstance(error, MemoryError) or _NO_THREAD in str(error) else None


def _told(error: EdgepressError, words: Sequence[str]) -> int:
    if "--debug" in words:
        traceback.print_exc()
    return _fail(str(error), error.hint, error.exit_code)


def _options(context: click.Context | None) -> Iterable[str]:
    return [option for parameter in (context.command.params if context else ()) for option in parameter.opts]


def _hint(error: click.BadParameter) -> str:
    """The nearest of the choices, where there are some."""
    kind = error.param.type if error.param is not None else None
    given = error.message.split("'")[1] if error.message.count("'") > 1 else ""
    if isinstance(kind, click.Choice) and given:
        return nearest(given, [str(choice) for choice in kind.choices])
    return f"See `{error.ctx.command_path if error.ctx is not None else 'compress'} --help`."


def _meant(words: Sequence[str]) -> str:
    """The nearest command, where the first word is neither one nor a file."""
    first = words[0] if words else "-"
    if first.startswith("-") or first in COMMANDS or Path(first).exists():
        return "See `compress --help`."
    return nearest(first, COMMANDS)


def _fail(message: str, hint: str, code: int) -> int:
    """One message on stderr: what is wrong, and what to do."""
    message = " ".join(message.split())
    text = message if message.endswith((".", "!", "?")) else f"{message}."
    with contextlib.suppress(OSError):  # where stderr cannot be written to, the code tells all the same
        click.echo(showable(f"compress: {text}" + (f"\n  {hint}" if hint else "")), err=True)
    return code
