"""RED where its authors did not go: a residual network with batch-norm, a vision transformer, a character GPT.

RED untuned beside SGD and AdamW, at their defaults and tuned; RED that measures the curvature on each k-th step only; and
with batch-norm, where the loss of a sample depends on its batch, both readings of "the curvature of a sample".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reprolib.experiments.column import Column as Base
from reprolib.experiments.red.protocol import SEEDS, STEPS
from reprolib.lab.plan import Plan, together
from reprolib.records.record import DEFAULT, REPORTED, TRIAL, Record

NAME = "red/beyond"
CHAPTER = "red/beyond"  # that shows it
EVERY = (2, 5, 10)
DEFAULTS: dict[str, dict[str, Any]] = {"sgd": {"lr": 1e-3}, "adamw": {}}  # PyTorch's own
TUNED_FRACTION = 0.25  # of the epochs


@dataclass(frozen=True)
class Column(Base):
    """One task at one scale."""

    batch_norm: bool = False

    @property
    def variants(self) -> list[tuple[str, dict[str, Any]]]:
        """RED: both preconditioners, the curvature every so often, and with batch-norm the other definition."""
        amortised: list[tuple[str, dict[str, Any]]] = [("red-rmsprop", {"every": k}) for k in EVERY]
        by_index = [(name, {"batch_norm": "by-index"}) for name in ("red-sgd", "red-rmsprop") if self.batch_norm]
        return [("red-sgd", {}), ("red-rmsprop", {}), *amortised, *by_index]


@dataclass(frozen=True)
class Size:
    """A scale: the tasks, the grid of the baselines' learning rate."""

    columns: tuple[Column, ...]
    grid: tuple[float, ...]
    seeds: tuple[int, ...] = SEEDS


_SMOKE: dict[str, Any] = {"held_out": 32, "train_size": 128}
_DESK: dict[str, Any] = {"held_out": 160, "train_size": 1280, "test_size": 1000}
SIZES = {
    "smoke": Size(
        (
            Column("digits-resnet", 2, 32, batch_norm=True, **_SMOKE),
            Column("digits-vit", 2, 32, **_SMOKE),
            Column("prose-small-gpt", 2, 32, **_SMOKE),
        ),
        (0.001, 0.01, 0.1),
        seeds=(0,),
    ),
    "desk": Size(
        (
            Column("cifar10-resnet18", 3, 32, batch_norm=True, **_DESK),
            Column("cifar10-vit", 3, 32, **_DESK),
            Column("prose-gpt", 2, 16, held_out=160, train_size=960, test_size=100),
        ),
        STEPS[2:-1:2],  # powers of ten, 10⁻⁴ to 10
        seeds=SEEDS[:2],
    ),
    "paper": Size(  # nobody's protocol: all images, until the curves are flat
        (
            Column("cifar10-resnet18", 60, 128, held_out=5000, batch_norm=True),
            Column("cifar10-vit", 100, 128, held_out=5000),
            Column("prose-gpt", 20, 32, held_out=320),
        ),
        STEPS[2:-1],
    ),
}


def plan(scale: str) -> Plan:
    """Tune SGD and AdamW while everything else runs."""
    size = SIZES[scale]
    pairs = [(column, name) for column in size.columns for name in DEFAULTS]
    *untuned, tuned = yield from together(
        [_untuned(column, size) for column in size.columns] + [together([_tuned(c, name, size) for c, name in pairs])]
    )
    histories = {
        REPORTED: [h for red, _ in untuned for h in red] + [h for t in tuned for h in t["histories"]],
        DEFAULT: [h for _, default in untuned for h in default],
        TRIAL: [h for t in tuned for h in t["trials"]],
    }
    notes = [
        {"task": column.task, "method": name, "options": t["options"], "grid": t["grid"]}
        for (column, name), t in zip(pairs, tuned, strict=True)
    ]
    return histories, {"tuning": notes}


def _untuned(column: Column, size: Size) -> Plan:
    red = [run for name, options in column.variants for run in column.runs(name, size.seeds, options)]
    return (yield from column.beside_defaults(red, DEFAULTS, size.seeds))


def _tuned(column: Column, name: str, size: Size) -> Plan:
    return column.at_best_rate(name, size.grid, max(1, round(TUNED_FRACTION * column.epochs)), size.seeds)


def variant(specification: dict[str, Any]) -> str:
    """What a run of RED is called in this experiment's figures and tables: its options, "" for the defaults."""
    options = specification["options"]
    if "every" in options:
        return f"every {options['every']}"
    return options.get("batch_norm", "")


def verdicts(record: Record) -> list[dict[str, str]]:
    """None: no paper claims anything of these networks. What they show is computed in the chapter."""
    return []
