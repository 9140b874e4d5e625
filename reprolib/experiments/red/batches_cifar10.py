"""RED with small batches and the memory layer on CIFAR-10: RED's Figure 7."""

from __future__ import annotations

from reprolib.experiments.red.batches import judged, small_batches
from reprolib.lab.plan import Plan
from reprolib.records.record import Record

NAME = "red/batches-cifar10"
CHAPTER = "red/stochasticity"  # that shows it


def plan(scale: str) -> Plan:
    """Every batch size, without memory and with."""
    return small_batches(scale, "cifar10")


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claims red-c20 and red-c21."""
    return judged(record)
