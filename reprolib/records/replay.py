"""Replay the first steps of recorded runs: does today's code still do what the record says?

Another processor rounds otherwise, and how far that has carried after some steps is the run's own affair: five steps of
SGD keep seven digits, five of RMSProp a hundred times too long keep none. So it is measured. Where a loss differs by more
than its own rounding, copies of the run are trained whose weights move by up to a unit in the last place before every step,
which is what other kernels amount to: a product with a rounding error is the exact product of factors that differ by as
much. The record may be ``MARGIN`` times as far away as the farthest copy. From where the copies disagree by more than
``LEFT``, or a loss is not finite, nothing can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch

from reprolib.errors import DataError
from reprolib.lab.run import Run
from reprolib.lab.train import FAILED, FAILURES, Training, problem_of
from reprolib.records.record import Record, run_of
from reprolib.tasks.batches import stream
from reprolib.tasks.task import Problem

ROUNDING = 16  # units in the last place by which one loss may differ, whatever the run
COPIES = 8  # that have to agree before a difference is one
MARGIN = 5.0  # times what the farthest copy shows
LEFT = 0.1  # relative


def differences(record: Record, *, download: bool = False, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """One line per run of ``record`` whose first five losses are not what they were.

    Runs on data that are not here, or that are not those of the record, are named through ``say`` and passed over.
    """
    found, starts = [], Starts(download)
    runs = {key: run_of(kept["specification"]) for key, kept in record.runs.items()}
    for key in sorted(runs, key=lambda key: repr(common(runs[key]))):
        run, kept = runs[key], record.runs[key]
        try:
            if why := other_data(starts.problem(run), kept["environment"]):
                say(f"  {key} not replayed: {why}")
                continue
            line = difference(run, kept["first_losses"], starts)
        except DataError as error:
            say(f"  {key} not replayed: {error}")
            continue
        except FAILURES as error:
            line = "" if kept["status"] == FAILED else f"{type(error).__name__} now: {error}"
        if line:
            found.append(f"{key} ({run.task}, {run.method}, seed {run.seed}): {line}")
    return found


def difference(run: Run, then: Sequence[float], starts: Starts) -> str:
    """Where the first losses of ``run`` leave those of ``then`` for another reason than rounding; empty: nowhere."""
    now, copies = starts.losses(run), list[list[float]]()
    while (step := departure(now, then, copies, run.dtype)) is not None:
        if step == 0 or len(copies) == COPIES:  # before the first step no rounding has grown
            return f"loss {step + 1} differs: {now} now, {list(then)} then"
        copies.append(starts.losses(run, copy=len(copies) + 1))
    return ""


def departure(
    now: Sequence[float], then: Sequence[float], copies: Sequence[Sequence[float]] = (), dtype: str = "float32"
) -> int | None:
    """The first step in which two sequences of losses differ by more than rounding, as ``copies`` of ``now`` show it.

    >>> departure([1.0, 0.5], [1.0, 0.5001])
    1
    >>> departure([1.0, 0.5], [1.0, 0.5001], [[1.0, 0.50005]]) is None
    True
    """
    rounding, shown = ROUNDING * torch.finfo(getattr(torch, dtype)).eps, 0.0
    for step, (x, y) in enumerate(zip_longest(now, then)):
        if x is None or y is None:
            return step
        shown = max(shown, *(_apart(x, copy[step]) for copy in copies), 0.0)
        if shown > LEFT:
            return None
        if _apart(x, y) > rounding + MARGIN * shown * (step > 0):
            return step
        if not math.isfinite(x):
            return None
    return None


def other_data(problem: Problem, environment: Mapping[str, Any]) -> str:
    """Why a run that was made in ``environment`` cannot be compared with one on the data that are here; empty: it can."""
    kept = environment.get("data")
    if kept is None:  # an old record
        return "" if problem.published else "its data were made on one machine, and the record has no checksum of them"
    changed = [name for name, checksum in problem.files.items() if kept.get(name) != checksum]
    return f"{', '.join(changed)}: not what it was trained on, by the checksums" if changed else ""


class Starts:
    """Runs at their start. What two runs in a row have in common, data and first weights, is built once."""

    def __init__(self, download: bool = False):
        self.download = download
        self._common: tuple[object, ...] = ()
        self._problem: Problem

    def problem(self, run: Run) -> Problem:
        """The task of ``run`` at its start, for whoever does not train it."""
        if self._common != common(run):
            self._problem, self._common = problem_of(run, download=self.download), common(run)
        return self._problem

    def losses(self, run: Run, copy: int = 0) -> list[float]:
        """The first losses of ``run``, or of a copy whose weights are disturbed before each step."""
        problem = self.problem(run)
        problem = replace(problem, net=deepcopy(problem.net))
        random = stream(run.seed, copy, "replay")

        @torch.no_grad()
        def disturb() -> None:
            for p in problem.net.parameters() if copy else ():
                noise = torch.rand(p.shape, generator=random, dtype=p.dtype)
                p.mul_(1 + torch.finfo(p.dtype).eps * (2 * noise - 1))

        return Training(run, problem=problem, priced=False).first_losses(before=disturb)


def common(run: Run) -> tuple[object, ...]:
    """What the data and the first weights of a run depend on."""
    return run.task, run.train_size, run.held_out, run.test_size, run.dtype, run.batch_size, run.seed, run.batch_seed


def _apart(x: float, y: float) -> float:
    """The relative difference of two losses; none if neither is finite."""
    if math.isfinite(x) and math.isfinite(y):
        return abs(x - y) / max(abs(x), abs(y), torch.finfo(torch.float64).tiny)
    return 0.0 if math.isfinite(x) == math.isfinite(y) else math.inf
