"""RED where its authors did not go: a vision transformer, on CIFAR-10."""

from __future__ import annotations

from reprolib.experiments.red.beyond import beyond
from reprolib.lab.plan import Plan
from reprolib.records.record import Record

NAME = "red/beyond-vit"
CHAPTER = "red/beyond"  # that shows it


def plan(scale: str) -> Plan:
    """RED in its variants beside SGD and AdamW, at their defaults and tuned."""
    return beyond(scale, "vit")


def verdicts(record: Record) -> list[dict[str, str]]:
    """None: no paper claims anything of this network. What it shows is computed in the chapter."""
    return []
