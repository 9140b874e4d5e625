"""Slices of a loss, and errors of derivatives."""

from __future__ import annotations

import numpy as np

from reprolib.show.along import along, errors, rates, rounding
from reprolib.show.panel import sheet
from reprolib.show.style import COLOURS, INK


def test_the_loss_decides_the_window():
    _, (ax,) = sheet()
    t = np.linspace(0, 2, 21)
    along(ax, t, t**2 - t, {"slope": (-50 * t, {}), "model": (100 * t**2, {"color": COLOURS["red-sgd"], "ls": "-"})})
    low, high = ax.get_ylim()
    assert -1 < low < -0.25
    assert 2 < high < 3
    loss, slope, model, lowest = ax.lines
    assert (loss.get_color(), loss.get_label()) == (INK, "loss")
    assert (slope.get_label(), model.get_label(), model.get_color()) == ("slope", "model", COLOURS["red-sgd"])
    assert lowest.get_xydata().tolist() == [[0.5, -0.25]]


def test_the_rates_are_fractions_with_their_own_marks():
    _, (ax,) = sheet()
    rates(ax, {0.5: -1.0, 1.0: 0.0, 2.0: 8.0})
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "½", "1", "1½", "2"]
    assert [line.get_marker() for line in ax.lines] == ["o", "s", "^"]


def test_an_error_of_zero_is_drawn_and_advice_lies_at_the_axis():
    _, (ax,) = sheet()
    errors(ax, [1e-8, 1e-4, 1], [0.0, 1e-9, 1e-2], label="central", color="#000000", advised=1e-5)
    rounding(ax, 1.1e-16, "rounding")
    curve, advice = ax.lines
    assert curve.get_ydata().tolist() == [1e-17, 1e-9, 1e-2]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert advice.get_xydata().tolist() == [[1e-5, 0.02]]
    floor = ax.patches[0]
    assert floor.get_y() < 1.1e-16 < floor.get_y() + floor.get_height()
    assert ax.texts[0].get_text() == "rounding"
