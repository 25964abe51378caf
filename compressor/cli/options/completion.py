"""`compress completion SHELL`: the script that lets a shell complete commands, options and files."""

import click
from click.shell_completion import get_completion_class

from edgepress.compressor.cli.options.shared import debug_option

PROGRAMS = ("compress", "edgepress")
"""Names under which the command is installed."""

VARIABLE = "_COMPRESS_COMPLETE"
"""By which the shell asks the program for words; click names it after the program, which calls itself so always."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@debug_option
@click.pass_context
def completion(context: click.Context, *, shell: str, debug: bool) -> int:
    """Print a script for a shell; have it read at every start:

    \b
    bash    echo 'eval "$(compress completion bash)"' >> ~/.bashrc
    zsh     echo 'eval "$(compress completion zsh)"' >> ~/.zshrc
    fish    compress completion fish > ~/.config/fish/completions/compress.fish
    """  # noqa: D301, D415  click wants the character itself, to leave the lines alone
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}.")
    root = context.find_root().command
    for program in PROGRAMS:
        click.echo(kind(root, {}, program, VARIABLE).source())
    return 0
