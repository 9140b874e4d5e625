"""Planes: tables of numbers as colours, level lines, and the paths that methods take across them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reprolib.errors import InvalidInput
from reprolib.show.style import INK, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATH: dict[str, Any] = {"marker": "o", "ms": 4, "lw": 1.4}


def heat(
    ax: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    text: Callable[[float], str] | str = "{:.2g}",
    cmap: str = "Greys",
    limits: tuple[float | None, float | None] = (None, None),
) -> None:
    """A table as colours, with the numbers in it; a cell without a number (NaN) stays empty.

    The numbers are black or white, whichever is read more easily on their cell.

    Args:
        ax: the panel.
        values: (rows, columns).
        rows: their names, from the top.
        columns: their names.
        text: a format, or what gives a cell's text.
        cmap: the colours, of no method.
        limits: the values at the ends of the colours; the smallest and largest if not given.

    Raises:
        InvalidInput: the names do not fit the table.
    """
    import matplotlib as mpl

    values = np.asarray(values, float)
    if values.shape != (len(rows), len(columns)):
        raise InvalidInput(f"values {values.shape} for {len(rows)} rows and {len(columns)} columns: name each once")
    image = ax.imshow(values, aspect="auto", cmap=cmap, vmin=limits[0], vmax=limits[1])
    write = text.format if isinstance(text, str) else text
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            ground = np.array(mpl.colormaps[cmap](image.norm(value))[:3])
            bright = np.dot(ground**2.2, (0.2126, 0.7152, 0.0722)) > 0.18  # from there on black has the higher contrast
            ink = "#000000" if bright else "#FFFFFF"
            ax.text(j, i, write(value), ha="center", va="center", color=ink, fontsize=9)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_xticks(range(len(columns)), list(columns))
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def levels(
    ax: Axes,
    height: Callable[[np.ndarray, np.ndarray], np.ndarray],
    xs: tuple[float, float],
    ys: tuple[float, float],
    *,
    at: Sequence[float] | int = 8,
    n: int = 121,
) -> None:
    """Level lines of ``height(x, y)`` over the rectangle ``xs`` × ``ys``: the ground on which paths are drawn.

    Args:
        ax: the panel.
        height: takes two arrays of the same shape.
        xs: left and right end.
        ys: lower and upper end.
        at: the heights, or how many. In that case their square roots are equally far apart, so that those of a bowl are.
        n: points of the grid in each direction.
    """
    x, y = np.meshgrid(np.linspace(*xs, n), np.linspace(*ys, n))
    z = np.asarray(height(x, y), float)
    heights = at
    if isinstance(heights, int):
        low, high = float(z.min()), float(z.max())
        heights = (low + (high - low) * np.linspace(0, 1, heights + 2)[1:-1] ** 2).tolist()
    ax.contour(x, y, z, levels=list(heights), colors=NEUTRAL, linewidths=0.8, alpha=0.6, zorder=1)
    ax.set(xlim=xs, ylim=ys)
    ax.grid(False)


def path(ax: Axes, points: np.ndarray, *, color: str, label: str | None = None, **style: Any) -> None:
    """The points (n, 2) that a method visits, one after the other; the first is ringed. ``style``: of ``Axes.plot``."""
    points = np.asarray(points, float)
    ax.plot(*points.T, color=color, label=label, **PATH | style)
    ax.plot(*points[0], "o", ms=8, mfc="none", mec=INK, mew=1.4)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], *, color: str = INK, ls: str = "-") -> None:
    """An arrow from one point to another."""
    way = {"arrowstyle": "-|>", "color": color, "lw": 1.8, "ls": ls, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=way)
