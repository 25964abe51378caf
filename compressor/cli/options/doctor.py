"""What `compress doctor` takes; its work is loaded when it is run."""

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show versions, engines and processor features, and how to get what is missing.

    Exit code 0 when compress can run here, 2 when it cannot.
    """
    from edgepress.compressor.cli.doctor import doctor as work

    context.exit(work(as_json=as_json))
