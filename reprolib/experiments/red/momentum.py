"""Momentum: SGD with momentum and Adam, tuned, against RED with both, ℓ from 1 and from 0.1: RED's Figure 6, CIFAR-100."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reprolib.experiments.column import Column
from reprolib.experiments.red.protocol import COLUMNS, RED_METHODS, Figures, halves, note, seeds
from reprolib.lab.methods import DESCENT
from reprolib.lab.plan import Plan, together
from reprolib.records.record import REPORTED, TRIAL, Record

NAME = "red/momentum"
CHAPTER = "red/limits"  # that shows it
BETA = 0.9
ELLS = (1.0, 0.1)  # the default, and 1 − β1
PLATEAU, RATIO, ALL_DOWN, WIGGLE = 3.0, 100.0, 0.999, 1.01


@dataclass(frozen=True)
class Line:
    """A tuned method with momentum, RED with its direction, and what its step is in units of RED's."""

    tuned: str
    red: str
    scale: float  # torch's momentum adds gradients up where RED averages them


LINES = (Line("momentum", "red-sgd", 1 / (1 - BETA)), Line("adam", "red-rmsprop", 1.0))


def plan(scale: str) -> Plan:
    """Tune both on the grid; RED without momentum and with it, from both ℓ."""
    column = COLUMNS[scale]["cifar100"]
    weight_decay = {"weight_decay": 1e-7}
    red, *tuned = yield from together(
        [_red(column, seeds(scale))]
        + [column.tuned(line.tuned, seeds(scale), halving=halves(scale), options=weight_decay) for line in LINES]
    )
    histories = {
        REPORTED: red + [h for t in tuned for h in t["histories"]],
        TRIAL: [h for t in tuned for h in t["trials"]],
    }
    return histories, {"tuning": [note(column, line.tuned, t) for line, t in zip(LINES, tuned, strict=True)]}


def _red(column: Column, seeds: Sequence[int]) -> Plan:
    options: list[dict[str, Any]] = [{}, {"beta1": BETA}, {"beta1": BETA, "lr": 1 - BETA}]
    return (yield [run for name in RED_METHODS for o in options for run in column.runs(name, seeds, o)])


def with_ell(record: Record) -> pd.DataFrame:
    """The record's table with a column ``ell``: ℓ at the start, NaN for what has no momentum or is not RED."""

    def ell(specification: dict[str, Any]) -> float | None:
        options = specification["options"]
        if specification["method"] not in RED_METHODS or "beta1" not in options:
            return None
        return ELLS[1] if "lr" in options else ELLS[0]

    starts = {key: ell(run["specification"]) for key, run in record.runs.items()}
    return record.table.assign(ell=record.table["key"].map(starts).astype(float))


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claims red-c17 to red-c19. A share of descent directions is the mean over the epochs."""
    seen, table = Figures(record), with_ell(record)
    (task,) = seen.tasks
    rows = seen.drawn("fig6")

    def of(method: str, seed: int, ell: float | None = None) -> pd.DataFrame:
        chosen = table["ell"].isna() if ell is None else table["ell"] == ell
        return table[(table["method"] == method) & (table["seed"] == seed) & chosen]

    def last(method: str, seed: int, ell: float | None = None) -> float:
        return of(method, seed, ell)["epoch_loss"].dropna().iloc[-1]

    share = {line.tuned: [of(line.tuned, s)[DESCENT].mean() for s in seen.seeds] for line in LINES}
    rows += [
        seen.by_seed("red-c17", statement, task, criterion, holds)
        for statement, criterion, holds in (
            (
                "momentum gives directions that go uphill on the batch",
                "less than 100 % of the directions descend, for SGD with momentum and for Adam",
                [m < 1 and a < 1 for m, a in zip(*share.values(), strict=True)],
            ),
            (
                "Adam more so",
                "its share of descent directions is smaller",
                [a < m for m, a in zip(*share.values(), strict=True)],
            ),
        )
    ]
    for line in LINES:
        high, low = ELLS
        label = {"red-sgd": "RED-SGD", "red-rmsprop": "RED-RMSProp"}[line.red] + " with momentum"
        criteria = {
            "red-c18": (
                (
                    f"{label} from ℓ = 1 hardly converges",
                    f"its mean loss of the last epoch ≥ {PLATEAU:g} × the tuned method's",
                    [not last(line.red, s, high) < PLATEAU * last(line.tuned, s) for s in seen.seeds],
                ),
                (
                    f"{label} from ℓ = 1 takes much larger steps than tuned ones",
                    f"median over training ≥ {RATIO:g} × (torch's momentum counted as an average)",
                    [
                        of(line.red, s, high)["step"].median()
                        >= RATIO * line.scale * of(line.tuned, s)["step"].median()
                        for s in seen.seeds
                    ],
                ),
            ),
            "red-c19": (
                (
                    f"{label} from ℓ = 0.1 has descent directions only",
                    f"at least {100 * ALL_DOWN:g} % of them descend",
                    [of(line.red, s, low)[DESCENT].mean() >= ALL_DOWN for s in seen.seeds],
                ),
                (
                    f"{label} from ℓ = 0.1 is stable",
                    f"the smoothed loss is never more than {100 * (WIGGLE - 1):g} % above its value before, after the first epoch",
                    [_falls(of(line.red, s, low)) for s in seen.seeds],
                ),
                (
                    f"{label} from ℓ = 0.1 converges more slowly than without momentum",
                    "its mean loss of the last epoch is above",
                    [last(line.red, s, low) > last(line.red, s) for s in seen.seeds],
                ),
            ),
        }
        rows += [seen.by_seed(claim, a, task, b, holds) for claim, three in criteria.items() for a, b, holds in three]
    return rows


def _falls(rows: pd.DataFrame) -> bool:
    """Whether the smoothed loss falls from row to row but for a little."""
    loss = rows.loc[rows["epoch"] >= 1, "loss"]
    return bool((loss.iloc[1:].to_numpy() <= WIGGLE * loss.iloc[:-1].to_numpy()).all())
