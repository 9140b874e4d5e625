"""RED's Figure 2 on MNIST: a dense network, tanh, RED without tuning against SGD and RMSProp tuned on the grid."""

from __future__ import annotations

from reprolib.experiments.red.protocol import Figures, figure2, seeds
from reprolib.lab.plan import Plan
from reprolib.records.record import Record

NAME = "red/mnist"
CHAPTER = "red/four-tasks"  # that shows it


def plan(scale: str) -> Plan:
    """Figure 2's protocol."""
    return figure2(scale, "mnist", seeds(scale))


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claims red-c01, red-c02, red-c06, red-c28, each seed compared with its namesake of the baseline."""
    seen = Figures(record)
    (task,) = seen.tasks
    judged = seen.competitive(task) + seen.warm_up(task) + seen.coincides(task)
    return seen.drawn("fig2") + judged + seen.without_tuning() + seen.affordable(task)
