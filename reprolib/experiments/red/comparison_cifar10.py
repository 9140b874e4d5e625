"""RED-SGD beside Step-Tuned SGD and Robbins–Monro steps on CIFAR-10: RED's Figure 9."""

from __future__ import annotations

from reprolib.experiments.red.comparison import comparison, judged
from reprolib.lab.plan import Plan
from reprolib.records.record import Record

NAME = "red/comparison-cifar10"
CHAPTER = "red/limits"  # that shows it


def plan(scale: str) -> Plan:
    """Both panels of the task, one for each λ."""
    return comparison(scale, "cifar10")


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claim red-c24 in each panel."""
    return judged(record)
