"""What a larger scale will take, told by how long the experiments that the chapters show took for their records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from reprolib.errors import RecordError, ReprolibError
from reprolib.experiments import experiments
from reprolib.lab.store import Store, runs_folder
from reprolib.records.record import Record, run_of


@dataclass(frozen=True)
class Took:
    """How long a run took when its record was made, and whether it is kept here, so that it is not trained again."""

    seconds: float
    kept: bool


def estimate(chapters: Sequence[str], scale: str) -> list[str]:
    """A line for each of ``chapters`` that shows experiments, and the sum, in which a run that several share counts once."""
    shown = {c: [n for n, m in experiments().items() if getattr(m, "CHAPTER", None) == c] for c in chapters}
    lines: list[str] = []
    everything: dict[str, Took] = {}
    untimed = False
    devices: set[str] = set()
    for chapter, names in shown.items():
        runs: dict[str, Took] = {}
        unknown = []
        for name in names:
            try:
                record = Record.load(name, scale)
            except RecordError:
                unknown.append(name)
            else:
                runs |= took(record, Store(runs_folder()))
                devices |= set(record.made["devices"])
        everything |= runs
        untimed |= bool(unknown)
        said = [total(runs.values())] * bool(runs) + [f"nobody has timed {', '.join(unknown)}"] * bool(unknown)
        lines += [f"  {chapter}: {'; '.join(said)}"] * bool(names)
    if not lines:
        return []
    where = f" on {' and '.join(sorted(devices))}" * bool(devices)
    together = " and ".join([total(everything.values())] * bool(everything) + ["what nobody has timed"] * untimed)
    return [f"time of one process at scale {scale}{where}:", *lines, f"  together: {together}"]


def took(record: Record, store: Store) -> dict[str, Took]:
    """By run."""
    seconds = record.rows.groupby("key")["seconds"].max()
    return {key: Took(seconds.get(key, 0.0), kept(run["specification"], store)) for key, run in record.runs.items()}


def kept(specification: dict[str, Any], store: Store) -> bool:
    """Whether today's code would find that run done."""
    try:
        return store.read(run_of(specification)) is not None
    except ReprolibError:  # a task or method that is no more
        return False


def total(runs: Iterable[Took]) -> str:
    """In words.

    >>> total([Took(5400, False), Took(5400, True)])
    '1.5 hours (and 1.5 hours are kept)'
    >>> total([Took(90, True)])
    'nothing (2 minutes are kept)'
    """
    runs = list(runs)
    todo, done = (sum(run.seconds for run in runs if run.kept is is_kept) for is_kept in (False, True))
    if not todo:
        return f"nothing ({duration(done)} are kept)"
    return duration(todo) + (f" (and {duration(done)} are kept)" if done else "")


def duration(seconds: float) -> str:
    """Minutes, or hours where there are many.

    >>> duration(90), duration(20000)
    ('2 minutes', '5.6 hours')
    """
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes"
