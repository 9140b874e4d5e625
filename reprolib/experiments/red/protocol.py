"""What RED's experiments share: its methods, the baselines and their grid, the tasks at each scale (appendix B).

The baselines' (τ0, d) is the pair with the lowest training loss after the first fifth of the epochs. Below paper scale
training is shorter, so a decay d per epoch becomes d^(paper's epochs / ours): the same total decay; and the grid is
searched by halving: every τ0 for a while without decay, then the best few with every decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import pandas as pd

from reprolib.experiments.column import Column
from reprolib.lab.methods import method
from reprolib.lab.plan import Plan, together
from reprolib.lab.train import FINISHED
from reprolib.records.record import DEFAULT, REPORTED, TRIAL, Record
from reprolib.records.verdict import by_seed, drawn, unless_idle

# every option of RED at its default, on every task (claim red-c06); of the baselines, the rate of somebody who does not tune
RED_METHODS = ("red-sgd", "red-rmsprop")
BASELINES: dict[str, dict[str, Any]] = {"sgd": {"lr": 1e-3}, "rmsprop": {"lr": 1e-3}}
PAIRS = tuple(zip(RED_METHODS, BASELINES, strict=True))
STEPS = tuple(m * 10.0**n for n in range(-5, 2) for m in (1, 5))  # appendix B: {1, 5}·10ⁿ, n = −5…1
SEEDS = (0, 1, 2)
AFFORDABLE = 2.0  # times the seconds of a baseline's epoch: the paper's ceiling, 2C; its Table 3 has 1.1 to 1.84
# A run that has not learned tests nothing, see `Figures.told`; of the loss of the untrained network, the lowest mean loss of an
# epoch of who is compared with, and of who is judged
LEARNED, BEGUN = 0.5, 0.8
# the paper's "first ten epochs" of 500 on CIFAR, as a fraction of training: at night it has as many updates, ten epochs would
# be less than one at the desk
EARLY = {"paper": 0.02}
LOWEST = {"paper": (0.03, 0.08)}  # where the test loss on CIFAR is lowest: epochs 15 to 40, around the paper's 25
GROWTH = 1.5  # of the step, in that time
TOGETHER = 0.5  # rank correlation of the step with the falling loss, over at least so many epochs
EPOCHS = 5


_CLASSIFIER: dict[str, Any] = {"decays": (0.97, 0.98, 0.99, 1.0), "paper_epochs": 200, "steps": STEPS}
_LONG: dict[str, Any] = {"decays": (0.99, 0.995, 1.0), "paper_epochs": 500, "steps": STEPS}
_SMALL: dict[str, Any] = _LONG | {"decays": (0.99, 1.0), "held_out": 144}
_FEW = {"steps": (0.1, 1.0)}
_SOME: dict[str, Any] = {"held_out": 500, "train_size": 5000, "test_size": 2000}
_DESK: dict[str, Any] = _LONG | _SOME | {"steps": STEPS[::2]}  # powers of ten
ENDS = {name: {"keeps_end": True} for name in RED_METHODS}  # for segments between them
_ENDS: dict[str, Any] = {"fields_of": ENDS}
COLUMNS: dict[str, dict[str, Column]] = {
    "smoke": {
        "mnist": Column("digits-classifier", 5, 256, held_out=144, **(_CLASSIFIER | {"decays": (0.98, 1.0)} | _FEW)),
        "autoencoder": Column("digits-autoencoder", 5, 256, **(_SMALL | _FEW)),
        "cifar10": Column("digits-convnet", 8, 256, **(_SMALL | _FEW | _ENDS)),
        "cifar100": Column("digits-convnet-with-batch-norm", 8, 256, **(_SMALL | _FEW | _ENDS)),
        "short autoencoder": Column("digits-autoencoder", 5, 256, **(_SMALL | _FEW)),
    },
    "desk": {
        "mnist": Column("mnist-classifier", 20, 256, held_out=6000, **_CLASSIFIER),
        "autoencoder": Column("mnist-autoencoder", 15, 256, train_size=10_000, held_out=1000, **_LONG),
        "cifar10": Column("cifar10-small-vgg11", 16, 128, **(_DESK | _ENDS)),
        "cifar100": Column("cifar100-convnet-with-batch-norm", 16, 128, **(_DESK | _ENDS)),
        "short autoencoder": Column("mnist-autoencoder", 8, 256, **_DESK),
    },
    "night": {
        "cifar100": Column("cifar100-convnet-with-batch-norm", 200, 128, **_DESK),
    },
    "paper": {
        "mnist": Column("mnist-classifier", 200, 256, held_out=6000, **_CLASSIFIER),
        "autoencoder": Column("mnist-autoencoder", 500, 256, held_out=6000, **_LONG),
        "cifar10": Column("cifar10-vgg11", 500, 256, held_out=5000, **(_LONG | _ENDS)),
        "cifar100": Column("cifar100-vgg19", 500, 256, held_out=5000, **(_LONG | _ENDS)),
    },
}
COLUMNS["paper"]["short autoencoder"] = COLUMNS["paper"]["autoencoder"]  # it is long there


def column_of(scale: str, name: str) -> Column:
    """The column of that name; a scale that it does not have is a ``KeyError``."""
    return {at: columns[name] for at, columns in COLUMNS.items() if name in columns}[scale]


def seeds(scale: str) -> tuple[int, ...]:
    """The reported seeds; at smoke scale one shows that everything works."""
    return SEEDS[:1] if scale == "smoke" else SEEDS


def halves(scale: str) -> bool:
    """Whether the grid is searched by halving: the paper searched all of it."""
    return scale != "paper"


def figure2(scale: str, name: str, seeds: Sequence[int]) -> Plan:
    """A column of Figure 2: the baselines tuned, all four methods on all seeds, the baselines untuned; notes have the grids."""
    column = column_of(scale, name)
    if scale == "smoke":  # one page conducts all four columns with their tunings
        column = replace(column, epochs=4, train_size=640)
    red = [run for method in RED_METHODS for run in column.runs(method, seeds)]
    (own, default), *tuned = yield from together(
        [column.beside_defaults(red, BASELINES, seeds)]
        + [column.tuned(baseline, seeds, halving=halves(scale)) for baseline in BASELINES]
    )
    histories = {
        REPORTED: own + [h for t in tuned for h in t["histories"]],
        DEFAULT: default,
        TRIAL: [h for t in tuned for h in t["trials"]],
    }
    return histories, {"tuning": [note(column, b, found) for b, found in zip(BASELINES, tuned, strict=True)]}


def note(of: Column, baseline: str, result: dict[str, Any]) -> dict[str, Any]:
    """What a record keeps of a tuning."""
    kept = ("options", "by_validation", "first_round", "grid")
    return {"task": of.task, "method": baseline} | {name: result[name] for name in kept}


class Figures:
    """Numbers of the reported runs of a record, by task, method and seed, for verdicts."""

    def __init__(self, record: Record):
        self.table = record.table
        self.reported = {key: run for key, run in record.runs.items() if run["role"] == REPORTED}
        self.tasks = list(dict.fromkeys(self.table["task"]))
        self.seeds = sorted(set(self.table["seed"]))
        self.final = self.table.groupby(
            ["task", "method", "seed"]
        ).last()  # of each column the last value that is known

    @cached_property
    def progress(self) -> pd.Series:
        """The lowest mean loss of an epoch of each run, by key, in units of the untrained network's loss."""
        first = {key: run["first_losses"][0] for key, run in self.reported.items() if run["first_losses"]}
        return self.table.groupby("key")["epoch_loss"].min() / pd.Series(first)

    def run(self, task: str, name: str, seed: int) -> pd.DataFrame:
        """The rows of one run."""
        table = self.table
        return table[(table["task"] == task) & (table["method"] == name) & (table["seed"] == seed)]

    def untrained(self, task: str, name: str, seed: int) -> float:
        """The loss of the first batch."""
        of = {"task": task, "method": name, "seed": seed}
        runs = (run for run in self.reported.values() if run["specification"].items() >= of.items())
        return next(runs)["first_losses"][0]

    def at(self, task: str, name: str, seed: int, fraction: float, column: str = "step") -> float:
        """A column's value after this fraction of training."""
        rows = self.run(task, name, seed).dropna(subset=[column])
        return rows.loc[(rows["epoch"] - fraction * rows["epoch"].max()).abs().idxmin(), column]

    def told(
        self, holds: bool | None, reference: Sequence[pd.DataFrame], judged: Sequence[pd.DataFrame] = ()
    ) -> bool | None:
        """``holds``, or ``None`` where the task was not learned in this time, so that nothing follows.

        All runs (their rows) of ``reference`` must have learned: the mean loss of an epoch has fallen to half of what the
        untrained network has, which no network reaches that guesses; those that are ``judged`` must have begun to, by a fifth.
        """
        learned = all(self._within(LEARNED, rows) for rows in reference)
        return holds if learned and all(map(self.begun, judged)) else None

    def begun(self, rows: pd.DataFrame) -> bool:
        """Whether the run with these rows has begun to learn."""
        return self._within(BEGUN, rows)

    def _within(self, limit: float, rows: pd.DataFrame) -> bool:
        return bool(len(rows) and self.progress.get(rows["key"].iloc[0], math.inf) <= limit)

    def by_seed(
        self, claim: str, statement: str, task: str, criterion: str, holds: Sequence[bool | None]
    ) -> dict[str, str]:
        """A row of verdicts."""
        return row(claim, statement, task, criterion, by_seed(holds))

    def drawn(self, figure: str) -> list[dict[str, str]]:
        """Whether a figure could be drawn: a row per task, a curve that breaks off counts against it."""
        last = self.table.groupby("key")[["loss", "step"]].tail(1).notna().all(axis=1)
        broken = set(self.table.loc[last.index[~last], "key"])  # a method that finds no finite step stands still
        whole = {key: run["status"] == FINISHED and key not in broken for key, run in self.reported.items()}
        return [
            row(
                f"red-{figure}",
                f"Figure {figure[3:]}",
                task,
                "every curve is there, for every seed, until the last epoch",
                drawn([ok for key, ok in whole.items() if self.reported[key]["specification"]["task"] == task]),
            )
            for task in self.tasks
        ]

    # ---- the claims about figure 2, on one task

    def competitive(self, task: str) -> list[dict[str, str]]:
        """Claim red-c01."""

        def holds(red: str, baseline: str, seed: int) -> bool | None:
            limit = 2 * self.final["loss"][task][baseline][seed]
            return unless_idle(self.final["loss"][task][red][seed] <= limit, self.untrained(task, red, seed) <= limit)

        return [
            self.by_seed(
                "red-c01",
                f"{method(red).label} is competitive",
                task,
                "final training loss ≤ 2 × the tuned baseline's, that of the untrained network is not",
                [holds(red, baseline, s) for s in self.seeds],
            )
            for red, baseline in PAIRS
        ]

    def warm_up(self, task: str, fraction: float = 0.25) -> list[dict[str, str]]:
        """Claim red-c02."""
        one_epoch = 1 / self.table.loc[self.table["task"] == task, "epoch"].max()
        return [
            self.by_seed(
                "red-c02",
                f"the step of {method(red).label} warms up",
                task,
                f"step after {100 * fraction:g} % of training ≥ {GROWTH:g} × after the first epoch",
                [self.at(task, red, s, fraction) >= GROWTH * self.at(task, red, s, one_epoch) for s in self.seeds],
            )
            for red in RED_METHODS
        ]

    def coincides(self, task: str, fraction: float = 0.25) -> list[dict[str, str]]:
        """Claim red-c28: where the step grows, it does so while the losses fall."""
        one_epoch = 1 / self.table.loc[self.table["task"] == task, "epoch"].max()

        def together(red: str, baseline: str, seed: int, column: str) -> bool | None:
            rows = self.run(task, red, seed).dropna(subset=["epoch_loss"])
            early = rows[rows["epoch"] <= fraction * rows["epoch"].max() + 1e-9]
            grown = self.at(task, red, seed, fraction) >= GROWTH * self.at(task, red, seed, one_epoch)
            if not grown or len(early) < EPOCHS:
                return None  # no growth, so nothing that could coincide
            holds = early["step"].rank().corr(early[column].rank()) <= -TOGETHER
            return self.told(bool(holds), [self.run(task, baseline, seed)], [rows])

        return [
            self.by_seed(
                "red-c28",
                f"the step of {method(red).label} grows while the {what} falls",
                task,
                f"where it grows ≥ {GROWTH:g} × in the first {100 * fraction:g} % of training, its rank correlation over these "
                f"epochs with that loss is ≤ −{TOGETHER:g}",
                [together(red, baseline, s, column) for s in self.seeds],
            )
            for red, baseline in PAIRS
            for what, column in (("training loss", "epoch_loss"), ("test loss", "test_loss"))
        ]

    def smaller(self, task: str, fraction: float = 0.02) -> list[dict[str, str]]:
        """Claim red-c03."""
        return [
            self.by_seed(
                "red-c03",
                f"the tuned step of {method(baseline).label.split(',')[0]} is far below RED's",
                task,
                f"RED's step ≥ 5 × the tuned one after {100 * fraction:g} % of training",
                [self.at(task, red, s, fraction) >= 5 * self.at(task, baseline, s, fraction) for s in self.seeds],
            )
            for red, baseline in PAIRS
        ]

    def ratio_of_seconds(self, red: str, baseline: str) -> pd.Series:
        """Seconds of an epoch of RED over those of its baseline, by task and seed."""
        seconds = self.final["seconds"] / self.final["epoch"]
        return seconds.xs(red, level="method") / seconds.xs(baseline, level="method")

    def affordable(self, task: str) -> list[dict[str, str]]:
        """Claim red-tab3-time."""
        return [
            self.by_seed(
                "red-tab3-time",
                f"an epoch of {method(red).label} is affordable",
                task,
                f"its seconds ≤ {AFFORDABLE:g} × the baseline's",
                [self.ratio_of_seconds(red, baseline)[task][s] <= AFFORDABLE for s in self.seeds],
            )
            for red, baseline in PAIRS
        ]

    def overfits(self, task: str, first: float = 0.0, last: float = 0.9) -> list[dict[str, str]]:
        """Claim red-c04; the minimum of the test loss is looked for between these fractions of training."""

        def minimum(rows: pd.DataFrame) -> bool:
            known = rows.dropna(subset=["test_loss"])
            at = known.loc[known["test_loss"].idxmin(), "epoch"] / known["epoch"].max()
            return bool(first <= at <= last)

        def above(red: pd.DataFrame, baseline: pd.DataFrame) -> bool:
            return bool(red["test_loss"].dropna().iloc[-1] > baseline["test_loss"].dropna().iloc[-1])

        def soon(red: pd.DataFrame, seed: int) -> bool | None:
            limit = 2 * red["epoch_loss"].dropna().iloc[-1]
            name = self.reported[red["key"].iloc[0]]["specification"]["method"]
            return unless_idle(
                self.at(task, name, seed, 0.1, "epoch_loss") < limit, self.untrained(task, name, seed) < limit
            )

        rows = []
        for name, other in PAIRS:
            runs = [(self.run(task, name, s), self.run(task, other, s), s) for s in self.seeds]
            label = method(name).label
            where = (
                f"between {100 * first:g} and {100 * last:g} % of training"
                if first
                else f"in the first {100 * last:g} %"
            )
            rows += [
                self.by_seed(
                    "red-c04",
                    f"with {label} the test loss rises before the end",
                    task,
                    f"its minimum lies {where}",
                    [self.told(minimum(red), [base], [red]) for red, base, _ in runs],
                ),
                self.by_seed(
                    "red-c04",
                    f"{label} overfits more than the tuned baseline",
                    task,
                    "its test loss at the end is above the baseline's",
                    [self.told(above(red, base), [base], [red]) for red, base, _ in runs],
                ),
                self.by_seed(
                    "red-c04",
                    f"{label} has used the network's capacity early",
                    task,
                    "its training loss after a tenth of training < 2 × the final one, that of the untrained network is not",
                    [self.told(soon(red, seed), [base], [red]) for red, base, seed in runs],
                ),
            ]
        return rows

    def without_tuning(self) -> list[dict[str, str]]:
        """Claim red-c06."""
        red = [run for run in self.reported.values() if run["specification"]["method"] in RED_METHODS]
        return [
            self.by_seed(
                "red-c06",
                "RED has no hyper-parameter",
                task,
                "no option is given to it, and no run diverges or fails",
                [
                    all(
                        not run["specification"]["options"] and run["status"] == FINISHED
                        for run in red
                        if (run["specification"]["task"], run["specification"]["seed"]) == (task, seed)
                    )
                    for seed in self.seeds
                ],
            )
            for task in self.tasks
        ]


def row(claim: str, statement: str, task: str, criterion: str, verdict: str) -> dict[str, str]:
    """A row of verdicts, as every experiment returns them."""
    return dict(claim=claim, statement=statement, task=task, criterion=criterion, verdict=verdict)
