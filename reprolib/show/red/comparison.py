"""RED beside tuned baselines over several tasks: the numbers of Figure 2, from records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pandas as pd

from reprolib.errors import InvalidInput
from reprolib.lab.methods import METHODS
from reprolib.records.record import DEFAULT, REPORTED, TRIAL, Record
from reprolib.show.search import within
from reprolib.tasks import task

PAIRS = {"red-sgd": "sgd", "red-rmsprop": "rmsprop"}  # RED, and the baseline with the same preconditioner
CLASSES = {"digits": 10, "mnist": 10, "cifar10": 10, "cifar100": 100}
COSTS = ("epoch", "gradients", "seconds")
RUN = ["task", "method", "seed"]


class Comparison:
    """The records of the columns of Figure 2, an experiment each, in the order in which they are given.

    ``tasks`` has the name of the column under that of the task; ``final``, ``untuned`` are the last rows of the reported runs and of the baselines at the rate that nobody tuned, by task,
    method and seed; ``start`` the losses of the untrained networks; ``notes`` what is known of each tuning.
    """

    def __init__(self, columns: Mapping[str, Record]) -> None:
        records = columns.values()
        names = {column: list(record.table["task"].unique()) for column, record in columns.items()}
        for column, found in names.items():
            if len(found) != 1:
                raise InvalidInput(f"the record of {column} has the tasks {', '.join(found)}: give one record a task")
        self.tasks = {name: column for column, (name,) in names.items()}
        self.records = {name: columns[column] for name, column in self.tasks.items()}
        self.table = pd.concat([record.table for record in records], ignore_index=True)
        self.final = self.table.groupby(RUN).last()  # of each column the last value that is known
        self.untuned = pd.concat([record.of_role(DEFAULT) for record in records]).groupby(RUN).last()
        self.notes = {(n["task"], n["method"]): n for record in records for n in record.notes["tuning"]}
        self.start = {
            tuple(run["specification"][name] for name in RUN): float(run["first_losses"][0])
            for record in records
            for run in record.runs.values()
            if run["role"] == REPORTED
        }

    def task_of(self, column: str) -> str:
        """The task of a column of Figure 2."""
        return next(name for name, found in self.tasks.items() if found == column)

    def of(self, name: str) -> pd.DataFrame:
        """The rows of a task."""
        return self.table[self.table["task"] == name]

    @cached_property
    def runs(self) -> dict[tuple[str, str, int], pd.DataFrame]:
        """The rows of each reported run, by task, method and seed."""
        return {(name, method, int(seed)): rows for (name, method, seed), rows in self.table.groupby(RUN)}

    def at(self, name: str, method: str, seed: int, fraction: float, column: str = "step") -> float:
        """A column's value after this fraction of training."""
        rows = self.runs[name, method, seed].dropna(subset=[column])
        return float(rows.loc[(rows["epoch"] - fraction * rows["epoch"].max()).abs().idxmin(), column])

    def after(self, name: str, method: str, epochs: int) -> float:
        """The training loss after so many epochs, mean over the seeds."""
        rows = self.of(name)
        rows = rows[(rows["method"] == method) & (rows["epoch"] <= epochs)]
        return float(rows.groupby("seed")["loss"].last().mean())

    def begun(self, name: str, method: str) -> float:
        """The loss of the first batch, mean over the seeds."""
        losses = [loss for (task_, method_, _), loss in self.start.items() if (task_, method_) == (name, method)]
        return sum(losses) / len(losses)

    def longer(self, fraction: float) -> list[float]:
        """RED's step over the baseline's after this fraction of training, for each task, pair and seed."""
        return [
            self.at(name, red, seed, fraction) / self.at(name, PAIRS[red], seed, fraction)
            for name, red, seed in self.ratios.index
        ]

    def epochs(self, name: str) -> int:
        """How long a task is trained."""
        return round(float(self.of(name)["epoch"].max()))

    @cached_property
    def ratios(self) -> pd.DataFrame:
        """Training loss over that of the tuned baseline, by task, RED's method and seed.

        Columns: ``epoch``, ``gradients``, ``seconds``, RED's when it has spent as much of them as the baseline's whole
        training; ``untuned``, the baseline's own at the rate that nobody tuned; ``untrained``, of the first batch.
        """
        rows = {}
        for name in self.tasks:
            for red, baseline in PAIRS.items():
                for seed, last in self.final.loc[(name, baseline)].iterrows():
                    run, loss = self.runs[name, red, seed], last["loss"]
                    spent = {unit: run.loc[run[unit] <= last[unit], "loss"].iloc[-1] / loss for unit in COSTS}
                    spent["untuned"] = self.untuned.loc[(name, baseline, seed), "loss"] / loss
                    spent["untrained"] = self.start[name, red, seed] / loss
                    rows[name, red, seed] = spent
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(RUN)

    def pair(self, name: str, red: str) -> pd.DataFrame:
        """The rows of ``ratios`` of a task and a method."""
        task_, method = (self.ratios.index.get_level_values(k) for k in (0, 1))
        return self.ratios[(task_ == name) & (method == red)]

    @cached_property
    def means(self) -> pd.DataFrame:
        """The mean of ``ratios`` over the seeds."""
        return self.ratios.groupby(["task", "method"], sort=False).mean()

    def lower(self, unit: str = "epoch") -> int:
        """In how many comparisons RED's mean loss is below the tuned baseline's, at equal ``unit``."""
        return int((self.means[unit] < 1).sum())

    @cached_property
    def test_ratios(self) -> pd.Series:
        """Final test loss over the tuned baseline's, both means over the seeds, by task and RED's method."""
        loss = self.final["test_loss"].groupby(RUN[:2]).mean()
        found = {
            (name, red): loss[name, red] / loss[name, baseline]
            for name in self.tasks
            for red, baseline in PAIRS.items()
        }
        return pd.Series(found)

    def telling(self, limit: float = 2.0) -> list[tuple[str, str]]:
        """Task and RED's method where an untrained network's loss is above ``limit`` times the baseline's in every seed."""
        lowest = self.ratios.groupby(["task", "method"], sort=False)["untrained"].min()
        return list(lowest.index[lowest > limit])

    def peak(self, column: str) -> float:
        """RED's highest test loss in the second half of training over the tuned baseline's, the larger of both pairs."""
        rows = self.of(self.task_of(column))
        late = rows[rows["epoch"] > 0.5 * rows["epoch"].max()].groupby(["method", "seed"])["test_loss"].max()
        highest = late.groupby("method").mean()
        return float(max(highest[red] / highest[baseline] for red, baseline in PAIRS.items()))

    def guessing(self, name: str) -> float | None:
        """The loss of giving every class the same probability; ``None`` for a task without classes."""
        return math.log(CLASSES[name.split("-")[0]]) if task(name).kind == "classes" else None

    @property
    def hardly_begun(self) -> list[str]:
        """The classifiers on which some method ends less than a fifth below the loss of guessing."""
        near = {name: self.final.loc[name].groupby("method")["loss"].mean() for name in self.tasks}
        return [name for name in self.tasks if (g := self.guessing(name)) and (near[name] > 0.8 * g).any()]

    @cached_property
    def costs(self) -> pd.DataFrame:
        """What a step of RED costs, in steps of its baseline, by task: seconds for both versions (median), and gradients."""
        seconds = (self.final["seconds"] / self.final["iteration"]).groupby(RUN[:2]).median()
        gradients = (self.final["gradients"] / self.final["iteration"]).groupby(RUN[:2]).median()
        rows = {
            name: {red: seconds[name, red] / seconds[name, baseline] for red, baseline in PAIRS.items()}
            | {"products": gradients[name, "red-sgd"] / gradients[name, "sgd"]}
            for name in self.tasks
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def untuned_rates(self) -> dict[str, float]:
        """The rate of each baseline that nobody tuned."""
        runs = [
            run["specification"] for r in self.records.values() for run in r.runs.values() if run["role"] == DEFAULT
        ]
        return {run["method"]: run["options"]["lr"] for run in runs}

    @cached_property
    def searches(self) -> pd.DataFrame:
        """The tunings, by task and baseline.

        Columns: how many trials, rates, ``good`` rates, which get half as far as the best one, lost trials; the chosen
        pair, the rate that held-out images would have chosen, and the cost in trainings with the chosen pair.
        """
        trials = pd.concat([record.of_role(TRIAL) for record in self.records.values()])
        rows, spent = {}, trials.groupby(RUN[:2])["seconds"].sum()
        for (name, baseline), note in self.notes.items():
            tried = note["first_round"] + note["grid"]
            rows[name, baseline] = {
                "trials": len(tried),
                "rates": len({row["lr"] for row in tried}),
                "good": len(within(note, self.begun(name, baseline))),
                "diverged or failed": sum(row["status"] != "finished" for row in tried),
                "τ0": note["options"]["lr"],
                "decay per epoch": note["options"]["decay"],
                "by validation": note["by_validation"]["lr"] if note["by_validation"] else math.nan,
                "cost": spent[name, baseline] / self.final["seconds"][name][baseline].mean(),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["task", "baseline"])

    @property
    def sound(self) -> dict[str, Any]:
        """Statements about the runs themselves that make the comparison fair, and whether they hold."""
        runs = [run for record in self.records.values() for run in record.runs.values()]
        red = [run for run in runs if run["specification"]["method"] in PAIRS and run["role"] == REPORTED]
        begun: dict[tuple[Any, ...], list[float]] = {}
        for run in runs:
            if run["role"] != TRIAL:
                begun.setdefault(tuple(run["specification"][k] for k in ("task", "seed")), []).append(
                    run["first_losses"][0]
                )
        best = {
            key: min(float(row["train_loss"]) for row in note["grid"] if row["train_loss"] is not None)
            for key, note in self.notes.items()
        }
        return {
            "RED has one configuration on every task and seed": all(not r["specification"]["options"] for r in red),
            "no run of RED diverged, failed or skipped a step": all(
                r["status"] == "finished" and not r["skipped"] for r in red
            ),
            "RED and the baselines start from the same weights and see the same first batch": all(
                max(losses) - min(losses) <= 1e-4 * max(losses) for losses in begun.values()
            ),
            "what tuning chose is the best of its grid": all(
                _picked(note) == best[key] for key, note in self.notes.items()
            ),
            "every step of RED is positive": bool(
                (self.table.loc[self.table["method"].isin(PAIRS), "step"].dropna() > 0).all()
            ),
        }


def _picked(note: dict[str, Any]) -> float:
    """The training loss of the trial that a tuning chose."""
    return next(float(r["train_loss"]) for r in note["grid"] if all(r[k] == v for k, v in note["options"].items()))


def short(method: str) -> str:
    """The name of a method without how it was tuned.

    >>> short("rmsprop"), short("red-sgd")
    ('RMSProp', 'RED-SGD')
    """
    return METHODS[method].label.removesuffix(", tuned")
