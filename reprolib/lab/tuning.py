"""Tuning: the paper's grid, searched in full or by halving; what its rule selects, and what a validation split would have.

Every tuned method gets the same number of trials, on a seed that is not reported, with training samples held out; all
trials are kept. The test set is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from reprolib.lab.plan import Plan
from reprolib.lab.run import Run
from reprolib.lab.train import FINISHED, History

Options = dict[str, Any]
SEED = 1000  # not among the reported seeds


def tune(
    trial: Callable[[Options, int], Run],
    first: Sequence[Options],
    epochs: int,
    refined: Callable[[Options], Sequence[Options]] = lambda options: [options],
    *,
    halving: bool,
    survivors: int = 4,
) -> Plan:
    """Search a grid.

    Args:
        trial: the run that tries options for so many epochs.
        first: the coarse grid.
        epochs: how long a trial trains.
        refined: the points of the full grid that belong to a coarse one.
        halving: train the coarse grid for half of the epochs, and refine only the best few of it.
        survivors: how many.

    Returns:
        ``options`` with the lowest smoothed training loss (the papers' rule), those ``by_validation``, the ``trials`` of
        both rounds (histories), ``grid`` (a row per trial of the last round, as plain data) and ``first_round``.
    """
    rounds: list[tuple[list[Options], list[History]]] = []
    coarse: Sequence[Options] = first
    if halving:
        half = max(1, epochs // 2)
        rounds.append((list(first), (yield [trial(options, half) for options in first])))
        best = sorted(range(len(first)), key=lambda i: _loss(rounds[0][1][i]))[:survivors]
        coarse = [first[i] for i in sorted(best)]
    points = [options for start in coarse for options in refined(start)]
    rounds.append((points, (yield [trial(options, epochs) for options in points])))
    tables = [[_row(o, h) for o, h in zip(*r, strict=True)] for r in rounds]
    points, histories = rounds[-1]
    return {
        "options": points[min(range(len(points)), key=lambda i: _loss(histories[i]))],
        "by_validation": points[min(range(len(points)), key=lambda i: _loss(histories[i], "test_loss"))],
        "trials": [history for _, found in rounds for history in found],
        "first_round": tables[0] if halving else [],
        "grid": tables[-1],
    }


def _row(options: Options, history: History) -> dict[str, Any]:
    found = {"train_loss": _loss(history), "validation_loss": _loss(history, "test_loss")}
    return options | {
        "key": history.run.key,
        "epochs": history.run.stop_after,
        "status": history.status,
        **{name: None if math.isinf(value) else value for name, value in found.items()},  # JSON has no infinity
        "seconds": round(history.final["seconds"], 2),
    }


def _loss(history: History, column: str = "loss") -> float:
    """The last value; infinite for a run that did not end well, so that it is never selected."""
    value = history.final[column]
    return value if history.status == FINISHED and math.isfinite(value) else math.inf
