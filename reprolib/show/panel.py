"""What every figure is built of: a sheet of at most four panels, its headline, marks, reference lines, one legend."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reprolib.errors import InvalidInput
from reprolib.show.style import INK, NEUTRAL, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MOST = 4  # panels of a figure: what needs more is a table
LINE = 80  # characters of a headline's line at full width


def sheet(
    panels: int = 1,
    columns: int = 2,
    *,
    title: str = "",
    height: float = 2.7,
    width: float = WIDTH,
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with ``panels`` axes, row by row, and its headline.

    Args:
        panels: how many, at most four.
        columns: in a row.
        title: what the figure shows, as a sentence.
        height: of a row, in inches.
        width: of the figure, in inches.
        options: of ``plt.subplots``.

    Raises:
        InvalidInput: more than four panels.

    >>> figure, axes = sheet(3, title="RED needs half the epochs and twice the time")
    >>> len(axes), figure.get_suptitle()
    (3, 'RED needs half the epochs and twice the time')
    """
    import matplotlib.pyplot as plt

    if not 1 <= panels <= MOST:
        raise InvalidInput(f"{panels} panels: a figure has one to {MOST}, what needs more is a table")
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(width, height * rows + 0.5), squeeze=False, **options)
    axes = list(grid.flat)
    for spare in axes[panels:]:
        spare.remove()
    if title:
        headline(figure, title)
    return figure, axes[:panels]


def headline(figure: Figure, title: str) -> None:
    """Say above the figure what it shows, from its left edge on."""
    line = round(LINE * figure.get_figwidth() / WIDTH)
    figure.suptitle(textwrap.fill(title, line), x=0.0, ha="left", fontsize=11, fontweight="bold")


def label(ax: Axes, title: str = "", x: str = "", y: str = "", **limits: Any) -> None:
    """The panel's title at its left, and the names of its axes; ``limits`` are further properties of the axes."""
    if title:
        ax.set_title(title, loc="left")
    ax.set(**{"xlabel": x} if x else {}, **{"ylabel": y} if y else {}, **limits)


def level(ax: Axes, at: float, words: str = "", *, axis: str = "y", ls: str = "--", color: str = NEUTRAL) -> Line2D:
    """A line across the panel at ``at`` on ``axis``, with words at its end: a limit, equality, the loss of guessing.

    >>> _, (ax,) = sheet()
    >>> line = level(ax, 1.0, "equal")
    >>> list(line.get_ydata()), ax.texts[0].get_text()
    ([1.0, 1.0], 'equal')
    """
    place: dict[str, Any]
    if axis == "y":
        line = ax.axhline(at, color=color, ls=ls, lw=1, zorder=1)
        place = {"xy": (1, at), "xycoords": ax.get_yaxis_transform(), "xytext": (-2, 2), "ha": "right", "va": "bottom"}
    elif axis == "x":
        line = ax.axvline(at, color=color, ls=ls, lw=1, zorder=1)
        place = {"xy": (at, 1), "xycoords": ax.get_xaxis_transform(), "xytext": (3, -2), "ha": "left", "va": "top"}
    else:
        raise InvalidInput(f"axis {axis!r}: a level is on 'x' or 'y'")
    if words:
        ax.annotate(words, textcoords="offset points", fontsize=8.5, color=color, **place)
    return line


def mark(
    ax: Axes,
    x: float,
    y: float,
    words: str = "",
    *,
    shift: tuple[float, float] = (0, 8),
    marker: str = "o",
    **style: Any,
) -> None:
    """One point that matters, with a word ``shift`` points away from it. ``style`` are keywords of ``Axes.plot``."""
    look: dict[str, Any] = {"color": INK, "ms": 6, "ls": "none"} | style
    ax.plot(x, y, marker, **look)
    if words:
        beside = "left" if shift[0] > 0 else "right" if shift[0] < 0 else "center"
        above = "bottom" if shift[1] > 0 else "top" if shift[1] < 0 else "center"
        ax.annotate(words, (x, y), shift, textcoords="offset points", ha=beside, va=above, fontsize=9)


def shade(ax: Axes, low: float, high: float, *, axis: str = "x", alpha: float = 0.2, color: str = NEUTRAL) -> None:
    """A region across the panel: a phase of the training, what rounding allows, a band that is asked for."""
    (ax.axvspan if axis == "x" else ax.axhspan)(low, high, color=color, alpha=alpha, lw=0, zorder=0)


def legend(figure: Figure, *, place: str = "lower center", columns: int | None = None, **options: Any) -> None:
    """One legend for all panels, outside of them, each label once and in the order of its first appearance.

    Where there are many labels, they wrap so that none is wider than the figure.
    """
    found: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, text in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    if not found:
        raise InvalidInput("no panel has a labelled line: give `label=` to what the legend should name")
    if columns is None:
        longest = 4 + max(map(len, found))
        columns = max(1, min(len(found), int(1.1 * LINE * figure.get_figwidth() / WIDTH / longest)))
        columns = -(-len(found) // -(-len(found) // columns))  # rows of about the same length
    placed: dict[str, Any] = {"loc": f"outside {place}", "ncols": columns} | options
    figure.legend(list(found.values()), list(found), **placed)


def ticks(ax: Axes, at: Sequence[float], words: Sequence[str] | None = None, *, axis: str = "x") -> None:
    """Ticks at these places only, as plain numbers or as ``words``.

    >>> _, (ax,) = sheet()
    >>> ticks(ax, [0.25, 0.5, 1], ["¼", "½", "1"])
    >>> [text.get_text() for text in ax.get_xticklabels()]
    ['¼', '½', '1']
    """
    chosen = {"x": ax.xaxis, "y": ax.yaxis}[axis]
    chosen.set_ticks(at, list(words) if words else [f"{v:g}" for v in at])
    chosen.set_ticks([], minor=True)


def few_ticks(ax: Axes) -> None:
    """On logarithmic axes ticks at 1, 2 and 5 times powers of ten where there is room, and none between."""
    from matplotlib.ticker import LogLocator, NullLocator

    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() != "log":
            continue
        low, high = sorted(axis.get_view_interval())
        wide = high > 30 * low
        axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=5))
        axis.set_major_formatter((lambda v, _: power(v)) if high > 1e4 or low < 1e-3 else "{x:g}")
        axis.set_minor_locator(NullLocator())
        if high < 4 * low:  # too narrow for two of them
            axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7), numticks=15))


def power(value: float) -> str:
    """A number as a multiple of a power of ten, in plain characters: Matplotlib's own way starts a parser of formulas.

    >>> power(1e-3), power(5e4), power(1.0)
    ('10⁻³', '5·10⁴', '1')
    """
    factor, exponent = f"{value:.0e}".split("e")
    if int(exponent) == 0:
        return factor
    return f"{factor}·10".removeprefix("1·") + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def name_rows(ax: Axes, rows: Sequence[str]) -> np.ndarray:
    """Name the rows of a panel whose y axis counts them from the top, with thin lines between; their places."""
    at = np.arange(len(rows))
    ax.hlines(at[1:] - 0.5, 0, 1, transform=ax.get_yaxis_transform(), color=NEUTRAL, alpha=0.4, lw=0.6)
    ax.grid(axis="y", visible=False)
    ax.set_yticks(at, list(rows))
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(at) - 0.5, -0.5)
    return at
