"""`compress report DIR …`: the page of an earlier run drawn anew, or of several side by side."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from edgepress.compressor.errors import OutputError, UsageError
from edgepress.compressor.outdir import write_file
from edgepress.compressor.report import html, several
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report.console import summary
from edgepress.compressor.report.record import FILE_NAME, Report, dump_report, load_report

PAGE = "report.html"
ENDINGS = (".html", ".htm")


def report(
    *, folders: tuple[Path, ...], out: Path | None, opened: bool, as_json: bool, quiet: bool, debug: bool
) -> int:
    """Do it, and return the exit code; arguments as the options in `options/report.py`."""
    places = [folder / FILE_NAME if folder.is_dir() else folder for folder in folders]
    runs = [(str(folder), load_report(place)) for folder, place in zip(folders, places, strict=True)]
    alone = len(runs) == 1
    page = out or (places[0].parent / PAGE if alone else Path(PAGE))
    _check(page, ours=alone or out is not None)
    try:
        text = html.render(runs[0][1]) if alone else several.render(runs)
    except html.MissingExtra as error:
        raise UsageError(str(error)) from error
    write_file(page, text, "Name another file with --out.")
    if alone and out is None:
        _note(page)
    if as_json:
        click.echo(_records([record for _, record in runs]), nl=False)
    elif not quiet:
        console = Console()
        if alone:
            summary(runs[0][1], console, page)
        else:
            several.overview(runs, console)
            click.echo(f"\nPage  {page}")
    if opened and not webbrowser.open(page.resolve().as_uri()):
        click.echo(f"warning: no browser was found to show {page}", err=True)
    return 0


def _check(page: Path, ours: bool) -> None:
    """Refuse what is no place for a page; where it is not said to be `ours`, any other page, too."""
    if page.suffix.lower() not in ENDINGS:
        raise OutputError(f"--out: {page} is no name of a page.", f"Let it end in {ENDINGS[0]}.")
    if page.is_dir():
        raise OutputError(f"--out: {page} is a folder.", "Name a file.")
    if (
        not ours
        and page.is_file()
        and html.SIGNATURE not in page.read_bytes()[:4096].decode(errors="replace")
    ):
        raise OutputError(f"{page} was not written by edgepress.", "Name another file with --out.")


def _note(page: Path) -> None:
    """Have the run's manifest know the new page, if it knew the old one."""
    folder = page.parent
    if manifests.files_of(folder) is None:
        return
    known = manifests.read(folder)
    if PAGE in known.files:
        files = {**known.files, PAGE: manifests.sha256_file(page)}
        manifests.write(known.model_copy(update={"files": files}), folder)


def _records(records: Sequence[Report]) -> str:
    """The record of one run as the run printed it; of several a JSON list."""
    if len(records) == 1:
        return dump_report(records[0])
    return "[" + ",\n".join(dump_report(each).rstrip("\n") for each in records) + "]\n"
