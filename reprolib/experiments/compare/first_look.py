"""All five methods side by side, none of them tuned, beside what people use: SGD, momentum and AdamW as PyTorch has them,
and plain SGD tuned on a grid.

NewtonCG computes a gradient of all its data in each step, so it trains on fewer images (``Column.few``); what that buys is
read off against gradients and seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reprolib.experiments.column import Column as Base
from reprolib.experiments.column import Options
from reprolib.experiments.red.protocol import STEPS
from reprolib.lab.plan import Plan, together
from reprolib.lab.run import Run
from reprolib.records.record import DEFAULT, REPORTED, TRIAL, Record

NAME = "compare/first-look"
CHAPTER = "compare/first-look"  # that shows it
FIVE = ("red-sgd", "adler", "curveball", "summary", "csdd")  # each at the defaults of its class
DEFAULTS: dict[str, dict[str, Any]] = {"sgd": {"lr": 1e-3}, "momentum": {"lr": 1e-3}, "adamw": {}}  # PyTorch's own
TUNED = "sgd"
TUNED_FRACTION = 0.2  # of the epochs


@dataclass(frozen=True)
class Column(Base):
    """One task: how long it trains on how many images, and how long on how few where a step looks at all of them."""

    few_epochs: int
    few: int | None = None

    def runs(self, name: str, seeds: Sequence[int], options: Options | None = None, **more: Any) -> list[Run]:
        """One run per seed."""
        few = {"epochs": self.few_epochs, "train_size": self.few} if name == "csdd" else {}
        return super().runs(name, seeds, options, **(few | more))


@dataclass(frozen=True)
class Size:
    """A scale: the tasks, the grid of SGD's learning rate, the seeds."""

    columns: tuple[Column, ...]
    grid: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2)


SIZES = {
    "smoke": Size(
        (
            Column("digits-classifier", 3, 256, 2, 512, held_out=144),
            Column("digits-convnet", 3, 256, 2, 512, held_out=144),
        ),
        grid=(0.01, 0.1, 1.0),
    ),
    "desk": Size(
        (
            Column("mnist-classifier", 5, 128, 3, 5000, held_out=1000),
            Column("mnist-autoencoder", 8, 128, 3, 5000, train_size=10_000, held_out=1000),
            Column("cifar10-convnet", 10, 128, 3, 5000, train_size=10_000, held_out=1000),
            Column("cifar10-convnet-with-batch-norm", 10, 128, 3, 5000, train_size=10_000, held_out=1000),
        ),
        grid=STEPS,
    ),
    "paper": Size(  # nobody's protocol: the same with all images, and until the curves are flat
        tuple(
            Column(name, 60, 128, 20, 5000, held_out=5000)
            for name in (
                "mnist-classifier",
                "mnist-autoencoder",
                "cifar10-convnet",
                "cifar10-convnet-with-batch-norm",
            )
        ),
        grid=STEPS,
    ),
}


def plan(scale: str) -> Plan:
    """Tune SGD while everything else runs; the notes have its grids."""
    size = SIZES[scale]
    found = yield from together(
        [_untuned(column, size) for column in size.columns] + [_tuned(column, size) for column in size.columns]
    )
    untuned, tuned = found[: len(size.columns)], found[len(size.columns) :]
    histories = {
        REPORTED: [h for five, _ in untuned for h in five] + [h for t in tuned for h in t["histories"]],
        DEFAULT: [h for _, default in untuned for h in default],
        TRIAL: [h for t in tuned for h in t["trials"]],
    }
    notes = [
        {"task": column.task, "method": TUNED, "options": t["options"], "grid": t["grid"]}
        for column, t in zip(size.columns, tuned, strict=True)
    ]
    return histories, {"tuning": notes}


def _untuned(column: Column, size: Size) -> Plan:
    five = [run for name in FIVE for run in column.runs(name, size.seeds)]
    return (yield from column.beside_defaults(five, DEFAULTS, size.seeds))


def _tuned(column: Column, size: Size) -> Plan:
    return column.at_best_rate(TUNED, size.grid, max(1, round(TUNED_FRACTION * column.epochs)), size.seeds)


def verdicts(record: Record) -> list[dict[str, str]]:
    """None: no paper claims anything of these tasks. What a first look shows is computed in its chapter."""
    return []
