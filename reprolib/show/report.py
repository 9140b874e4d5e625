"""What a notebook says: numbers for the prose, statements that are checked, and the line that tells where results are from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reprolib.records.record import REPORTED, Record
from reprolib.records.scale import SCALES
from reprolib.records.verdict import DRAWINGS, NOT_REPRODUCED, REPRODUCED, STATEMENTS
from reprolib.tasks import task


def value(name: str, v: Any) -> None:
    """Make ``v`` available to the prose as ``{glue}`` under ``name``: nobody types a measured number into a page.

    The output has the form of ``myst_nb.glue``, which would import Sphinx into every kernel.
    """
    from IPython.display import display

    v = v.item() if hasattr(v, "item") else v  # NumPy and PyTorch scalars do not print as numbers
    mime = "application/papermill.record/"
    display({f"{mime}text/plain": repr(v)}, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": mime}})


def check(statement: str, holds: Any) -> None:
    """Print ``statement`` if it holds; stop the notebook if it does not."""
    if not bool(holds):
        raise AssertionError(f"does not hold: {statement}")
    print(f"holds: {statement}")


def origin(record: Record, redo: str) -> str:
    """Markdown line: scale, device, date of a record, and what re-doing it takes."""
    made = record.made
    more = f" and {made['tuning_minutes']:.0f} more for tuning" if made["tuning_minutes"] else ""
    early = f" ({made['ended_early']} diverged or failed, {made['trials_ended_early']} of them trials)"
    early = early if made["ended_early"] else ""
    threads = " or ".join(str(t) for t in made["threads"])
    return (
        f"**Scale** {made['scale']} · **device** {', '.join(made['devices'])}, {threads} thread(s) a run · "
        f"**made** {', '.join(made['dates'])} · "
        f"{made['runs']} runs{early}, {made['minutes']:.0f} minutes of process time{more} · "
        f"**redo** `{redo}`"
    )


def conditions(*records: Record, role: str = REPORTED) -> str:
    """What the caption of a figure says of records whose runs it shows: ``Scale desk, device AMD EPYC, 3 seeds.``

    Where they differ, all that occur are named.
    """
    scales = sorted({record.scale for record in records}, key=SCALES.index)
    devices = sorted({device for record in records for device in record.made["devices"]})
    seeds = sorted({record.of_role(role)["seed"].nunique() for record in records} - {0})  # none kept, nothing to say
    counted = f", {' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])}" if seeds else ""
    return f"Scale {' and '.join(scales)}, device {' and '.join(devices)}{counted}."


Rows = Sequence[Mapping[str, str]]  # of an experiment's ``verdicts``


def verdicts(rows: Rows) -> pd.DataFrame:
    """The table of an experiment's verdicts, by claim; the verdict stands in front, where a narrow screen shows it."""
    table = pd.DataFrame(list(rows)).sort_values("claim", kind="stable")
    table["task"] = [task(name).title if name else "" for name in table["task"]]
    return table.set_index("claim")[["verdict", "statement", "task", "criterion"]]


def tally(rows: Rows) -> str:
    """How often each verdict was reached; a figure that could be drawn is not counted among what it shows.

    >>> row = {"statement": "RED competes", "claim": "red-c01"}
    >>> tally([row | {"verdict": "reproduced"}, row | {"verdict": "inconclusive"}])
    '2 statements: 1 reproduced, 0 not reproduced, 1 inconclusive.'
    >>> tally([row | {"verdict": "reproduced"}, {"claim": "red-fig2", "statement": "Figure 2", "verdict": "drawn in part"}])
    '1 statement: 1 reproduced, 0 not reproduced. Figures: 1 drawn in part.'
    """
    found = Counter(row["verdict"] for row in rows)
    statements = {word: found[word] for word in STATEMENTS if found[word] or word in (REPRODUCED, NOT_REPRODUCED)}
    drawings = {word: found[word] for word in DRAWINGS if found[word]}
    total = sum(statements.values())
    said = f"{total} statement{'s' * (total != 1)}: {_listed(statements)}."
    return said + f" Figures: {_listed(drawings)}." * bool(drawings)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {word}" for word, n in counts.items())
