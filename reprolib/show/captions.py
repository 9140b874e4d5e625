"""Captions that speak: their first sentence says where to look, their last one what the records were made on."""

from __future__ import annotations

from reprolib.records.record import REPORTED, Record
from reprolib.show.report import conditions, value


def caption(name: str, look: str, *records: Record, role: str = REPORTED) -> None:
    """Make a caption's first sentence and its conditions available to the page as ``NAME`` and ``NAME conditions``.

    In the cell's caption, between what is the same whatever the records say::

        {glue:text}`NAME` Dashed, the tuned baselines. {glue:text}`NAME conditions`

    Args:
        name: of the two values.
        look: where to look, with the numbers that are to be seen there.
        records: those that the figure shows; without any there are no conditions.
        role: of their runs.
    """
    value(name, look)
    if records:
        value(f"{name} conditions", conditions(*records, role=role))
