"""RED without tuning against SGD and RMSProp tuned on the grid: RED's Figure 2 on the two MNIST tasks."""

from __future__ import annotations

from reprolib.experiments.red.protocol import Figures, figure2
from reprolib.lab.plan import Plan
from reprolib.records.record import Record

NAME = "red/figure2"
CHAPTER = "red/first-results"  # that shows it
COLUMNS = ("mnist", "autoencoder")  # of `red_protocol.COLUMNS`


def plan(scale: str) -> Plan:
    """Figure 2's protocol on both tasks."""
    return figure2(scale, COLUMNS)


def verdicts(record: Record) -> list[dict[str, str]]:
    """What the record says of the paper's claims, with the criteria translated to these two tasks.

    Epochs of the paper are fractions of training here. Each seed of RED is compared with its namesake of the baseline
    that has the same preconditioner; :func:`reprolib.records.verdict.by_seed` turns the signs into a verdict.
    """
    seen = Figures(record)
    classifier, autoencoder = seen.tasks
    competitive = seen.competitive(classifier) + seen.competitive(autoencoder)
    judged = competitive + seen.warm_up(classifier) + seen.smaller(autoencoder)
    times = seen.affordable(classifier) + seen.affordable(autoencoder)
    return seen.drawn("fig2") + judged + seen.without_tuning() + times
