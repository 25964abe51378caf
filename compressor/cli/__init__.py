"""The command line: `compress MODEL …` and its sub-commands; the only package that sees all others."""

import signal
import sys
from types import FrameType

import click

from edgepress.compressor.cli.doctor import doctor
from edgepress.compressor.cli.inspect import inspect
from edgepress.compressor.cli.replay import replay
from edgepress.compressor.cli.run import run
from edgepress.compressor.errors import EdgepressError, nearest


class DefaultGroup(click.Group):
    """A group whose first command is meant where the first word is none of them: `compress model.onnx`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take `compress MODEL …` for `compress run MODEL …`."""
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let options come before the model, too."""
        if args and args[0].startswith("-") and args[0] not in ("--help", "--version"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup, no_args_is_help=True, context_settings={"max_content_width": 100})
@click.version_option(package_name="edgepress")
def cli() -> None:
    """Compress a trained ONNX model for a small device, within an accuracy budget.

    \b
    compress MODEL [OPTIONS]     the main job; see `compress run --help` for its options

    \b
    Exit codes: 0 kept · 1 broken · 2 bad input or usage · 3 device trouble
                4 cannot tell (no samples, or too few) · 130 interrupted
    """


for command in (run, inspect, replay, doctor):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every error that a user can mend is one message and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    debug = "--debug" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
    except EdgepressError as error:
        if debug:
            raise
        fail(str(error), error.hint)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        fail("Interrupted; nothing was written.", "")
        sys.exit(130)
    except click.NoSuchOption as error:
        known = [o for p in (error.ctx.command.params if error.ctx else ()) for o in p.opts]
        fail(f"No such option: {error.option_name}", nearest(error.option_name, known))
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        fail("Interrupted; nothing was written.", "")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, hint: str) -> None:
    """One message on stderr: what is wrong, and what to do."""
    click.echo(f"compress: {message}" + (f"\n  {hint}" if hint else ""), err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


__all__ = ["cli", "main"]
