"""Seconds at equal work: how many steps a run has taken, times what one of them costs.

The seconds of a history are those of that day: with other runs beside it, or other work on the machine, they cannot be
compared with another run's. Here the steps of all methods on a task take turns in one process, on a machine that has
nothing else to do (``reprolib bench seconds NAME``), and what is shown or judged over seconds is a :func:`timed` record.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

from reprolib.bench.harness import Costs, take_turns
from reprolib.errors import RecordError, SkippedStep
from reprolib.lab.cost import alike, period
from reprolib.lab.provenance import environment
from reprolib.lab.run import Run
from reprolib.lab.train import Training
from reprolib.records.record import TRIAL, Record, folder, run_of

STEPS = 10  # at least, of each run in each round
COLUMNS = ("work", "seconds", "spread", "steps", "threads")


def seconds_of(record: Record, costs: Costs | None = None) -> pd.Series:
    """The seconds that each row of ``record.rows`` stands for, at the cost of a step of its run.

    Args:
        record: of any scale.
        costs: what :func:`measure` found; ``None``: those that are published with the record, of its device.

    Raises:
        RecordError: the steps of one of its runs have not been measured.
    """
    costs = costs or Costs.load(_published(record))
    known = dict(zip(costs.table["work"], costs.table["seconds"], strict=True))
    each = {key: known.get(work(run_of(kept["specification"]))) for key, kept in record.runs.items()}
    if missing := [key for key in record.rows["key"].unique() if each[key] is None]:
        raise RecordError(
            f"nobody has measured a step of run {missing[0]} of {record.name!r}: `reprolib bench seconds {record.name} "
            f"--scale {record.scale}`"
        )
    return record.rows["iteration"] * record.rows["key"].map(each)


def timed(record: Record) -> Record:
    """The record with :func:`seconds_of` it in place of the seconds of that day, if the cost of its steps is published."""
    if not Costs.exists(_published(record)):
        return record
    return replace(record, rows=record.rows.assign(seconds=seconds_of(record)))


def _published(record: Record) -> Path:
    return folder() / record.name / f"seconds-{record.scale}.cpu"


def work(run: Run) -> str:
    """What the cost of its steps depends on, as a line of text.

    >>> work(Run.of("sgd", task="digits-classifier", epochs=1, batch_size=8, seed=0, options={"lr": 0.1}))
    '["digits-classifier", "sgd", 8, ["lr", true]]'
    """
    return json.dumps(alike(run))


def measure(
    record: Record, *, device: str = "cpu", rounds: int = 7, say: Callable[[str], None] = lambda line: None
) -> Iterator[dict[str, Any]]:
    """A row for each kind of step in ``record``, task by task.

    ``work``: see there; ``seconds`` of one step, loading its batch included, the median over the rounds; ``spread`` is the
    largest minus the smallest. A round has ``steps`` of each run, whole periods of a method whose steps are not alike.
    """
    runs = {work(run): run for run in map(run_of, _specifications(record))}
    for name in dict.fromkeys(run.task for run in runs.values()):
        here = {kind: run for kind, run in runs.items() if run.task == name}
        going = [Going(run, device) for run in here.values()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkippedStep)
            for go in going:
                go()  # what is only done once is not measured
            taken = take_turns(going, device, rounds, lambda line, name=name: say(f"{name}: {line}"))  # type: ignore[misc]
        for kind, go, seconds in zip(here, going, taken, strict=True):
            each = [s / go.steps for s in seconds]
            row = {"work": kind, "seconds": median(each), "spread": max(each) - min(each), "steps": go.steps}
            yield row | {"threads": torch.get_num_threads()}


class Going:
    """A run that goes on by so many steps with each call."""

    def __init__(self, run: Run, device: str):
        self._training = Training(run, device, priced=False)
        every = period(self._training.optimizer)
        self.steps = -(-STEPS // every) * every
        self._next = self._endless()

    def __call__(self) -> None:
        """Take them."""
        for _ in range(self.steps):
            next(self._next)

    def _endless(self) -> Iterator[None]:
        for epoch in count():
            for number, (x, y) in enumerate(self._training.problem.batches.epoch(epoch)):
                self._training.step(epoch * self._training.per_epoch + number, x, y)
                yield


def costs(rows: list[dict[str, Any]], record: Record, device: str, rounds: int, minutes: float) -> Costs:
    """The rows with their provenance; ``minutes`` of processor time is what they took."""
    about = {"of": f"{record.name} {record.scale}", "environment": environment(device), "rounds": rounds}
    return Costs(pd.DataFrame(rows, columns=list(COLUMNS)), about | {"minutes": round(minutes, 1)})


def _specifications(record: Record) -> Iterator[dict[str, Any]]:
    """Of the runs with a history; a trial only where no other run has its kind of step."""
    for trial in (True, False):  # the later one of a kind stays
        yield from (kept["specification"] for kept in record.runs.values() if (kept["role"] == TRIAL) == trial)
