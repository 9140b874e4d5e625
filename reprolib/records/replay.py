"""Replay the first steps of recorded runs: does today's code still do what the record says?"""

from __future__ import annotations

import math
from collections.abc import Callable

from reprolib.errors import DataError
from reprolib.lab.train import first_losses
from reprolib.records.record import Record, run_of

TOLERANCE = 1e-3  # relative, float32 on another processor; a changed formula is off by far more


def differences(record: Record, *, download: bool = False, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """One line per run of ``record`` whose first five losses are not what they were.

    Runs on data sets that are not here are named through ``say`` and passed over, unless ``download``.
    """
    found = []
    for key, kept in record.runs.items():
        run = run_of(kept["specification"])
        try:
            losses = first_losses(run, download=download)
        except DataError as error:
            say(f"  {key} not replayed: {error}")
            continue
        if not agree(losses, kept["first_losses"]):
            found.append(
                f"{key} ({run.task}, {run.method}, seed {run.seed}): {losses} now, {kept['first_losses']} then"
            )
    return found


def agree(a: list[float], b: list[float]) -> bool:
    """Whether two loss sequences are equal within ``TOLERANCE``; NaN equals NaN.

    >>> agree([1.0, 0.5], [1.0, 0.5001])
    True
    """
    return len(a) == len(b) and all(
        math.isclose(x, y, rel_tol=TOLERANCE) or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True)
    )
