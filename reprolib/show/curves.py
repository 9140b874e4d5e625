"""Curves of methods over training: centre and band over seeds, a panel a task, phases shaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from reprolib.errors import InvalidInput
from reprolib.lab.methods import METHODS
from reprolib.records.statistics import MEAN, Spread
from reprolib.show.panel import few_ticks, legend, sheet
from reprolib.show.panel import label as label_axes
from reprolib.show.style import COLOURS, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"loss": "training loss", "step": "step", "test_loss": "test loss", "test_error": "test error, %"}


@dataclass(frozen=True)
class Line:
    """A curve: a method, which of its rows (``where``: values of columns), its name, keywords of ``Axes.plot``."""

    method: str
    label: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    style: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The label, or that of the method."""
        return self.label or METHODS[self.method].label

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of ``table`` that this curve is about."""
        mine = table["method"] == self.method
        for column, value in self.where.items():
            mine &= table[column] == value
        return table[mine]


def lines_of(table: pd.DataFrame) -> list[Line]:
    """A curve for each method of a table, in the order of the book."""
    return [Line(name) for name in METHODS if name in set(table["method"])]


def band(
    ax: Axes,
    table: pd.DataFrame,
    y: str,
    *,
    method: str,
    label: str | None = None,
    x: str = "epoch",
    spread: Spread = MEAN,
    **line: Any,
) -> None:
    """Centre line and band of column ``y`` over the seeds of ``method`` in each iteration, against the mean of column ``x``.

    ``line`` are keywords of ``Axes.plot``.
    """
    mine = table[table["method"] == method].dropna(subset=[y])
    if mine.empty:
        return
    over_seeds, at = spread.over(mine, y, "iteration"), mine.groupby("iteration")[x].mean().to_numpy(dtype=float)
    line = {"color": COLOURS.get(method, NEUTRAL)} | line
    ax.plot(at, over_seeds["centre"], label=label, **line)
    ax.fill_between(at, over_seeds["low"], over_seeds["high"], color=line["color"], alpha=0.2, linewidth=0)


def curves(
    columns: Mapping[str, pd.DataFrame],
    rows: Mapping[str, str] | None = None,
    *,
    title: str = "",
    x: str = "epoch",
    lines: Sequence[Line] = (),
    scale: str = "log",
    wrap: int = 2,
    height: float = 2.3,
) -> Figure:
    """A panel for each table and each quantity, every method in each: at most four panels.

    Args:
        columns: what stands above the panels, with the rows of a record that they show.
        rows: columns of these tables, with their names for the axis; the training loss if not given. With one quantity
            the panels wrap after ``wrap``, with several there is a row for each.
        title: the figure's headline.
        x: what the curves run against: ``"epoch"``, ``"gradients"``, ``"seconds"``.
        lines: the curves; all methods of the tables if not given.
        scale: of the vertical axes.
        height: of a row, in inches.
    """
    from matplotlib.ticker import MaxNLocator

    rows = rows or {"loss": NAMES["loss"]}
    lines = lines or lines_of(pd.concat(columns.values()))
    side_by_side = wrap if len(rows) == 1 else len(columns)
    figure, axes = sheet(len(columns) * len(rows), side_by_side, title=title, height=height)
    panels = iter(axes)
    for y, words in rows.items():
        for name, table in columns.items():
            ax = next(panels)
            for line in lines:
                band(ax, line.rows(table), y, method=line.method, label=line.name, x=x, **line.style)
            if not ax.has_data():
                raise InvalidInput(f"{name} has no {y!r} of {', '.join(line.name for line in lines)}")
            label_axes(ax, name if y == next(iter(rows)) else "", yscale=scale)
            few_ticks(ax)
            if x == "epoch":
                ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            place = axes.index(ax)
            if place % side_by_side == 0:
                ax.set_ylabel(words)
            if place + side_by_side >= len(axes):
                ax.set_xlabel({"epoch": "epoch", "gradients": "gradients of a batch"}.get(x, x))
    legend(figure)
    return figure


def phases(ax: Axes, spans: Iterable[tuple[float, float, float]]) -> None:
    """Shade the phases (from, to, ℓ) of an annealing in which ℓ is not ½: the darker, the larger ℓ is."""
    for first, last, ell in spans:
        if ell != 0.5:
            ax.axvspan(first, last, color=NEUTRAL, alpha=0.3 if ell > 1 else 0.1, lw=0, zorder=0)


def window(table: pd.DataFrame, y: str, *, start: str = "iteration") -> tuple[float, float]:
    """Limits for a loss: from a little below its lowest value to a little above where the runs begin.

    What flies higher leaves the picture at the top; one run that diverges then does not flatten all others.
    """
    first = table.loc[table[start] == table[start].min(), y]
    return 0.9 * float(table[y].min()), 1.3 * float(first.median())
