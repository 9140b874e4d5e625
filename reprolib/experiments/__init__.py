"""What is tried. The experiment ``red/averaging`` is the module ``reprolib.experiments.red.averaging``: its name is its path.

Each is written down once for the chapter, the command line and the campaign, as a module with

* ``plan(scale)``, a generator of runs (:mod:`reprolib.lab.plan`) that returns ``(histories, notes)``, what the record keeps;
* ``verdicts(record)``: what the record says of the paper's claims;
* ``NAME``, and ``CHAPTER``: where the book shows it.

The first sentence of its docstring is what ``reprolib run`` says of it. A plug-in (:mod:`reprolib.lab.plugins`) with
``NAME``, ``plan`` and ``verdicts`` is an experiment as well.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

from reprolib.bench.seconds import timed
from reprolib.errors import InvalidInput, UnknownName
from reprolib.lab import plugins
from reprolib.lab.plan import Execute, Plan, follow
from reprolib.records.record import SCALES, Record, check_scale


def experiments() -> dict[str, Any]:
    """All modules that are experiments, by name.

    Raises:
        InvalidInput: the name of a plug-in's experiment is taken, or is none.
    """
    plugins.load_installed()
    found = dict(_of_this_package())
    for module in plugins.modules():
        if not all(hasattr(module, name) for name in ("NAME", "plan", "verdicts")):
            continue
        if module.NAME in found:
            raise InvalidInput(
                f"{module.__name__} is called {module.NAME}, as {found[module.NAME].__name__} is: choose another name"
            )
        if not re.fullmatch(r"[\w-]+/[\w-]+", module.NAME):
            raise InvalidInput(
                f"{module.__name__} is called {module.NAME!r}: a name has two parts, as in 'red/cifar10'"
            )
        found[module.NAME] = module
    return found


@cache
def _of_this_package() -> dict[str, Any]:
    found = [import_module(m.name) for m in walk_packages(__path__, f"{__name__}.") if not m.ispkg]
    return {m.NAME: m for m in sorted(found, key=lambda m: m.__name__) if hasattr(m, "NAME") and hasattr(m, "plan")}


def module(name: str) -> Any:
    """The module of experiment ``name``."""
    known = experiments()
    if name not in known:
        raise UnknownName.among("experiment", name, known)
    return known[name]


def plan(name: str, scale: str) -> Plan:
    """The runs of experiment ``name`` at ``scale``.

    Raises:
        UnknownName: there is no such experiment, or no such scale.
        InvalidInput: the experiment has no such scale.
    """
    if not _has(name, check_scale(scale)):
        raise InvalidInput(f"{name} has no scale {scale}: use one of {', '.join(scales(name))}")
    return module(name).plan(scale)


def scales(name: str) -> list[str]:
    """The scales that an experiment has."""
    return [scale for scale in SCALES if _has(name, scale)]


def _has(name: str, scale: str) -> bool:
    """Whether the plan looks its scale up without a miss."""
    try:
        next(module(name).plan(scale))
    except KeyError as error:
        if error.args != (scale,):
            raise
        return False
    return True


def subject(module: Any) -> str:
    """The first sentence of a module's docstring, in one line.

    >>> from reprolib.experiments.red import cifar10
    >>> subject(cifar10)[:28]
    "RED's Figure 2 on CIFAR-10: "
    """
    paragraph = (module.__doc__ or "").strip().partition("\n\n")[0]
    return re.split(r"(?<=[.?!])\s", " ".join(paragraph.split()))[0].rstrip(".")


def conduct(name: str, scale: str, execute: Execute) -> Record:
    """The record of experiment ``name`` at ``scale``; ``execute`` does the runs (see :func:`reprolib.lab.execute`)."""
    histories, notes = follow(plan(name, scale), execute)
    return Record.of(name, scale, histories, notes)


def verdicts_of(record: Record) -> list[dict[str, str]]:
    """What a record says of the claims that its experiment is about: claim, statement, task, criterion, verdict.

    Its seconds are those of equal work (:mod:`reprolib.bench.seconds`) where the cost of its steps is published.
    """
    return module(record.name).verdicts(timed(record))
