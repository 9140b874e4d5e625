"""What the averaging factor β3 of the curvature does: RED's Figure 5, RED-SGD on CIFAR-10."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from reprolib.experiments.red.protocol import Figures, column_of, seeds
from reprolib.lab.plan import Plan
from reprolib.records.record import REPORTED, Record
from reprolib.records.verdict import unless_idle

NAME = "red/averaging"
CHAPTER = "red/stochasticity"  # that shows it
METHOD = "red-sgd"
BETAS = (0.0, 0.5, 0.9, 0.99)
DEFAULT_BETA = 0.9
SIMILAR = 1.5  # factor between final training losses
GUESSING = math.log(10)  # loss of a network that gives all ten classes the same probability
TARGET = 0.9  # of the lowest of the four final test accuracies


def plan(scale: str) -> Plan:
    """Every β3 on all seeds."""
    column = column_of(scale, "cifar10")
    options = [{} if beta == DEFAULT_BETA else {"beta3": beta} for beta in BETAS]  # the default one is Figure 2's run
    histories = yield [run for o in options for run in column.runs(METHOD, seeds(scale), o)]
    return {REPORTED: histories}, {}


def with_beta(record: Record) -> pd.DataFrame:
    """The record's table with a column ``beta3``."""
    betas = {k: r["specification"]["options"].get("beta3", DEFAULT_BETA) for k, r in record.runs.items()}
    return record.table.assign(beta3=record.table["key"].map(betas))


def summary(record: Record) -> pd.DataFrame:
    """Per β3 and seed: final loss, largest relative rise from an epoch to the next, first epoch at the target, mean step."""
    table = with_beta(record)
    ends = table.dropna(subset=["test_accuracy"])
    final = ends.groupby(["beta3", "seed"])["test_accuracy"].last()
    target = TARGET * final.groupby("beta3").mean().min()

    def of(rows: pd.DataFrame) -> pd.Series:
        at_ends = rows.dropna(subset=["epoch_loss"])
        reached = at_ends.loc[at_ends["test_accuracy"] >= target, "epoch"]
        found: dict[str, Any] = {
            "loss": at_ends["epoch_loss"].iloc[-1],
            "lowest": at_ends["epoch_loss"].min(),
            "spike": at_ends["epoch_loss"].pct_change().max(),
            "reached": reached.iloc[0] if len(reached) else float("inf"),
            "step": rows["step"].iloc[-1],
        }
        return pd.Series(found)

    return table.groupby(["beta3", "seed"])[table.columns.tolist()].apply(of)


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claims red-c15 and red-c16, where at least one of the four has learned."""
    seen, table, of = Figures(record), with_beta(record), summary(record)
    (task,) = seen.tasks
    first, *averaged = BETAS

    def column(name: str, seed: int) -> pd.Series:
        return of[name].xs(seed, level="seed")

    def told(holds: bool | None, seed: int) -> bool | None:
        best = column("lowest", seed).idxmin()
        return seen.told(holds, [table[(table["beta3"] == best) & (table["seed"] == seed)]])

    return [
        *seen.drawn("fig5"),
        seen.by_seed(
            "red-c15",
            "without averaging training is unstable",
            task,
            "of the four, β3 = 0 has the largest relative rise of the mean loss from an epoch to the next",
            [told(column("spike", s).idxmax() == first, s) for s in seen.seeds],
        ),
        seen.by_seed(
            "red-c15",
            "without averaging the test accuracy rises fastest",
            task,
            f"β3 = 0 is the first (or among them) at {TARGET:g} of the lowest final accuracy",
            [told(column("reached", s)[first] == column("reached", s).min() < float("inf"), s) for s in seen.seeds],
        ),
        seen.by_seed(
            "red-c16",
            "β3 between 0.5 and 0.99 makes little difference",
            task,
            f"the mean losses of the last epoch lie within a factor {SIMILAR:g}, and guessing further from the best",
            [told(similar(column("loss", s)[averaged]), s) for s in seen.seeds],
        ),
        seen.by_seed(
            "red-c16",
            "a larger β3 takes smaller steps",
            task,
            "the smoothed step at the end decreases from each β3 to the next, 0.5 to 0.99",
            [told(column("step", s)[averaged].is_monotonic_decreasing, s) for s in seen.seeds],
        ),
    ]


def similar(losses: pd.Series) -> bool | None:
    """Whether final losses differ little; ``None`` if that of guessing differs from the best as little."""
    limit = SIMILAR * losses.min()
    return unless_idle(losses.max() <= limit, idle=limit >= GUESSING)
