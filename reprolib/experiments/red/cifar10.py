"""RED's Figure 2 on CIFAR-10: VGG11 with softplus, without batch-norm; an eighth of its width at the desk."""

from __future__ import annotations

from reprolib.experiments.red.protocol import EARLY, LOWEST, Figures, figure2, seeds
from reprolib.lab.plan import Plan
from reprolib.records.record import Record

NAME = "red/cifar10"
CHAPTER = "red/four-tasks"  # that shows it


def plan(scale: str) -> Plan:
    """Figure 2's protocol."""
    return figure2(scale, "cifar10", seeds(scale))


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claims red-c01, red-c02, red-c04, red-c06, red-c28, each seed compared with its namesake of the baseline."""
    seen, early = Figures(record), EARLY.get(record.scale, 0.25)
    (task,) = seen.tasks
    judged = seen.competitive(task) + seen.warm_up(task, early) + seen.coincides(task, early)
    judged += seen.overfits(task, *LOWEST.get(record.scale, ()))
    return seen.drawn("fig2") + judged + seen.without_tuning() + seen.affordable(task)
