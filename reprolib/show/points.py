"""Points instead of curves: a row a case, a mark a seed, and bars of what things cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reprolib.show.panel import name_rows
from reprolib.show.style import INK, NEUTRAL, TONES
from reprolib.show.words import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def dots(
    ax: Axes, values: pd.DataFrame, styles: Mapping[str, Mapping[str, Any]], spread: pd.DataFrame | None = None
) -> None:
    """A row per index of ``values``, a marker per column (keywords of ``Axes.errorbar``), with a bar as long as its spread.

    The columns lie one below the other within a row, so that equal values do not hide each other.
    """
    rows = name_rows(ax, list(map(str, values.index)))
    for shift, (column, style) in zip(np.linspace(-0.3, 0.3, len(styles)), styles.items(), strict=True):
        bar = None if spread is None else spread[column].to_numpy(float) / 2
        marker = {"ls": "none", "ms": 5, "elinewidth": 1, **style}
        ax.errorbar(values[column].to_numpy(float), rows + shift, xerr=bar, **marker)


def seeds(
    ax: Axes, at: float, values: Sequence[float], limits: tuple[float, float], *, label: str | None = None, **style: Any
) -> None:
    """A mark for each seed at height ``at``. What lies beyond ``limits`` stands at the edge, with its mean as a number.

    ``style`` are keywords of ``Axes.plot``. A value that is not finite, of a run that diverged, is beyond, too.

    >>> import matplotlib.pyplot as plt
    >>> ax = plt.figure().add_subplot(xscale="log", xlim=(0.1, 10))
    >>> seeds(ax, 0, [1.0, 40.0, 60.0], (0.1, 10))
    >>> ax.lines[0].get_xdata().tolist(), ax.texts[0].get_text()
    ([1.0, 10.0, 10.0], '50')
    """
    low, high = limits
    known = np.asarray(values, float)
    known = np.where(np.isnan(known), np.inf, known)
    look: dict[str, Any] = {"ls": "none", "marker": "o", "ms": 6, "clip_on": False} | style
    ax.plot(np.clip(known, low, high), np.full(len(known), at), label=label, **look)
    for edge, beyond, side in ((high, known[known > high], "left"), (low, known[known < low], "right")):
        if len(beyond):
            mean = beyond[np.isfinite(beyond)].mean() if np.isfinite(beyond).any() else np.inf
            words = plain(mean) if np.isfinite(mean) else "diverged"
            shift = (8, 0) if side == "left" else (-8, 0)
            ax.annotate(
                words, (edge, at), shift, textcoords="offset points", ha=side, va="center", fontsize=8, color=NEUTRAL
            )


def bars(
    ax: Axes,
    rows: Mapping[str, Mapping[str, float]],
    *,
    colours: Mapping[str, str] | None = None,
    total: str = "{:.1f}",
) -> None:
    """Horizontal bars, row by row from the top, each made of its parts, with the sum behind it.

    Args:
        ax: the panel.
        rows: the parts of each row, in the same order in all.
        colours: of the parts; shades of no method if not given.
        total: how the sum is written.
    """
    at = name_rows(ax, list(rows))
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    colours = colours or dict(zip(parts, TONES * (1 + len(parts) // len(TONES)), strict=False))
    left = np.zeros(len(rows))
    for part in parts:
        wide = np.array([row.get(part, 0.0) for row in rows.values()])
        ax.barh(at, wide, left=left, height=0.65, color=colours[part], label=part)
        left += wide
    for place, sum_ in zip(at, left, strict=True):
        ax.annotate(total.format(sum_), (sum_, place), (5, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.set_xlim(0, 1.18 * left.max())


def scaling(
    ax: Axes,
    x: Sequence[float],
    values: Mapping[str, Sequence[float]],
    styles: Mapping[str, Mapping[str, Any]],
    slopes: Mapping[str, float] | None = None,
) -> None:
    """How something grows: doubly logarithmic, with a dotted guide of the slope that theory expects, named at its end.

    Args:
        ax: the panel.
        x: what grows.
        values: a curve each.
        styles: keywords of ``Axes.plot`` for each.
        slopes: the power of each that is expected; its guide starts at the curve's first point.
    """
    at = np.asarray(x, float)
    for name, y in values.items():
        style: dict[str, Any] = {"marker": "o", "ms": 5, "color": INK} | dict(styles[name])
        ax.loglog(at, y, label=name, **style)
        if slopes and name in slopes:
            guide = float(y[0]) * (at / at[0]) ** slopes[name]
            ax.loglog(at, guide, ls=":", lw=1.2, color=style["color"], zorder=1)
            words = f"slope {slopes[name]:g}".replace("-", "−")
            ax.annotate(words, (at[-1], guide[-1]), (4, 0), textcoords="offset points", va="center", fontsize=8.5)


def samples(ax: Axes, values: Sequence[float], *, color: str, keep: float = 0.98, bins: int = 41) -> None:
    """Histogram of a number of each sample that has both signs, with its mean and the mean of its absolute values.

    What lies outside of the central share ``keep`` is in the outermost bars.
    """
    q = np.asarray(values, float)
    edge = float(np.quantile(np.abs(q), keep))
    edges = np.linspace(-edge, edge, bins + bins % 2 + 1).tolist()  # 0 is an edge: no bar has both signs
    ax.hist(np.clip(q[q >= 0], None, edge), edges, color=TONES[-1], label="bends up")
    ax.hist(np.clip(q[q < 0], -edge, None), edges, color=color, label="bends down")
    ax.axvline(q.mean(), color=INK, lw=1.6, ls="--", label="mean")
    ax.axvline(np.abs(q).mean(), color=INK, lw=1.6, label="mean of |·|")
