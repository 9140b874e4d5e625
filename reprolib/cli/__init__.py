"""The command line, ``reprolib GROUP COMMAND ...``: a thin group for each room, in a file of its own that is imported when it is asked for.

Whatever is wrong with the input, or raised by reprolib on purpose, ends in one line on standard error, without a traceback.
"""

from __future__ import annotations

from importlib import import_module

import click

from reprolib import __version__
from reprolib.cli.group import Group

GROUPS = {  # name: its line in --help, kept here so that --help imports nothing
    "bench": "Measure what things cost, as ratios within one process.",
    "campaign": "Work through the list of experiments, in pieces of any length.",
    "data": "List, download and verify data sets.",
    "records": "List, verify and import the published results.",
    "run": "Conduct an experiment and write its record; without a name, list them.",
}


class LazyGroup(Group):
    """A group that imports a sub-group when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the groups."""
        return sorted(GROUPS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the group that is asked for."""
        return import_module(f"{__name__}.{name}").command if name in GROUPS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the groups without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(GROUPS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="reprolib")
def main() -> None:
    """Five papers on curvature-based training: data, experiments and the book."""
