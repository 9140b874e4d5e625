"""What a search for a learning rate saw: the valley, the rates that diverged, the one that was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from reprolib.show.panel import few_ticks
from reprolib.show.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trials(note: Mapping[str, Any]) -> pd.DataFrame:
    """Every trial of a record's note on a tuning, in the order of the rate: ``lr``, ``train_loss``, ``status``, ``round``."""
    rounds = [(note["first_round"], "first"), (note["grid"], "second")]
    table = pd.concat([pd.DataFrame(rows).assign(round=name) for rows, name in rounds if rows], ignore_index=True)
    return table.astype({"train_loss": float}).sort_values("lr", kind="stable", ignore_index=True)


def chosen(note: Mapping[str, Any]) -> Mapping[str, Any]:
    """The trial whose options the tuning took."""
    return next(row for row in note["grid"] if all(row[k] == v for k, v in note["options"].items()))


def within(note: Mapping[str, Any], start: float, share: float = 0.5) -> list[float]:
    """The rates of the first round that get at least ``share`` of the best one's decrease from ``start``, ascending."""
    rows = trials(note)
    losses = rows[rows["round"] == rows["round"].iloc[0]].groupby("lr")["train_loss"].min()
    gained = start - losses
    return [float(rate) for rate in gained.index[gained >= share * gained.max()]]


def search(ax: Axes, note: Mapping[str, Any], *, color: str, label: str, top: float) -> None:
    """Loss of each trial against its rate: the envelope over all decays as a line, the choice as a ring.

    What ends above ``top`` is a triangle at the upper edge, what diverged a cross.
    """
    rows = trials(note)
    known = rows.dropna(subset=["train_loss"])
    best = known.groupby("lr")["train_loss"].min()
    ax.plot(known["lr"], known["train_loss"], ".", color=color, alpha=0.45, ms=5)
    ax.plot(best.index, best, "-", color=color, label=label)
    edge: dict[str, Any] = {"color": color, "ls": "none", "ms": 6, "transform": ax.get_xaxis_transform()}
    for lost, marker in ((rows[rows["train_loss"].isna()], "x"), (known[known["train_loss"] > top], "^")):
        rates = lost["lr"].unique()
        ax.plot(rates, [0.96] * len(rates), marker, **edge)
    at = chosen(note)
    ax.plot(at["lr"], at["train_loss"], "o", ms=10, mfc="none", mec=INK, mew=1.5)
    ax.set(xscale="log", yscale="log", ylim=(None, top))
    few_ticks(ax)
