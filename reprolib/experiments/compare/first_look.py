"""All five methods side by side, none of them tuned, beside what people use: SGD, momentum and AdamW as PyTorch has them,
and plain SGD tuned on a grid.

NewtonCG computes a gradient of all its data in each step, so it trains on fewer images; what that buys is read off against
gradients and seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reprolib.experiments.column import Column
from reprolib.experiments.red.protocol import STEPS
from reprolib.lab.plan import Plan, together
from reprolib.records.record import DEFAULT, REPORTED, TRIAL, Record

NAME = "compare/first-look"
CHAPTER = "compare/first-look"  # that shows it
FIVE = ("red-sgd", "adler", "curveball", "summary", "csdd")  # each at the defaults of its class
DEFAULTS: dict[str, dict[str, Any]] = {"sgd": {"lr": 1e-3}, "momentum": {"lr": 1e-3}, "adamw": {}}  # PyTorch's own
TUNED = "sgd"


@dataclass(frozen=True)
class Size:
    """A scale: the tasks, the seeds."""

    columns: tuple[Column, ...]
    seeds: tuple[int, ...] = (0, 1, 2)


def _few(epochs: int, images: int) -> dict[str, Any]:
    """How long, and on how many images, NewtonCG trains: a step of it looks at all of them."""
    return {"fields_of": {"csdd": {"epochs": epochs, "train_size": images}}}


_SMOKE: dict[str, Any] = {"held_out": 144, "steps": (0.01, 0.1, 1.0)} | _few(2, 512)
_DESK: dict[str, Any] = {"held_out": 1000, "steps": STEPS} | _few(3, 5000)
_SOME = _DESK | {"train_size": 10_000}
_PAPER: dict[str, Any] = {"held_out": 5000, "steps": STEPS} | _few(20, 5000)
SIZES = {
    "smoke": Size((Column("digits-classifier", 3, 256, **_SMOKE), Column("digits-convnet", 3, 256, **_SMOKE))),
    "desk": Size(
        (
            Column("mnist-classifier", 5, 128, **_DESK),
            Column("mnist-autoencoder", 8, 128, **_SOME),
            Column("cifar10-convnet", 10, 128, **_SOME),
            Column("cifar10-convnet-with-batch-norm", 10, 128, **_SOME),
        )
    ),
    "paper": Size(  # nobody's protocol: the same with all images, and until the curves are flat
        tuple(
            Column(name, 60, 128, **_PAPER)
            for name in (
                "mnist-classifier",
                "mnist-autoencoder",
                "cifar10-convnet",
                "cifar10-convnet-with-batch-norm",
            )
        )
    ),
}


def plan(scale: str) -> Plan:
    """Tune SGD while everything else runs; the notes have its grids."""
    size = SIZES[scale]
    found = yield from together(
        [_untuned(column, size) for column in size.columns]
        + [column.tuned(TUNED, size.seeds) for column in size.columns]
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


def verdicts(record: Record) -> list[dict[str, str]]:
    """None: no paper claims anything of these tasks. What a first look shows is computed in its chapter."""
    return []
