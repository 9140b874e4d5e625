"""What is tried. The experiment ``red/averaging`` is the module ``reprolib.experiments.red.averaging``: its name is its path.

Each is written down once for the chapter, the command line and the campaign, as a module with

* ``plan(scale)``, a generator of runs (:mod:`reprolib.lab.plan`) that returns ``(histories, notes)``, what the record keeps;
* ``verdicts(record)``: what the record says of the paper's claims;
* ``NAME``, and ``CHAPTER``: where the book shows it.

The first line of its docstring is what ``reprolib run`` says of it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

from reprolib.errors import UnknownName
from reprolib.lab.plan import Execute, follow
from reprolib.records.record import Record, check_scale


@cache
def experiments() -> dict[str, Any]:
    """All modules that are experiments, by name."""
    found = [import_module(m.name) for m in walk_packages(__path__, f"{__name__}.") if not m.ispkg]
    return {m.NAME: m for m in sorted(found, key=lambda m: m.__name__) if hasattr(m, "NAME") and hasattr(m, "plan")}


def module(name: str) -> Any:
    """The module of experiment ``name``."""
    if name not in experiments():
        raise UnknownName.among("experiment", name, experiments())
    return experiments()[name]


def conduct(name: str, scale: str, execute: Execute) -> Record:
    """The record of experiment ``name`` at ``scale``; ``execute`` does the runs (see :func:`reprolib.lab.execute`)."""
    plan = module(name).plan(check_scale(scale))
    histories, notes = follow(plan, execute)
    return Record.of(name, scale, histories, notes)


def verdicts_of(record: Record) -> list[dict[str, str]]:
    """What a record says of the claims that its experiment is about: claim, statement, task, criterion, verdict."""
    return module(record.name).verdicts(record)
