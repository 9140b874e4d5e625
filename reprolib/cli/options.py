"""Options that several commands have."""

from __future__ import annotations

from typing import Any

import click


class Device(click.ParamType):
    """A device that is here."""

    name = "device"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Raise one of our errors for what cannot be used."""
        from reprolib.lab.device import check_device

        return check_device(value)


def _load(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> None:
    if names:
        from reprolib.lab.plugins import load_from_here

        load_from_here(*names)


device: Any = click.option("--device", type=Device(), default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
plugins: Any = click.option(
    "--import",
    multiple=True,
    expose_value=False,
    is_eager=True,
    envvar="REPROLIB_IMPORT",
    callback=_load,
    metavar="MODULE",
    help="a module with tasks, methods or experiments of your own; or name them in REPROLIB_IMPORT",
)
COUNT = click.IntRange(min=1)
