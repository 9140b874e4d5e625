"""``reprolib campaign``."""

from __future__ import annotations

import click


@click.command(
    "campaign", context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command(words: tuple[str, ...]) -> None:
    """Continue the paper-scale experiments for so many minutes (see --help)."""
    from reprolib.experiments.campaign import main

    main(words)
