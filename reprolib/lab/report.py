"""What a notebook says: numbers for the prose, statements that are checked, and the line that tells where results are from."""

from __future__ import annotations

from typing import Any

from reprolib.lab.record import REPORTED, SCALES, Record


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
    early = f" ({made['ended_early']} ended early: diverged or failed)" if made["ended_early"] else ""
    threads = " or ".join(str(t) for t in made["threads"])
    return (
        f"**Scale** {made['scale']} · **device** {', '.join(made['devices'])}, {threads} thread(s) a run · "
        f"**made** {', '.join(made['dates'])} · {made['runs']} runs{early}, {made['minutes']:.0f} minutes of process time{more} · "
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
