"""All pieces that figures are made of, under one name: ``from reprolib.show import figures``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from reprolib.lab.methods import METHODS
from reprolib.show.along import ELLS, along, errors, rates, rounding
from reprolib.show.curves import NAMES, Line, band, curves, lines_of, phases, window
from reprolib.show.maps import arrow, heat, levels, path
from reprolib.show.panel import few_ticks, headline, label, legend, level, mark, name_rows, shade, sheet, ticks
from reprolib.show.points import bars, dots, samples, scaling, seeds
from reprolib.show.search import chosen, search, trials, within
from reprolib.show.style import COLOURS, INK, NEUTRAL, TONES, WIDTH, colour, shades, use_style
from reprolib.tasks import task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "ELLS",
    "INK",
    "NAMES",
    "NEUTRAL",
    "TONES",
    "WIDTH",
    "Line",
    "along",
    "arrow",
    "band",
    "bars",
    "chosen",
    "colour",
    "curves",
    "dots",
    "errors",
    "few_ticks",
    "headline",
    "heat",
    "label",
    "legend",
    "level",
    "levels",
    "lines_of",
    "mark",
    "name_rows",
    "panels",
    "path",
    "phases",
    "rates",
    "rounding",
    "samples",
    "scaling",
    "search",
    "seeds",
    "shade",
    "shades",
    "sheet",
    "ticks",
    "trials",
    "use_style",
    "window",
    "within",
]


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
