"""Momentum: SGD with momentum and Adam, tuned, against RED with both, ℓ from 1 and from 0.1: RED's Figure 6, CIFAR-100."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reprolib.experiments.column import Column
from reprolib.experiments.red.protocol import RED_METHODS, Figures, column_of, halves, note, seeds
from reprolib.lab.methods import DESCENT
from reprolib.lab.plan import Plan, together
from reprolib.lab.train import FINISHED
from reprolib.records.record import REPORTED, TRIAL, Record

NAME = "red/momentum"
CHAPTER = "red/limits"  # that shows it
BETA = 0.9
ELLS = (1.0, 0.1)  # the default, and 1 − β1
LITTLE = 0.5  # of the fall in log-loss that the tuned method makes
RATIO, ALL_DOWN, WIGGLE = 100.0, 0.999, 1.01


@dataclass(frozen=True)
class Line:
    """A tuned method with momentum, RED with its direction, and what its step is in units of RED's."""

    tuned: str
    red: str
    scale: float  # torch's momentum adds gradients up where RED averages them


LINES = (Line("momentum", "red-sgd", 1 / (1 - BETA)), Line("adam", "red-rmsprop", 1.0))


def plan(scale: str) -> Plan:
    """Tune both on the grid; RED without momentum and with it, from both ℓ."""
    column = column_of(scale, "cifar100")
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
    """Claims red-c17 to red-c19 and red-c30. A share of descent directions is the mean over the epochs.

    All but the last only where the tuned method has learned.
    """
    seen, table = Figures(record), with_ell(record)
    (task,) = seen.tasks
    heavy, adam = LINES

    def rows(method: str, seed: int, ell: float | None = None) -> pd.DataFrame:
        chosen = table["ell"].isna() if ell is None else table["ell"] == ell
        return table[(table["method"] == method) & (table["seed"] == seed) & chosen]

    def last(method: str, seed: int, ell: float | None = None) -> float:
        of = rows(method, seed, ell)
        ended = seen.reported[of["key"].iloc[0]]["status"] == FINISHED
        return of["epoch_loss"].dropna().iloc[-1] if ended else math.inf

    def fall(method: str, seed: int, ell: float | None = None) -> float:
        return math.log(seen.untrained(task, method, seed)) - math.log(last(method, seed, ell))

    def step(method: str, seed: int, ell: float | None = None) -> float:
        return rows(method, seed, ell)["step"].median()

    def share(method: str, seed: int, ell: float | None = None) -> float:
        return rows(method, seed, ell)[DESCENT].mean()

    def told(
        holds: Callable[[Line, int], bool], line: Line, judged: Sequence[tuple[str, float | None]] = ()
    ) -> list[bool | None]:
        return [
            seen.told(bool(holds(line, s)), [rows(line.tuned, s)], [rows(name, s, ell) for name, ell in judged])
            for s in seen.seeds
        ]

    def both(holds: Callable[[int], bool]) -> list[bool | None]:
        return [seen.told(bool(holds(s)), [rows(line.tuned, s) for line in LINES]) for s in seen.seeds]

    found = seen.drawn("fig6")
    found += [
        seen.by_seed("red-c17", statement, task, criterion, holds)
        for statement, criterion, holds in (
            (
                "momentum gives directions that go uphill on the batch",
                "less than 100 % of the directions descend, for SGD with momentum and for Adam",
                both(lambda s: share(heavy.tuned, s) < 1 and share(adam.tuned, s) < 1),
            ),
            (
                "Adam more so",
                "its share of descent directions is smaller",
                both(lambda s: share(adam.tuned, s) < share(heavy.tuned, s)),
            ),
        )
    ]
    high, low = ELLS
    for line in LINES:
        label = {"red-sgd": "RED-SGD", "red-rmsprop": "RED-RMSProp"}[line.red] + " with momentum"
        own = [(line.red, None), (line.red, low)]  # without momentum, and with it from the smaller ℓ
        criteria: dict[str, Sequence[tuple[str, str, list[bool | None]]]] = {
            "red-c18": (
                (
                    f"{label} from ℓ = 1 hardly converges",
                    f"ln of its mean loss falls, to the last epoch, less than {LITTLE:g} × as far as the tuned method's",
                    told(lambda of, s: not fall(of.red, s, high) >= LITTLE * fall(of.tuned, s), line),
                ),
                (
                    f"{label} from ℓ = 1 takes much larger steps than tuned ones",
                    f"median over training ≥ {RATIO:g} × (torch's momentum counted as an average)",
                    told(lambda of, s: step(of.red, s, high) >= RATIO * of.scale * step(of.tuned, s), line),
                ),
            ),
            "red-c19": (
                (
                    f"{label} from ℓ = 0.1 has descent directions only",
                    f"at least {100 * ALL_DOWN:g} % of them descend",
                    told(lambda of, s: share(of.red, s, low) >= ALL_DOWN, line, own),
                ),
                (
                    f"{label} from ℓ = 0.1 is stable",
                    f"the smoothed loss is never more than {100 * (WIGGLE - 1):g} % above its value before, after the first epoch",
                    told(lambda of, s: _falls(rows(of.red, s, low)), line, own),
                ),
                (
                    f"{label} from ℓ = 0.1 converges more slowly than without momentum",
                    "its mean loss of the last epoch is above",
                    told(lambda of, s: last(of.red, s, low) > last(of.red, s), line, own),
                ),
            ),
            "red-c30": (
                (
                    f"{label} from ℓ = 1 follows directions that go uphill on the batch",
                    f"less than {100 * ALL_DOWN:g} % of its directions descend",
                    [bool(share(line.red, s, high) < ALL_DOWN) for s in seen.seeds],
                ),
            ),
        }
        found += [seen.by_seed(claim, a, task, b, holds) for claim, all_ in criteria.items() for a, b, holds in all_]
    return found


def _falls(rows: pd.DataFrame) -> bool:
    """Whether the smoothed loss falls from row to row but for a little."""
    loss = rows.loc[rows["epoch"] >= 1, "loss"]
    return bool((loss.iloc[1:].to_numpy() <= WIGGLE * loss.iloc[:-1].to_numpy()).all())
