"""RAn against RED on CIFAR-100: RED's Figure 3."""

from __future__ import annotations

from reprolib.experiments.red.annealing import annealing, judged
from reprolib.lab.plan import Plan
from reprolib.records.record import Record

NAME = "red/annealing-cifar100"
CHAPTER = "red/annealing"  # that shows it


def plan(scale: str) -> Plan:
    """RED and RAn side by side."""
    return annealing(scale, "cifar100")


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claims red-c07 to red-c09."""
    return judged(record)
