"""RED where its authors did not go: a residual network with batch-norm, a vision transformer, a character GPT.

RED untuned beside SGD and AdamW, at their defaults and tuned; RED that measures the curvature on each k-th step only; and
with batch-norm, where the loss of a sample depends on its batch, both readings of "the curvature of a sample".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reprolib.experiments.column import Column
from reprolib.experiments.red.protocol import SEEDS, STEPS
from reprolib.lab.plan import Plan, together
from reprolib.records.record import DEFAULT, REPORTED, TRIAL

EVERY = (2, 5, 10)
DEFAULTS: dict[str, dict[str, Any]] = {"sgd": {"lr": 1e-3}, "adamw": {}}  # PyTorch's own
BATCH_NORM = ("resnet18",)  # who has it


@dataclass(frozen=True)
class Size:
    """A scale: the networks."""

    columns: dict[str, Column]
    seeds: tuple[int, ...] = SEEDS


_TUNED: dict[str, Any] = {"tuned_fraction": 0.25}
_SMOKE = _TUNED | {"held_out": 32, "train_size": 128, "steps": (0.001, 0.01, 0.1)}
_DESK = _TUNED | {"steps": STEPS[2:-1:2]}  # powers of ten, 10⁻⁴ to 10
_SOME = _DESK | {"held_out": 160, "train_size": 1280, "test_size": 1000}
_PAPER = _TUNED | {"steps": STEPS[2:-1]}
SIZES = {
    "smoke": Size(
        {
            "resnet18": Column("digits-resnet", 2, 32, **_SMOKE),
            "vit": Column("digits-vit", 2, 32, **_SMOKE),
            "gpt": Column("prose-small-gpt", 2, 32, **_SMOKE),
        },
        seeds=(0,),
    ),
    "desk": Size(
        {
            "resnet18": Column("cifar10-resnet18", 3, 32, **_SOME),
            "vit": Column("cifar10-vit", 3, 32, **_SOME),
            "gpt": Column("prose-gpt", 2, 16, held_out=160, train_size=960, test_size=100, **_DESK),
        },
        seeds=SEEDS[:2],
    ),
    "paper": Size(  # nobody's protocol: all images, until the curves are flat
        {
            "resnet18": Column("cifar10-resnet18", 60, 128, held_out=5000, **_PAPER),
            "vit": Column("cifar10-vit", 100, 128, held_out=5000, **_PAPER),
            "gpt": Column("prose-gpt", 20, 32, held_out=320, **_PAPER),
        },
    ),
}


def beyond(scale: str, name: str) -> Plan:
    """Tune SGD and AdamW while everything else runs."""
    size = SIZES[scale]
    column, seeds = size.columns[name], size.seeds
    red = [run for method, options in variants(name) for run in column.runs(method, seeds, options)]
    (own, default), *tuned = yield from together(
        [column.beside_defaults(red, DEFAULTS, seeds), *(column.tuned(method, seeds) for method in DEFAULTS)]
    )
    histories = {
        REPORTED: own + [h for t in tuned for h in t["histories"]],
        DEFAULT: default,
        TRIAL: [h for t in tuned for h in t["trials"]],
    }
    notes = [
        {"task": column.task, "method": method, "options": t["options"], "grid": t["grid"]}
        for method, t in zip(DEFAULTS, tuned, strict=True)
    ]
    return histories, {"tuning": notes}


def variants(name: str) -> list[tuple[str, dict[str, Any]]]:
    """RED: both preconditioners, the curvature every so often, and with batch-norm the other definition."""
    amortised: list[tuple[str, dict[str, Any]]] = [("red-rmsprop", {"every": k}) for k in EVERY]
    by_index = [(method, {"batch_norm": "by-index"}) for method in ("red-sgd", "red-rmsprop") if name in BATCH_NORM]
    return [("red-sgd", {}), ("red-rmsprop", {}), *amortised, *by_index]


def variant(specification: dict[str, Any]) -> str:
    """What a run of RED is called in this experiment's figures and tables: its options, "" for the defaults."""
    options = specification["options"]
    if "every" in options:
        return f"every {options['every']}"
    return options.get("batch_norm", "")
