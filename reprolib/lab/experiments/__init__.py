"""The experiments by name. Each module has ``conduct(scale, execute) -> Record``: which runs, and what is kept of them;
and ``verdicts(record)``: what that says of the paper's claims.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from reprolib.errors import UnknownName
from reprolib.lab.execute import execute
from reprolib.lab.record import Record, check_scale

EXPERIMENTS = {"red-first-results": "reprolib.lab.experiments.red_first_results"}


def verdicts_of(record: Record) -> list[dict[str, str]]:
    """What a record says of the claims that its experiment is about: claim, statement, task, criterion, verdict."""
    return import_module(EXPERIMENTS[record.name]).verdicts(record)


def conduct(
    name: str,
    scale: str,
    *,
    device: str = "cpu",
    workers: int = 1,
    keep: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Record:
    """Conduct experiment ``name`` at ``scale``. With a folder ``keep``, finished runs are kept and found again there."""
    if name not in EXPERIMENTS:
        raise UnknownName.among("experiment", name, EXPERIMENTS)
    check_scale(scale)
    experiment = import_module(EXPERIMENTS[name])
    return experiment.conduct(scale, lambda runs: execute(runs, device=device, workers=workers, keep=keep, say=say))
