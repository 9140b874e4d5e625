"""What the L² term does to RED and to tuned baselines: RED's Figure 8, CIFAR-10 with λ = 10⁻⁷ and 10⁻⁴."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reprolib.experiments.column import Column
from reprolib.experiments.red.protocol import (
    BASELINES,
    PAIRS,
    RED_METHODS,
    Figures,
    column_of,
    halves,
    note,
    seeds,
)
from reprolib.lab.methods import L2, method
from reprolib.lab.plan import Plan, together
from reprolib.records.record import REPORTED, TRIAL, Record

NAME = "red/regularisation"
CHAPTER = "red/limits"  # that shows it
SMALL, LARGE = LAMBDAS = (1e-7, 1e-4)
UNSTABLE = 2.0


def plan(scale: str) -> Plan:
    """RED at both λ; the baselines tuned anew for each."""
    column = column_of(scale, "cifar10")
    pairs = [(name, λ) for name in BASELINES for λ in LAMBDAS]
    red, *tuned = yield from together(
        [_red(column, seeds(scale))]
        + [column.tuned(b, seeds(scale), halving=halves(scale), options=_options(λ)) for b, λ in pairs]
    )
    histories = {
        REPORTED: red + [h for t in tuned for h in t["histories"]],
        TRIAL: [h for t in tuned for h in t["trials"]],
    }
    return histories, {"tuning": [note(column, b, t) for (b, _), t in zip(pairs, tuned, strict=True)]}


def _red(column: Column, seeds: Sequence[int]) -> Plan:
    return (yield [run for name in RED_METHODS for λ in LAMBDAS for run in column.runs(name, seeds, _options(λ))])


def _options(λ: float) -> dict[str, float]:
    """The option of that λ: none for the default, so that the run is Figure 2's."""
    return {} if λ == SMALL else {"weight_decay": λ}


def with_decay(record: Record) -> pd.DataFrame:
    """The record's table with a column ``weight_decay``."""
    of = {k: r["specification"]["options"].get("weight_decay", SMALL) for k, r in record.runs.items()}
    return record.table.assign(weight_decay=record.table["key"].map(of))


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claims red-c22 and red-c23, where the baseline has learned."""
    seen, table = Figures(record), with_decay(record)
    (task,) = seen.tasks

    def rows(method: str, λ: float, seed: int) -> pd.DataFrame:
        chosen = (table["method"] == method) & (table["weight_decay"] == λ) & (table["seed"] == seed)
        return table[chosen].dropna(subset=["epoch_loss"])

    def plain(red: str, λ: float, seed: int) -> float:
        last = rows(red, λ, seed).iloc[-1]
        return last["epoch_loss"] - last[L2]

    def better(red: str, baseline: str, seed: int) -> bool | None:
        holds = bool(plain(red, SMALL, seed) < plain(red, LARGE, seed))
        return seen.told(holds, [rows(baseline, SMALL, seed)], [rows(red, SMALL, seed)])

    def spread(λ: float, seed: int) -> float:
        of = rows("rmsprop", λ, seed)
        return of.loc[of["epoch"] > of["epoch"].max() / 2, "test_loss"].std()

    def unstable(seed: int) -> bool | None:
        holds = bool(spread(LARGE, seed) >= UNSTABLE * spread(SMALL, seed))
        return seen.told(holds, [rows("rmsprop", SMALL, seed)], [rows("rmsprop", LARGE, seed)])

    def larger(seed: int) -> bool | None:
        tuned = [rows("rmsprop", λ, seed) for λ in LAMBDAS]
        small, large = (of["step"].median() for of in tuned)
        return seen.told(bool(large > small), tuned[:1])

    return [
        *seen.drawn("fig8"),
        *(
            seen.by_seed(
                "red-c22",
                f"{method(red).label} converges better with the smaller λ",
                task,
                "mean loss of the last epoch, without the L² term, lower at λ = 10⁻⁷",
                [better(red, baseline, s) for s in seen.seeds],
            )
            for red, baseline in PAIRS
        ),
        seen.by_seed(
            "red-c23",
            "tuned at λ = 10⁻⁴, RMSProp has a larger step",
            task,
            "the median step over training is larger than at λ = 10⁻⁷",
            [larger(s) for s in seen.seeds],
        ),
        seen.by_seed(
            "red-c23",
            "tuned at λ = 10⁻⁴, the test loss of RMSProp is unstable",
            task,
            f"its standard deviation over the second half of the epochs ≥ {UNSTABLE:g} × that at λ = 10⁻⁷",
            [unstable(s) for s in seen.seeds],
        ),
    ]
