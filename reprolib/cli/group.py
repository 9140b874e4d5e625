"""Groups of commands whose errors are one line each, with a guess at what was meant."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from reprolib.errors import InvalidInput, ReprolibError, UnknownName


class Refused(click.ClickException):
    """One line, and exit status 2 if the input is to blame, else 1."""

    def __init__(self, message: str, *, input: bool):
        super().__init__(" ".join(message.split()))
        self.exit_code = 2 if input else 1  # type: ignore[misc]


@contextmanager
def one_line() -> Iterator[None]:
    """Inside, errors that people can do something about become one line."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise  # whose message is the help
    except click.UsageError as error:
        more = f" See `{error.ctx.command_path} --help`." if error.ctx else ""
        raise Refused(error.format_message() + more, input=True) from error
    except ReprolibError as error:
        raise Refused(str(error), input=isinstance(error, InvalidInput)) from error
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # nobody reads on, which is no error
        raise Refused(str(error), input=False) from error


class Group(click.Group):
    """A group whose errors are one line each."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Read the options."""
        with one_line():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with one_line():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or guess the one that was meant."""
        if args[0] not in (known := self.list_commands(ctx)) and not args[0].startswith("-"):
            raise UnknownName.among("command", args[0], known)
        return super().resolve_command(ctx, args)
