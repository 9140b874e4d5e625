"""The experiments by name. Each is a module, written down once for the notebook, the command line and the GPU machine:

* ``plan(scale)``, a generator: it yields lists of runs that may be done in any order, is sent their histories, and returns
  ``(histories, notes)``, what the record keeps. A later list may depend on earlier histories, as tuned settings do.
* ``verdicts(record)``: what the record says of the paper's claims;
* ``NAME``, and ``CHAPTER``: where the book shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from reprolib.errors import UnknownName
from reprolib.lab.record import Record, check_scale
from reprolib.lab.run import Run
from reprolib.lab.train import History

Plan = Generator[list[Run], list[History], Any]
Execute = Callable[[Sequence[Run]], list[History]]

EXPERIMENTS = {
    "red/figure2": "reprolib.lab.experiments.red_figure2",
    "red/cifar10": "reprolib.lab.experiments.red_cifar10",
    "red/averaging": "reprolib.lab.experiments.red_averaging",
    "red/annealing": "reprolib.lab.experiments.red_annealing",
    "red/batches": "reprolib.lab.experiments.red_batches",
    "red/momentum": "reprolib.lab.experiments.red_momentum",
    "red/regularisation": "reprolib.lab.experiments.red_regularisation",
    "red/comparison": "reprolib.lab.experiments.red_comparison",
    "red/cifar100": "reprolib.lab.experiments.red_cifar100",
    "red/hyperconvergence": "reprolib.lab.experiments.red_hyperconvergence",
    "red/beyond": "reprolib.lab.experiments.red_beyond",
    "compare/first-look": "reprolib.lab.experiments.first_look",
}


def module(name: str) -> Any:
    """The module of experiment ``name``."""
    if name not in EXPERIMENTS:
        raise UnknownName.among("experiment", name, EXPERIMENTS)
    return import_module(EXPERIMENTS[name])


def conduct(name: str, scale: str, execute: Execute) -> Record:
    """The record of experiment ``name`` at ``scale``; ``execute`` does the runs (see :func:`reprolib.lab.execute`)."""
    experiment = module(name)
    plan = experiment.plan(check_scale(scale))
    histories, notes = follow(plan, execute)
    return Record.of(name, scale, histories, notes)


def follow(plan: Plan, execute: Execute) -> Any:
    """Do what ``plan`` asks for until it returns; its result."""
    try:
        runs = next(plan)
        while True:
            runs = plan.send(execute(runs))
    except StopIteration as end:
        return end.value


def together(plans: Sequence[Plan]) -> Plan:
    """Several plans at a time: each list of runs has what all of them can do now. Returns their results, in order."""
    results: list[Any] = [None] * len(plans)
    asked: dict[int, list[Run]] = {}

    def proceed(i: int, histories: list[History] | None) -> None:
        try:
            asked[i] = next(plans[i]) if histories is None else plans[i].send(histories)
        except StopIteration as end:
            asked.pop(i, None)
            results[i] = end.value

    for i in range(len(plans)):
        proceed(i, None)
    while asked:
        histories = iter((yield [run for runs in asked.values() for run in runs]))
        for i, runs in list(asked.items()):
            proceed(i, [next(histories) for _ in runs])
    return results


def outstanding(name: str, scale: str, find: Callable[[Run], History | None]) -> tuple[list[Run], list[Run]]:
    """The runs that ``find`` knows, and those that could be done now; what depends on the latter comes after them."""
    known: list[Run] = []
    missing: list[Run] = []

    def look(runs: Sequence[Run]) -> list[History]:
        found = {run.key: find(run) for run in runs}
        known.extend(run for run in runs if found[run.key])
        missing.extend({run.key: run for run in runs if not found[run.key]}.values())
        if missing:
            raise _Missing
        return [h for run in runs if (h := found[run.key])]

    with suppress(_Missing):
        follow(module(name).plan(check_scale(scale)), look)
    return known, missing


class _Missing(Exception):
    pass


def verdicts_of(record: Record) -> list[dict[str, str]]:
    """What a record says of the claims that its experiment is about: claim, statement, task, criterion, verdict."""
    return module(record.name).verdicts(record)
