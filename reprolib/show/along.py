"""The loss along one direction beside the models that claim to know it, and the errors of derivatives over the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reprolib.show.panel import ticks
from reprolib.show.style import INK, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ELLS = {0.5: "o", 1.0: "s", 2.0: "^"}  # RED's three rates have the same marks in all figures
FRACTIONS = {0.25: "¼", 0.5: "½", 0.75: "¾", 1.5: "1½"}
NOTHING = 1e-17  # where an error of exactly zero is drawn


def along(
    ax: Axes,
    t: Sequence[float],
    truth: Sequence[float],
    models: Mapping[str, tuple[Sequence[float], Mapping[str, Any]]],
    *,
    room: float = 0.3,
) -> None:
    """The true loss (thick) against the length of the step, and what each model says (values and keywords of ``plot``).

    The loss decides the window: a model that leaves it is cut off, ``room`` times the loss's range below and above.
    """
    losses = np.asarray(truth, float)
    ax.plot(t, losses, color=INK, lw=2.4, label="loss", zorder=3)
    for name, (values, style) in models.items():
        ax.plot(t, values, label=name, **{"ls": "--", "color": NEUTRAL, **style})
    low, high = float(losses.min()), float(losses.max())
    ax.set_ylim(low - room * (high - low), high + room * (high - low))
    ax.plot(t[int(losses.argmin())], low, "v", color=INK, ms=5, zorder=3)


def rates(ax: Axes, height: Mapping[float, float] | None = None, *, color: str = INK, upto: float = 2.0) -> None:
    """Name RED's rates on the x axis as fractions; with ``height``, mark their points, each ℓ by its own marker."""
    at = [v for v in (0.0, 0.5, 1.0, 1.5, 2.0) if v <= upto]
    ticks(ax, at, [FRACTIONS.get(v, f"{v:g}") for v in at])
    ax.set_xlabel("ℓ")
    for ell, y in (height or {}).items():
        ax.plot(ell, y, ELLS[ell], color=color, ms=6.5, zorder=4)


def errors(
    ax: Axes,
    steps: Sequence[float],
    values: Sequence[float],
    *,
    label: str,
    color: str,
    advised: float | None = None,
    **style: Any,
) -> None:
    """Relative errors against the step h of a difference: they fall, turn, and rise again where rounding takes over.

    An error of exactly zero is drawn at 1e-17. ``advised`` is the step that theory recommends: a bar at the axis.
    """
    look: dict[str, Any] = {"marker": "o", "ms": 4, "lw": 1} | style
    ax.loglog(steps, np.maximum(np.asarray(values, float), NOTHING), color=color, label=label, **look)
    if advised is not None:
        ax.plot(advised, 0.02, "|", ms=12, mew=2, color=color, transform=ax.get_xaxis_transform())


def rounding(ax: Axes, unit: float, words: str = "") -> None:
    """The region of errors that are nothing but rounding: within a factor of thirty below and three above ``unit``."""
    ax.axhspan(unit / 30, unit * 3, color=NEUTRAL, alpha=0.2, lw=0, zorder=0)
    if words:
        at: dict[str, Any] = {"xy": (1, unit / 3), "xycoords": ax.get_yaxis_transform(), "xytext": (-3, 0)}
        ax.annotate(words, textcoords="offset points", ha="right", va="center", fontsize=8.5, color=NEUTRAL, **at)
