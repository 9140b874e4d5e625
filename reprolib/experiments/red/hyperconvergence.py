"""A linear classifier on frozen features with batches around the coupon collector's number: RED's Figure 4.

Three rows: ℓ = ½ throughout; the same with repeated augmentation and label smoothing; with a cosine decay of ℓ, too. With
ImageNet this is the paper's experiment; the others take features of a smaller network, and the same batches relative to
the number of draws that see every class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reprolib.experiments.red.protocol import SEEDS, Figures
from reprolib.lab.plan import Plan
from reprolib.lab.run import Run
from reprolib.records.record import REPORTED, Record

NAME = "red/hyperconvergence"
CHAPTER = "red/stochasticity"  # that shows it
METHOD = "red-sgd"
TRICKS = "-with-tricks"
PLAIN, TRICKY, COSINE = ROWS = ("plain", "with tricks", "with tricks and cosine")
CLOSE, GAIN = 0.003, 0.01  # of accuracy


@dataclass(frozen=True)
class Size:
    """The features, the batches, and how long."""

    task: str
    classes: int
    batches: tuple[int, ...]
    epochs: int
    seeds: tuple[int, ...] = SEEDS


SIZES = {
    "smoke": Size("digits-features-linear", 10, (8, 30, 120), 2, seeds=(0,)),
    "desk": Size("cifar100-features-linear", 100, (50, 100, 250, 500, 1000), 6),
    "paper": Size("imagenet-features-linear", 1000, (1024, 2048, 4096, 8192, 16384), 90),
}


def draws(classes: int) -> float:
    """Expected number of draws that see each of K equally likely classes: K (1 + ½ + … + 1/K) (erratum E-red-8).

    >>> round(draws(100), 1), round(draws(1000), 1)
    (518.7, 7485.5)
    """
    return classes * sum(1 / k for k in range(1, classes + 1))


def plan(scale: str) -> Plan:
    """The three rows at every batch size on all seeds."""
    size = SIZES[scale]
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        PLAIN: (size.task, {"lr": 0.5, "schedule": "constant"}),
        TRICKY: (size.task + TRICKS, {"lr": 0.5, "schedule": "constant"}),
        COSINE: (size.task + TRICKS, {"lr": 0.5, "schedule": "cosine"}),
    }
    histories = yield [
        Run.of(METHOD, task=task, options=options, batch_size=batch, epochs=size.epochs, seed=seed)
        for task, options in rows.values()
        for batch in size.batches
        for seed in size.seeds
    ]
    return {REPORTED: histories}, {"classes": size.classes, "pretrained": _pretrained(size.task)}


def _pretrained(task: str) -> dict[str, float] | None:
    """What the network of the features reached with its own last layer, if it is ours."""
    if not task.startswith("cifar100"):
        return None
    from reprolib.tasks.features import pretrained

    return pretrained("cifar100-features")


def by_row(record: Record) -> pd.DataFrame:
    """The record's table with columns ``row`` (of ROWS) and ``batch``."""

    def row(specification: dict[str, Any]) -> str:
        if specification["options"]["schedule"] == "cosine":
            return COSINE
        return TRICKY if specification["task"].endswith(TRICKS) else PLAIN

    table = record.table
    specifications = {key: run["specification"] for key, run in record.runs.items()}
    return table.assign(
        row=table["key"].map({k: row(s) for k, s in specifications.items()}),
        batch=table["key"].map({k: s["batch_size"] for k, s in specifications.items()}),
    )


def final(record: Record) -> pd.DataFrame:
    """The last accuracy, losses and the standard deviation of the last epoch's losses, by row, batch and seed."""
    last = by_row(record).groupby(["row", "batch", "seed"])
    return last[["test_accuracy", "epoch_loss", "epoch_std", "test_loss"]].last()


def oscillation(last: pd.DataFrame) -> pd.DataFrame:
    """How much the losses of the last epoch of plain training oscillate, beyond what drawing the batches makes of itself.

    At fixed weights the standard deviation of a batch's loss is that of a sample's over √B, which goes with the mean. So it is
    multiplied by √B over the mean: by itself this does not depend on B. Index seed, columns batch.
    """
    plain = last.loc[PLAIN]
    roots = plain.index.get_level_values("batch").to_numpy() ** 0.5
    return (plain["epoch_std"] * roots / plain["epoch_loss"]).unstack("batch")


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claims red-c12 to red-c14. A run whose loss ends above that of guessing has run away and is no result."""
    seen, last = Figures(record), final(record)
    task, guessing = seen.tasks[0], math.log(record.notes["classes"])
    accuracy = {row: last["test_accuracy"][row].unstack("batch") for row in ROWS}  # (seed, batch)
    sound = {row: (last["test_loss"][row] < guessing).unstack("batch") for row in ROWS}
    batches = list(accuracy[PLAIN].columns)
    small, large = batches[0], batches[-2:]  # in the place of the paper's 8K and 16K
    spread = oscillation(last)

    def calmer(seed: int) -> bool | None:
        here = spread.loc[seed, sound[PLAIN].loc[seed]]
        return bool(here.is_monotonic_decreasing) if len(here) > 1 else None

    rows = [
        *seen.drawn("fig4"),
        seen.by_seed(
            "red-c12",
            "the training loss oscillates less with larger batches",
            task,
            "the standard deviation of the last epoch's losses, times √B over their mean, decreases from each batch size to the "
            "next, of those that have not run away",
            [calmer(s) for s in seen.seeds],
        ),
    ]
    if record.notes["pretrained"]:
        reached = record.notes["pretrained"]["accuracy"]
        rows.append(
            seen.by_seed(
                "red-c12",
                "the largest batch reaches the pretrained accuracy",
                task,
                f"within {100 * CLOSE:g} points of it, or above",
                [accuracy[PLAIN][batches[-1]][s] >= reached - CLOSE for s in seen.seeds],
            )
        )
    gain = accuracy[COSINE] - accuracy[TRICKY]

    def useless(seed: int) -> bool | None:
        both = sound[COSINE].loc[seed, large].all() and sound[TRICKY].loc[seed, large].all()
        return bool((gain.loc[seed, large] < CLOSE).all()) if both else None

    return [
        *rows,
        seen.by_seed(
            "red-c13",
            "repeated augmentation and label smoothing change nothing",
            task,
            f"at each batch size the accuracies differ by less than {100 * CLOSE:g} points",
            [bool(((accuracy[TRICKY] - accuracy[PLAIN]).loc[s].abs() < CLOSE).all()) for s in seen.seeds],
        ),
        seen.by_seed(
            "red-c14",
            "cosine decay makes small batches converge",
            task,
            f"at the smallest batch it gains more than {100 * GAIN:g} point, and the test loss is below that of guessing",
            [bool(gain[small][s] > GAIN and sound[COSINE][small][s]) for s in seen.seeds],
        ),
        seen.by_seed(
            "red-c14",
            "cosine decay is useless with large batches",
            task,
            f"at the two largest batches it gains less than {100 * CLOSE:g} points",
            [useless(s) for s in seen.seeds],
        ),
    ]
