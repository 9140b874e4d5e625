"""One look for every figure: palette, sizes, and the mean line with its min–max band over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reprolib.lab.methods import METHODS
from reprolib.records.statistics import MEAN, Spread
from reprolib.tasks import task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One colour per method through the whole book: the first ones from the colour-blind safe palette of Okabe & Ito, the
# baselines as far from them and from each other as they can be, with normal sight and with each kind of colour blindness.
COLOURS = {
    "sgd": "#E69F00",
    "rmsprop": "#0072B2",
    "red-sgd": "#D55E00",
    "red-rmsprop": "#009E73",
    "curveball": "#CC79A7",
    "adler": "#56B4E9",
    "summary": "#8C6BB1",
    "csdd": "#7F7F7F",
    "momentum": "#941B00",
    "adam": "#1B28FF",
    "adamw": "#6B94FF",
    "adagrad": "#79C979",
    "torch-rmsprop": "#3679FF",
    "lbfgs": "#793651",
    "shampoo": "#6B3686",
    "adahessian": "#BC3628",
    "prodigy": "#2843BC",
    "schedule-free": "#A1BCBC",
    "d-adaptation": "#795E79",
    "step-tuned": "#6B7A00",
    "robbins-monro": "#B07D9E",
}
NEUTRAL = "#666666"
WIDTH = 7.4  # inches: at this width one printed point is about one point of the page's text


def use_style() -> None:
    """Set the book's style for the figures that follow (transparent, so that they sit on either theme)."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.2),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "savefig.bbox": "tight",
            "figure.dpi": 120,
            "font.size": 9.5,
            "axes.titlesize": 10,
            "axes.labelsize": 9.5,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#999999",
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.6,
            "axes.prop_cycle": cycler(color=list(COLOURS.values())),
        }
    )


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


def few_ticks(ax: Axes) -> None:
    """On logarithmic axes ticks at 1, 2 and 5 times powers of ten where there is room, as plain numbers, and no labels between."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() != "log":
            continue
        low, high = sorted(axis.get_view_interval())
        wide = high > 30 * low
        axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=5))
        axis.set_major_formatter(LogFormatterSciNotation() if high > 1e4 or low < 1e-3 else "{x:g}")
        axis.set_minor_formatter(NullFormatter())


def dots(
    ax: Axes, values: pd.DataFrame, styles: Mapping[str, Mapping[str, Any]], spread: pd.DataFrame | None = None
) -> None:
    """A row per index of ``values``, a marker per column (keywords of ``Axes.errorbar``), with a bar as long as its spread.

    The columns lie one below the other within a row, so that equal values do not hide each other.
    """
    rows = np.arange(len(values))
    for shift, (column, style) in zip(np.linspace(-0.3, 0.3, len(styles)), styles.items(), strict=True):
        bar = None if spread is None else spread[column].to_numpy(float) / 2
        marker = {"ls": "none", "ms": 5, "elinewidth": 1, **style}
        ax.errorbar(values[column].to_numpy(float), rows + shift, xerr=bar, **marker)
    ax.hlines(rows[1:] - 0.5, 0, 1, transform=ax.get_yaxis_transform(), color=NEUTRAL, alpha=0.4, lw=0.6)
    ax.grid(axis="y", visible=False)
    ax.set_yticks(rows, list(values.index))
    ax.set_ylim(len(rows) - 0.5, -0.5)


ROWS = {"loss": "training loss", "step": "step", "test_loss": "test loss", "test_error": "test error in %"}


def panels(table: pd.DataFrame, rows: Sequence[str] = tuple(ROWS)) -> Figure:
    """A column per task and a row per quantity of ``ROWS``, every method in each: the layout of RED's Figure 2."""
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(table["task"]))
    table = table.assign(test_error=100 * (1 - table["test_accuracy"]))
    methods = [m for m in METHODS.values() if m.name in set(table["method"])]
    figure, axes = plt.subplots(
        len(rows), len(tasks), figsize=(WIDTH, 0.5 + 2.15 * len(rows)), sharex="col", squeeze=False
    )
    for column, name in zip(axes.T, tasks, strict=True):
        part = table[table["task"] == name]
        for ax, row in zip(column, rows, strict=True):
            for m in methods:
                band(ax, part, row, method=m.name, label=m.label)
            ax.set(yscale="log", ylabel=ROWS[row])
            if part[row].notna().any():
                lowest = ax
            else:
                ax.axis("off")
                ax.text(0.5, 0.5, "an autoencoder:\nno accuracy", ha="center", transform=ax.transAxes, color=NEUTRAL)
        column[0].set_title(task(name).title)
        lowest.set_xlabel("epoch")
        lowest.tick_params(labelbottom=True)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods))
    return figure
