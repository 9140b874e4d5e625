"""RED-SGD beside Step-Tuned SGD and SGD with Robbins–Monro steps, both tuned: RED's Figure 9."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pandas as pd

from reprolib.experiments.column import Column
from reprolib.experiments.red.protocol import BEGUN, LEARNED, Figures, column_of, halves, note, seeds
from reprolib.lab.plan import Plan, together
from reprolib.records.record import REPORTED, TRIAL, Record

RED = "red-sgd"
TUNED = ("step-tuned", "robbins-monro")
LAMBDAS = (1e-7, 1e-4)
DEFAULT_LAMBDA = 1e-7
AS_FAR = 0.8  # of the fall in log-loss


def comparison(scale: str, name: str) -> Plan:
    """Two panels: a task with each λ."""
    column = column_of(scale, name)
    pairs = [(method, λ) for λ in LAMBDAS for method in TUNED]
    red, *tuned = yield from together(
        [_red(column, seeds(scale))]
        + [column.tuned(m, seeds(scale), halving=halves(scale), decays=False, options=_options(λ)) for m, λ in pairs]
    )
    histories = {
        REPORTED: red + [h for t in tuned for h in t["histories"]],
        TRIAL: [h for t in tuned for h in t["trials"]],
    }
    return histories, {"tuning": [note(column, m, t) for (m, _), t in zip(pairs, tuned, strict=True)]}


def _red(column: Column, seeds: Sequence[int]) -> Plan:
    options = [{} if λ == DEFAULT_LAMBDA else _options(λ) for λ in LAMBDAS]
    return (yield [run for o in options for run in column.runs(RED, seeds, o)])


def _options(λ: float) -> dict[str, Any]:
    return {"weight_decay": λ}


def with_decay(record: Record) -> pd.DataFrame:
    """The record's table with a column ``weight_decay``."""
    of = {k: r["specification"]["options"].get("weight_decay", DEFAULT_LAMBDA) for k, r in record.runs.items()}
    return record.table.assign(weight_decay=record.table["key"].map(of))


def judged(record: Record) -> list[dict[str, str]]:
    """Claims red-c24 and red-c31 in each panel: RED against Step-Tuned SGD, and against Robbins–Monro steps.

    Whether a run has learned is read off its test loss, which has no L² term: at the larger λ that is most of the other one.
    """
    seen = Figures(record)
    table = with_decay(record).dropna(subset=["epoch_loss"])
    keys = ["task", "weight_decay", "method", "seed"]
    final = table.groupby(keys)[["epoch_loss", "test_loss", "test_accuracy"]].last()
    lowest = table.groupby(keys)["test_loss"].min()
    late = table["epoch"] > table.groupby("task")["epoch"].transform("max") / 2
    spread = table[late].groupby(keys)["test_loss"].std()
    untrained = {  # with the L² term, which at the default λ is nothing
        (s["task"], s["options"].get("weight_decay", DEFAULT_LAMBDA), s["seed"]): run["first_losses"][0]
        for run in seen.reported.values()
        if (s := run["specification"])["method"] == RED
    }
    step_tuned, decaying = TUNED
    rows = seen.drawn("fig9")
    for task, λ in product(seen.tasks, LAMBDAS):

        def pairs(values: pd.Series, task: str = task, λ: float = λ) -> list[tuple[float, float]]:
            return [(values[task, λ, RED, s], values[task, λ, step_tuned, s]) for s in seen.seeds]

        def reached(method: str, limit: float, seed: int, task: str = task, λ: float = λ) -> bool:
            return bool(lowest[task, λ, method, seed] <= limit * untrained[task, DEFAULT_LAMBDA, seed])

        def told(holds: Sequence[bool], reached: Callable[..., bool] = reached) -> list[bool | None]:
            learned = [reached(step_tuned, LEARNED, s) and reached(RED, BEGUN, s) for s in seen.seeds]
            return [bool(hold) if ok else None for hold, ok in zip(holds, learned, strict=True)]

        def fall(method: str, seed: int, task: str = task, λ: float = λ) -> float:
            return math.log(untrained[task, λ, seed] / final["epoch_loss"][task, λ, method, seed])

        classifies = bool(final["test_accuracy"][task].notna().any())
        test = pairs(final["test_accuracy"] if classifies else -final["test_loss"])
        panel = f"λ = {λ:g}"
        rows += [
            seen.by_seed(
                "red-c24",
                f"Step-Tuned SGD is better in training loss ({panel})",
                task,
                "its mean loss of the last epoch is lower than RED's",
                told([tuned < red for red, tuned in pairs(final["epoch_loss"])]),
            ),
            seen.by_seed(
                "red-c24",
                f"RED generalises better than Step-Tuned SGD ({panel})",
                task,
                "its final test accuracy is higher" if classifies else "its final test loss is lower",
                told([red > tuned for red, tuned in test]),
            ),
            seen.by_seed(
                "red-c24",
                f"RED is more stable on test data than Step-Tuned SGD ({panel})",
                task,
                "the standard deviation of its test loss over the second half of the epochs is smaller",
                told([red < tuned for red, tuned in pairs(spread)]),
            ),
            seen.by_seed(
                "red-c31",
                f"RED converges without a Robbins–Monro decay ({panel})",
                task,
                f"ln of its mean loss falls, to the last epoch, at least {AS_FAR:g} × as far as that of SGD with tuned steps k^−α",
                [
                    fall(RED, s) >= AS_FAR * fall(decaying, s) if reached(decaying, BEGUN, s) else None
                    for s in seen.seeds
                ],
            ),
        ]
    return rows
