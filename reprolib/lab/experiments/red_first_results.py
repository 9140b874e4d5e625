"""RED without tuning against SGD and RMSProp tuned on the grid: the protocol of RED's Figure 2 (appendix B).

The baselines' (τ0, d) is the pair with the lowest training loss after the first fifth of the epochs. Below paper scale
training is shorter, so a decay d per epoch becomes d^(paper's epochs / ours): the same total decay; and the grid is
searched by halving: every τ0 for a while without decay, then the best few with every decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reprolib.lab.methods import method
from reprolib.lab.record import Record
from reprolib.lab.run import Run
from reprolib.lab.train import History
from reprolib.lab.verdict import by_seed

NAME = "red-first-results"
Execute = Callable[[Sequence[Run]], list[History]]

BASELINES = ("sgd", "rmsprop")
RED_METHODS = ("red-sgd", "red-rmsprop")  # every option at its default, on every task (claim red-c06)
STEPS = tuple(m * 10.0**n for n in range(-5, 2) for m in (1, 5))  # appendix B: {1, 5}·10ⁿ, n = −5…1
TUNING_SEED = 1000  # not among the reported seeds
TUNED_FRACTION = 0.2  # of the epochs, as in the paper
SURVIVORS = 4  # values of τ0 that go on to the grid with decays (below paper scale)


@dataclass(frozen=True)
class Column:
    """One task of the comparison at one scale."""

    task: str
    epochs: int
    batch_size: int
    decays: tuple[float, ...]  # the paper's d, per epoch of the paper
    paper_epochs: int
    held_out: int  # training samples that tuning keeps for validation

    def decay(self, d: float) -> float:
        """The paper's ``d`` per epoch, translated to this training's length with the same total decay."""
        return d ** (self.paper_epochs / self.epochs)

    def runs(self, name: str, seeds: Sequence[int], options: dict[str, Any] | None = None, **more: Any) -> list[Run]:
        """One run per seed."""
        common = {"task": self.task, "epochs": self.epochs, "batch_size": self.batch_size, "options": options or {}}
        return [Run.of(name, seed=seed, **common, **more) for seed in seeds]


CLASSIFIER: dict[str, Any] = {"decays": (0.97, 0.98, 0.99, 1.0), "paper_epochs": 200}
AUTOENCODER: dict[str, Any] = {"decays": (0.99, 0.995, 1.0), "paper_epochs": 500}
SIZES: dict[str, tuple[list[Column], tuple[int, ...]]] = {
    "smoke": (
        [
            Column("digits-classifier", 5, 256, held_out=144, **(CLASSIFIER | {"decays": (0.98, 1.0)})),
            Column("digits-autoencoder", 5, 256, held_out=144, **(AUTOENCODER | {"decays": (0.99, 1.0)})),
        ],
        (0, 1, 2),
    ),
    "desk": (
        [
            Column("mnist-classifier", 20, 256, held_out=6000, **CLASSIFIER),
            Column("mnist-autoencoder", 10, 256, held_out=6000, **AUTOENCODER),
        ],
        (0, 1, 2),
    ),
    "paper": (
        [
            Column("mnist-classifier", 200, 256, held_out=6000, **CLASSIFIER),
            Column("mnist-autoencoder", 500, 256, held_out=6000, **AUTOENCODER),
        ],
        (0, 1, 2),
    ),
}


def conduct(scale: str, execute: Execute) -> Record:
    """Tune the baselines, run all four methods on all seeds, keep the runs and, in the notes, the whole grid."""
    columns, seeds = SIZES[scale]
    histories: list[History] = []
    tuning = []
    for column in columns:
        histories += execute([run for red in RED_METHODS for run in column.runs(red, seeds)])
        for baseline in BASELINES:
            result = tune(column, baseline, execute, halving=scale != "paper")
            tuning.append(result)
            histories += execute(column.runs(baseline, seeds, result["chosen"]))
    minutes = sum(result["seconds"] for result in tuning) / 60
    notes = {"tuning": tuning, "tuning_seed": TUNING_SEED, "tuning_minutes": round(minutes, 2)}
    return Record.of(NAME, scale, histories, notes)


def tune(column: Column, baseline: str, execute: Execute, *, halving: bool) -> dict[str, Any]:
    """Search the grid; choose by the paper's rule, and note what the validation split would have chosen."""
    epochs = max(1, round(TUNED_FRACTION * column.epochs))

    def search(pairs: Sequence[tuple[float, float]], stop_after: int) -> list[dict[str, Any]]:
        runs = [
            run
            for lr, d in pairs
            for run in column.runs(
                baseline,
                [TUNING_SEED],
                {"lr": lr, "decay": column.decay(d)},
                stop_after=stop_after,
                held_out=column.held_out,
            )
        ]
        return [
            {
                "lr": lr,
                "d": d,
                "epochs": stop_after,
                "train_loss": _finite(history.final["loss"], history),
                "validation_loss": _finite(history.final["test_loss"], history),
                "seconds": round(history.final["seconds"], 2),
            }
            for (lr, d), history in zip(pairs, execute(runs), strict=True)
        ]

    steps: Sequence[float] = STEPS
    first: list[dict[str, Any]] = []
    if halving:
        first = search([(lr, 1.0) for lr in STEPS], max(1, epochs // 2))
        steps = sorted(row["lr"] for row in sorted(first, key=_by("train_loss"))[:SURVIVORS])
    grid = search([(lr, d) for lr in steps for d in column.decays], epochs)
    best, other = min(grid, key=_by("train_loss")), min(grid, key=_by("validation_loss"))
    return {
        "task": column.task,
        "method": baseline,
        "chosen": {"lr": best["lr"], "decay": column.decay(best["d"])},
        "d": best["d"],
        "by_validation": {"lr": other["lr"], "decay": column.decay(other["d"])},
        "seconds": sum(row["seconds"] for row in [*first, *grid]),
        "first_round": first,
        "grid": grid,
    }


def verdicts(record: Record) -> list[dict[str, str]]:
    """What the record says of the paper's claims, with the criteria translated to these two tasks.

    Epochs of the paper are fractions of training here. Each seed of RED is compared with its namesake of the baseline
    that has the same preconditioner; :func:`reprolib.lab.verdict.by_seed` turns the signs into a verdict.
    """
    final = record.table.groupby(["task", "method", "seed"]).last()
    classifier, autoencoder = dict.fromkeys(record.table["task"])
    seeds = sorted(set(record.table["seed"]))
    pairs = list(zip(RED_METHODS, BASELINES, strict=True))
    one_epoch = 1 / record.table.loc[record.table["task"] == classifier, "epoch"].max()

    def step(task: str, name: str, seed: int, fraction: float) -> float:
        """The smoothed step after this fraction of training."""
        table = record.table
        run = table[(table["task"] == task) & (table["method"] == name) & (table["seed"] == seed)].dropna(
            subset=["step"]
        )
        return run.loc[(run["epoch"] - fraction * run["epoch"].max()).abs().idxmin(), "step"]

    def row(claim: str, statement: str, task: str, criterion: str, holds: list[bool]) -> dict[str, str]:
        return dict(claim=claim, statement=statement, task=task, criterion=criterion, verdict=by_seed(holds))

    competitive = [
        row(
            "red-c01",
            f"{method(red).label} is competitive",
            task,
            "final training loss ≤ 2 × the tuned baseline's",
            [bool(final["loss"][task][red][s] <= 2 * final["loss"][task][baseline][s]) for s in seeds],
        )
        for task in (classifier, autoencoder)
        for red, baseline in pairs
    ]
    warm_up = [
        row(
            "red-c02",
            f"the step of {method(red).label} warms up",
            classifier,
            "step after a quarter of training ≥ 1.5 × after the first epoch",
            [step(classifier, red, s, 0.25) >= 1.5 * step(classifier, red, s, one_epoch) for s in seeds],
        )
        for red in RED_METHODS
    ]
    smaller = [
        row(
            "red-c03",
            f"the tuned step of {method(baseline).label.split(',')[0]} is far below RED's",
            autoencoder,
            "RED's step ≥ 5 × the tuned one after 2 % of training",
            [step(autoencoder, red, s, 0.02) >= 5 * step(autoencoder, baseline, s, 0.02) for s in seeds],
        )
        for red, baseline in pairs
    ]
    return competitive + warm_up + smaller


def _finite(value: float, history: History) -> float | None:
    """``None``, JSON's way to say it, for a run that diverged."""
    return value if math.isfinite(value) and not history.diverged else None


def _by(name: str) -> Callable[[dict[str, Any]], float]:
    return lambda row: math.inf if row[name] is None else row[name]
