"""Tables of a page: numbers with their range, verdicts by claim, and what is folded away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from reprolib.records.verdict import by_claim, in_words
from reprolib.show.report import Rows
from reprolib.tasks import task


def ranges(table: pd.DataFrame, by: Sequence[str], columns: Mapping[str, str], form: str = "{:.3g}") -> pd.DataFrame:
    """Mean and range over what is not in ``by`` (the seeds): ``0.19 (0.18 – 0.21)``, one number where all are the same.

    >>> table = pd.DataFrame({"method": ["a", "a", "b"], "loss": [1.0, 2.0, 3.0]})
    >>> ranges(table, ["method"], {"loss": "training loss"})["training loss"].tolist()
    ['1.5 (1 – 2)', '3']
    """

    def cell(values: pd.Series) -> str:
        known = values.dropna()
        if known.empty:
            return "–"
        low, high = form.format(known.min()), form.format(known.max())
        return low if low == high else f"{form.format(known.mean())} ({low} – {high})"

    groups = table.groupby(list(by), sort=False)[list(columns)]
    return groups.agg(cell).rename(columns=dict(columns))


def claims(rows: Rows, says: Mapping[str, str], seen: Mapping[str, str] | None = None) -> pd.DataFrame:
    """One row a claim: the verdict on all of its cases, what the paper ``says``, and what was ``seen``.

    Claims of which no row speaks are left out, and those that ``says`` does not name.
    """
    verdicts = by_claim(rows)
    found = {
        claim: {"verdict": in_words(verdicts[claim]), "the paper says": words}
        | ({"what was seen": seen.get(claim, "")} if seen else {})
        for claim, words in says.items()
        if claim in verdicts
    }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("claim")


def folded(summary: str, *parts: pd.DataFrame | str) -> None:
    """Display tables, or paragraphs of plain text, under a line that the reader unfolds."""
    from IPython.display import HTML, display

    with pd.option_context("display.max_colwidth", None):  # criteria are sentences
        inner = "".join(p.to_html() if isinstance(p, pd.DataFrame) else f"<p>{escape(p)}</p>" for p in parts)
    display(HTML(f'<details class="folded"><summary>{escape(summary)}</summary>{inner}</details>'))


def checks(statements: Mapping[str, object]) -> None:
    """Say in one folded line how many statements were checked just now, and list them; stop the page if one is wrong.

    Raises:
        AssertionError: the first statement that does not hold.
    """
    for statement, holds in statements.items():
        if not bool(holds):
            raise AssertionError(f"does not hold: {statement}")
    passed = f"{len(statements)} check{'s' * (len(statements) != 1)} passed"
    folded(passed, *(f"✓ {statement}" for statement in statements))


def title(name: str) -> str:
    """The title of a task as a figure has room for it.

    >>> title("cifar100-convnet-with-batch-norm")
    'CIFAR-100 convnet, BN'
    """
    return task(name).title.replace(" with batch norm", ", BN")
