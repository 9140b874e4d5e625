"""Everything that is known of the claims: what the best record of each experiment says, and what is judged beside them."""

from __future__ import annotations

from reprolib.bench.seconds import timed
from reprolib.experiments import experiments, verdicts_of
from reprolib.experiments.red import price
from reprolib.records.record import Record, published
from reprolib.records.scale import CONCLUSIVE, SCALES

BESIDE = (price.verdicts,)  # they see all records with their rows, for what no record says alone


def judged() -> list[dict[str, str]]:
    """Rows of verdicts, each with the ``scale`` of its record. Smoke shows that an experiment runs; it is no evidence."""
    best: dict[str, str] = {}
    for name, scale in sorted(published(), key=lambda item: SCALES.index(item[1])):
        if scale in CONCLUSIVE:
            best[name] = scale
    records = [timed(Record.load(name, best[name])) for name in experiments() if name in best]
    alone = [(record, verdicts_of(record)) for record in records]
    rows = [row | {"scale": record.scale} for record, rows in alone for row in rows]
    return rows + [row for more in BESIDE for row in more(alone)]
