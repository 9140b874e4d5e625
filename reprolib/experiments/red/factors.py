"""Which factor do RAn's phases need? The two printed ones and the corrected one (erratum E-red-1) on the MNIST classifier.

Along d, on a quadratic, r⟨d, g⟩ must be ½ L r² ‖d‖² for ℓ = 1 to break even and ℓ = ½ to be the best: r = 2⟨d, g⟩ / (‖d‖² L).
Equation (10) has half of it, line 7 of Algorithm 1 a quarter. With the latter, a phase at ℓ = 2 is what ℓ = ½ should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from reprolib.experiments.column import Column
from reprolib.experiments.red.annealing import changes, cycle_of, lowered, not_raised, raised
from reprolib.experiments.red.protocol import RED_METHODS, Figures, seeds
from reprolib.lab.methods import method
from reprolib.lab.plan import Plan
from reprolib.optim.red import FACTORS
from reprolib.records.record import REPORTED, Record

NAME = "red/factors"
CHAPTER = "red/annealing"  # that shows it
CORRECTED, EQUATION, LINE = FACTORS  # 2, 1, ½
COLUMNS = {
    "smoke": Column("digits-classifier", 8, 256),
    "night": Column("mnist-classifier", 40, 256),
}
CYCLES = {"smoke": (1, 2, 1), "night": (5, 13, 2)}  # epochs at ℓ = 1, ½, 2


def plan(scale: str) -> Plan:
    """RAn with each factor, both preconditioners, on all seeds."""
    column, schedule = COLUMNS[scale], {"schedule": "ran", "cycle": CYCLES[scale]}
    options = [schedule | ({} if factor == CORRECTED else {"factor": factor}) for factor in FACTORS]
    histories = yield [run for o in options for name in RED_METHODS for run in column.runs(name, seeds(scale), o)]
    return {REPORTED: histories}, {}


def with_factor(record: Record) -> pd.DataFrame:
    """The record's table with a column ``factor``."""
    factors = {k: r["specification"]["options"].get("factor", CORRECTED) for k, r in record.runs.items()}
    return record.table.assign(factor=record.table["key"].map(factors))


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claim red-c33, each seed by itself, where RAn with that factor has learned."""
    seen, table, cycle = Figures(record), with_factor(record), cycle_of(record)
    (task,) = seen.tasks

    def losses(name: str, factor: str, seed: int) -> list[float]:
        return rows(name, factor, seed)["epoch_loss"].dropna().tolist()

    def rows(name: str, factor: str, seed: int) -> pd.DataFrame:
        return table[(table["method"] == name) & (table["factor"] == factor) & (table["seed"] == seed)]

    def by_seed(name: str, factor: str, holds: Callable[[Sequence[float]], bool | None]) -> list[bool | None]:
        return [seen.told(holds(losses(name, factor, s)), [rows(name, factor, s)]) for s in seen.seeds]

    found: list[dict[str, str]] = []
    for name in RED_METHODS:
        label = method(name).label
        found += [
            seen.by_seed("red-c33", statement, task, criterion, holds)
            for statement, criterion, holds in (
                (
                    f"with the corrected factor ℓ = 2 raises the loss of {label}, ℓ = 1 does not, ½ lowers it",
                    "it rises in at least 90 % of the phases with ℓ = 2, does not in the mean over those with ℓ = 1, against the "
                    "level before the ℓ = 2 that precedes, and falls in the mean over those with ℓ = ½",
                    by_seed(name, CORRECTED, lambda x: regimes(x, cycle)),
                ),
                (
                    f"with the factor of line 7 ℓ = 2 does not raise the loss of {label}",
                    "it does not rise in the mean over the phases with ℓ = 2",
                    by_seed(name, LINE, lambda x: not hotter(x, cycle) > 0),
                ),
            )
        ]
    return found


def regimes(losses: Sequence[float], cycle: Sequence[int]) -> bool | None:
    """Whether the phases do what the paper says; ``None`` if one of the three is missing."""
    parts = (raised(losses, cycle), not_raised(losses, cycle), lowered(losses, cycle))
    return None if None in parts else all(parts)


def hotter(losses: Sequence[float], cycle: Sequence[int]) -> float:
    """The mean change of the loss over the phases with ℓ = 2."""
    return pd.Series([c for ell, c in changes(losses, cycle) if ell == 2]).mean()
