"""RED-SGD beside Step-Tuned SGD and SGD with Robbins–Monro steps, both tuned: RED's Figure 9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from reprolib.experiments.column import Column
from reprolib.experiments.red.protocol import COLUMNS, Figures, halves, note, seeds
from reprolib.lab.plan import Plan, together
from reprolib.records.record import REPORTED, TRIAL, Record

RED = "red-sgd"
TUNED = ("step-tuned", "robbins-monro")
LAMBDAS = (1e-7, 1e-4)
DEFAULT_LAMBDA = 1e-7


def comparison(scale: str, name: str) -> Plan:
    """Two panels: a task with each λ."""
    column = COLUMNS[scale][name]
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
    """Claim red-c24 in each panel: RED against Step-Tuned SGD."""
    seen = Figures(record)
    table = with_decay(record).dropna(subset=["epoch_loss"])
    keys = ["task", "weight_decay", "method", "seed"]
    final = table.groupby(keys)[["epoch_loss", "test_loss", "test_accuracy"]].last()
    late = table["epoch"] > table.groupby("task")["epoch"].transform("max") / 2
    spread = table[late].groupby(keys)["test_loss"].std()
    rows = seen.drawn("fig9")
    for task in seen.tasks:
        for λ in LAMBDAS:

            def pairs(values: pd.Series, task: str = task, λ: float = λ) -> list[tuple[float, float]]:
                return [(values[task, λ, RED, s], values[task, λ, TUNED[0], s]) for s in seen.seeds]

            classifies = bool(final["test_accuracy"][task].notna().any())
            test = pairs(final["test_accuracy"] if classifies else -final["test_loss"])
            panel = f"λ = {λ:g}"
            rows += [
                seen.by_seed(
                    "red-c24",
                    f"Step-Tuned SGD is better in training loss ({panel})",
                    task,
                    "its mean loss of the last epoch is lower than RED's",
                    [tuned < red for red, tuned in pairs(final["epoch_loss"])],
                ),
                seen.by_seed(
                    "red-c24",
                    f"RED generalises better than Step-Tuned SGD ({panel})",
                    task,
                    "its final test accuracy is higher" if classifies else "its final test loss is lower",
                    [red > tuned for red, tuned in test],
                ),
                seen.by_seed(
                    "red-c24",
                    f"RED is more stable on test data than Step-Tuned SGD ({panel})",
                    task,
                    "the standard deviation of its test loss over the second half of the epochs is smaller",
                    [red < tuned for red, tuned in pairs(spread)],
                ),
            ]
    return rows
