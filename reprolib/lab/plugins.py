"""Somebody else's tasks, methods and experiments: modules that register them when they are imported.

They are named by ``--import`` or ``$REPROLIB_IMPORT``, by :func:`load`, or by an installed package under the entry-point
group ``reprolib.plugins``. Worker processes get their names and import them before they train.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from reprolib.errors import InvalidInput, ReprolibError

GROUP = "reprolib.plugins"
_LOADED: list[str] = []


def load(*names: str) -> None:
    """Import plug-ins, unless they are here already.

    Raises:
        InvalidInput: there is no such module.
        ReprolibError: it cannot be imported.
    """
    for name in names:
        if name in _LOADED:
            continue
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise _broken(name, error) from error
            raise InvalidInput(f"no module {name!r} to import: install it, or name its folder in PYTHONPATH") from error
        except Exception as error:
            raise _broken(name, error) from error
        _LOADED.append(name)


def known() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What another process needs to know the same plug-ins: their names, and the folders where modules are found."""
    return loaded(), tuple(filter(None, sys.path))


def know(names: Sequence[str], folders: Sequence[str]) -> None:
    """Load what :func:`known` said in another process, even if this one began before there was such a folder.

    Raises: as :func:`load`.
    """
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    load(*names)


def load_from_here(*names: str) -> None:
    """As :func:`load`, and modules in the working directory are found, too."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    load(*names)


@cache
def load_installed() -> None:
    """Import the plug-ins that installed packages announce."""
    load(*sorted(point.value for point in entry_points(group=GROUP)))


def loaded() -> tuple[str, ...]:
    """Names of the plug-ins that are here, in the order in which they came."""
    return tuple(_LOADED)


def modules() -> list[ModuleType]:
    """The plug-ins, and of one that is a package whatever it has imported of itself."""
    return [
        module
        for name, module in sorted(sys.modules.items())
        if any(f"{name}.".startswith(f"{plugin}.") for plugin in _LOADED)
    ]


def _broken(name: str, error: Exception) -> ReprolibError:
    return ReprolibError(
        f"the plug-in {name!r} cannot be imported ({type(error).__name__}: {error}): try `python -c 'import {name}'`"
    )
