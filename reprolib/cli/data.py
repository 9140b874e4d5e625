"""``reprolib data list | fetch | verify | where``."""

from __future__ import annotations

import time

import click

from reprolib.cli.group import Group
from reprolib.errors import DataError
from reprolib.tasks.data.catalog import CATALOG, Entry
from reprolib.tasks.data.store import data_folder, entry, missing


@click.group("data", cls=Group)
def command() -> None:
    """List, download and verify data sets.

    Files are in $REPROLIB_DATA, by default in your cache folder: see `reprolib data where`.
    """


@command.command("list")
def list_() -> None:
    """Show the data sets: sizes, shape, classes, present or not, licence, source."""
    header = ("name", "train", "test", "shape", "classes", "here", "licence")
    rows = [
        (
            e.name,
            f"{e.sizes[0]:,}",
            f"{e.sizes[1]:,}",
            " x ".join(map(str, e.shape)),
            str(e.classes),
            _here(e),
            e.licence,
        )
        for e in CATALOG.values()
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [c.rjust(w) if i in (1, 2, 4) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        click.echo("  ".join(cells).rstrip())
    click.echo("\nsources")
    for e in CATALOG.values():
        click.echo(f"  {e.name.ljust(widths[0])}  {e.source}")
    click.echo(f"\nfolder: {data_folder()}")


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def fetch(names: tuple[str, ...]) -> None:
    """Download what is absent of the data sets NAME... and verify all of it."""
    from reprolib.tasks.data.fetch import fetch as download

    for item in [entry(name) for name in names]:  # all names are looked up before anything is downloaded
        new = download(item.name)
        _check(item.name, f"{len(new)} new, {_count(len(item.files))}")


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
def verify(names: tuple[str, ...]) -> None:
    """Read the data sets NAME... and compare them with their published checksums; without a name, all that are here."""
    chosen = [entry(name) for name in names] or [item for item in CATALOG.values() if _here(item) == "yes"]
    bad = 0
    for item in chosen:
        try:
            _check(item.name, _count(len(item.files)))
        except DataError as error:  # the other sets are still worth checking
            click.echo(f"Error: {error}", err=True)
            bad += 1
    if bad:
        raise click.exceptions.Exit(1)


@command.command()
def where() -> None:
    """Print the data folder."""
    click.echo(data_folder())


def _check(name: str, files: str) -> None:
    from reprolib.tasks.data.dataset import load

    start = time.perf_counter()
    found = load(name, download=False)
    seconds = time.perf_counter() - start
    click.echo(f"{name}: {files}, verified: {len(found.train):,} + {len(found.test):,} samples ({seconds:.1f} s)")


def _count(files: int) -> str:
    return "comes with scikit-learn" if files == 0 else "1 file" if files == 1 else f"{files} files"


def _here(item: Entry) -> str:
    """yes, no, or how many of the files are here."""
    total = len(item.files)
    present = total - len(missing(item, data_folder()))
    return "yes" if present == total else f"{present}/{total}" if present else "no"
