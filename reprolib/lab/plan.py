"""Plans: which runs an experiment needs, some of them only when the results of others are known.

A plan is a generator. It yields lists of runs that may be done in any order, is sent their histories, and returns its
result; a later list may depend on earlier histories, as tuned settings do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any

from reprolib.lab.run import Run
from reprolib.lab.train import History

Plan = Generator[list[Run], list[History], Any]
Execute = Callable[[Sequence[Run]], list[History]]


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


def outstanding(plan: Plan, find: Callable[[Run], History | None]) -> tuple[list[Run], list[Run]]:
    """The runs of ``plan`` that ``find`` knows, and those that could be done now; what depends on the latter comes after them."""
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
        follow(plan, look)
    return known, missing


class _Missing(Exception):
    pass
