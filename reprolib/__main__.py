"""The command line: ``reprolib GROUP COMMAND ...`` or ``python -m reprolib``.

Each group of commands lives beside the code that it drives and is imported only when it is asked for. Whatever reprolib
raises on purpose ends in one line on standard error and exit status 1, without a traceback.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

try:
    import click
except ModuleNotFoundError:
    sys.exit("the command line needs click: pip install 'reprolib[data]'")

from reprolib import __version__
from reprolib.errors import ReprolibError

# group: (where it is, as "module:attribute", and its line in --help, kept here so that --help imports nothing)
GROUPS: dict[str, tuple[str, str]] = {
    "bench": ("reprolib.lab.cli:bench", "Measure what curvature costs."),
    "campaign": ("reprolib.lab.cli:campaign", "Continue the paper-scale experiments for so many minutes."),
    "data": ("reprolib.tasks.data.cli:data", "List, download and verify data sets."),
    "records": ("reprolib.lab.cli:records", "List, verify and import the published results."),
    "run": ("reprolib.lab.cli:run", "Conduct an experiment and write its record."),
}


class LazyGroup(click.Group):
    """A group that imports a sub-group when it is used, and prints our errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the groups."""
        return sorted({*super().list_commands(ctx), *GROUPS})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the group that is asked for."""
        if name not in GROUPS:
            return super().get_command(ctx, name)
        module, _, attribute = GROUPS[name][0].partition(":")
        return getattr(import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the groups without importing them."""
        with formatter.section("Commands"):
            names = self.list_commands(ctx)
            own = self.commands  # commands of `main` itself, if any
            formatter.write_dl([(n, GROUPS[n][1] if n in GROUPS else own[n].get_short_help_str()) for n in names])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; our errors become one line."""
        try:
            return super().invoke(ctx)
        except ReprolibError as error:
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="reprolib")
def main() -> None:
    """Five papers on curvature-based training: data, experiments and the book."""


if __name__ == "__main__":
    main(prog_name="reprolib")
