"""RED without tuning against SGD and RMSProp tuned on the grid: the protocol of RED's Figure 2 (appendix B).

The baselines' (τ0, d) is the pair with the lowest training loss after the first fifth of the epochs. Below paper scale
training is shorter, so a decay d per epoch becomes d^(paper's epochs / ours): the same total decay; and the grid is
searched by halving: every τ0 for a while without decay, then the best few with every decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reprolib.lab import tuning
from reprolib.lab.experiments import Plan, together
from reprolib.lab.methods import method
from reprolib.lab.record import DEFAULT, REPORTED, TRIAL, Record
from reprolib.lab.run import Run
from reprolib.lab.verdict import by_seed

NAME = "red/figure2"

# every option of RED at its default, on every task (claim red-c06); of the baselines, what PyTorch would do untuned
RED_METHODS = ("red-sgd", "red-rmsprop")
BASELINES: dict[str, dict[str, Any]] = {"sgd": {"lr": 1e-3}, "rmsprop": {"lr": 1e-3}}
STEPS = tuple(m * 10.0**n for n in range(-5, 2) for m in (1, 5))  # appendix B: {1, 5}·10ⁿ, n = −5…1
TUNED_FRACTION = 0.2  # of the epochs, as in the paper


@dataclass(frozen=True)
class Column:
    """One task of the comparison at one scale."""

    task: str
    epochs: int
    batch_size: int
    decays: tuple[float, ...]  # the paper's d, per epoch of the paper
    paper_epochs: int
    held_out: int  # training samples that tuning keeps for validation

    @property
    def tuning_epochs(self) -> int:
        """How long a trial trains."""
        return max(1, round(TUNED_FRACTION * self.epochs))

    def decay(self, d: float) -> float:
        """The paper's ``d`` per epoch, translated to this training's length with the same total decay."""
        return d ** (self.paper_epochs / self.epochs)

    def runs(self, name: str, seeds: Sequence[int], options: dict[str, Any] | None = None, **more: Any) -> list[Run]:
        """One run per seed."""
        common = {"task": self.task, "epochs": self.epochs, "batch_size": self.batch_size, "options": options or {}}
        return [Run.of(name, seed=seed, **common, **more) for seed in seeds]

    def tuned(self, baseline: str, seeds: Sequence[int], *, halving: bool) -> Plan:
        """Tune ``baseline`` and run what was chosen: the tuning's result, with the histories under ``histories``."""

        def trial(options: dict[str, Any], epochs: int) -> Run:
            return self.runs(baseline, [tuning.SEED], options, stop_after=epochs, held_out=self.held_out)[0]

        def with_decays(options: dict[str, Any]) -> list[dict[str, Any]]:
            return [options | {"decay": self.decay(d)} for d in self.decays]

        first = [{"lr": lr, "decay": 1.0} for lr in STEPS]
        found = yield from tuning.tune(trial, first, self.tuning_epochs, with_decays, halving=halving)
        return found | {"histories": (yield self.runs(baseline, seeds, found["options"]))}

    def untuned(self, seeds: Sequence[int]) -> Plan:
        """The histories of the methods that need no tuning, and of the baselines without it."""
        red = [run for name in RED_METHODS for run in self.runs(name, seeds)]
        default = [run for name, options in BASELINES.items() for run in self.runs(name, seeds, options)]
        histories = yield [*red, *default]
        return histories[: len(red)], histories[len(red) :]


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


def plan(scale: str) -> Plan:
    """Tune the baselines, run all four methods on all seeds, and the baselines without tuning; the notes have the grids."""
    columns, seeds = SIZES[scale]
    pairs = [(column, baseline) for column in columns for baseline in BASELINES]
    found = yield from together(
        [column.untuned(seeds) for column in columns]
        + [column.tuned(baseline, seeds, halving=scale != "paper") for column, baseline in pairs]
    )
    untuned, tuned = found[: len(columns)], found[len(columns) :]
    histories = {
        REPORTED: [h for red, _ in untuned for h in red] + [h for t in tuned for h in t["histories"]],
        DEFAULT: [h for _, default in untuned for h in default],
        TRIAL: [h for t in tuned for h in t["trials"]],
    }
    kept = ("options", "by_validation", "first_round", "grid")
    notes = [
        {"task": column.task, "method": baseline} | {name: result[name] for name in kept}
        for (column, baseline), result in zip(pairs, tuned, strict=True)
    ]
    return histories, {"tuning": notes}


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
