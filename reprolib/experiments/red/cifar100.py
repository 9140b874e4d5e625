"""RED's Figure 2 on CIFAR-100: VGG19 with softplus and batch-norm; at the desk a small convolutional network with both."""

from __future__ import annotations

import math

from reprolib.experiments.red.protocol import EARLY, LOWEST, PAIRS, Figures, figure2, row, seeds
from reprolib.lab.methods import method
from reprolib.lab.plan import Plan
from reprolib.records.record import Record
from reprolib.records.verdict import over_cases

NAME = "red/cifar100"
CHAPTER = "red/four-tasks"  # that shows it
POINT = 0.01  # of accuracy
FIRST_EPOCHS = {"night": 0.25, "paper": 0.02}  # the paper's ten, in updates at night; below, the first one


def plan(scale: str) -> Plan:
    """Figure 2's protocol."""
    return figure2(scale, "cifar100", seeds(scale))


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claims red-c01 to red-c06 and red-c28, each seed compared with its namesake of the baseline."""
    seen, early = Figures(record), EARLY.get(record.scale, 0.25)
    (task,) = seen.tasks
    (_, sgd), (red_rmsprop, rmsprop) = PAIRS
    accuracy = seen.final["test_accuracy"][task]

    def told(holds: bool, seed: int) -> bool | None:
        tuned = [seen.run(task, name, seed) for name in (sgd, rmsprop)]
        return seen.told(bool(holds), tuned, [seen.run(task, red_rmsprop, seed)])

    generalisation = [
        seen.by_seed(
            "red-c05",
            "tuned RMSProp generalises worse than tuned SGD",
            task,
            "its final test accuracy is lower by more than a point",
            [told(accuracy[rmsprop][s] < accuracy[sgd][s] - POINT, s) for s in seen.seeds],
        ),
        seen.by_seed(
            "red-c05",
            "RED-RMSProp does not",
            task,
            "its final test accuracy is at least a point above tuned RMSProp's",
            [told(accuracy[red_rmsprop][s] >= accuracy[rmsprop][s] + POINT, s) for s in seen.seeds],
        ),
    ]
    return (
        seen.drawn("fig2")
        + seen.competitive(task)
        + seen.warm_up(task, early)
        + seen.coincides(task, early)
        + seen.smaller(task, FIRST_EPOCHS.get(record.scale, 1 / 16))
        + [_edge(record, task, baseline) for _, baseline in PAIRS]
        + seen.overfits(task, *LOWEST.get(record.scale, ()))
        + generalisation
        + seen.without_tuning()
        + seen.affordable(task)
    )


def _edge(record: Record, task: str, baseline: str) -> dict[str, str]:
    """Whether the grid's next step above the chosen one diverges (claim red-c03)."""
    (tuning,) = (note for note in record.notes["tuning"] if note["method"] == baseline)
    tried = tuning["first_round"] + tuning["grid"]
    larger = sorted(
        {
            r["lr"]
            for r in tried
            if r["lr"] > tuning["options"]["lr"] and not math.isclose(r["lr"], tuning["options"]["lr"])
        }
    )
    above = [r["status"] != "finished" for r in tried if larger and r["lr"] == larger[0]]
    return row(
        "red-c03",
        f"a larger step than the tuned one of {method(baseline).label.split(',')[0]} diverges",
        task,
        "every trial with the next larger τ0 of the grid diverges",
        over_cases(above or [False]),
    )
