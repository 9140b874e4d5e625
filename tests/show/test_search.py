"""What a tuning saw."""

from __future__ import annotations

import math

from reprolib.show.panel import sheet
from reprolib.show.search import chosen, search, trials, within
from reprolib.show.style import COLOURS


def trial(lr, decay, loss, status="finished"):
    return {"lr": lr, "decay": decay, "train_loss": loss, "status": status}


NOTE = {
    "options": {"lr": 0.1, "decay": 0.9},
    "first_round": [
        trial(0.01, 1.0, 2.0),
        trial(0.1, 1.0, 1.0),
        trial(1.0, 1.0, 9.0),
        trial(10.0, 1.0, None, "diverged"),
    ],
    "grid": [trial(0.1, 0.9, 0.5), trial(0.1, 1.0, 0.8), trial(0.01, 0.9, 2.2)],
}


def test_all_trials_are_there_by_rate():
    table = trials(NOTE)
    assert len(table) == 7
    assert table["lr"].is_monotonic_increasing
    assert math.isnan(table["train_loss"].iloc[-1])
    assert trials(NOTE | {"first_round": []})["round"].tolist() == ["second"] * 3


def test_the_choice_is_found_by_its_options():
    assert chosen(NOTE) is NOTE["grid"][0]


def test_rates_that_get_half_as_far():
    assert within(NOTE, start=2.9) == [0.1]
    assert within(NOTE, start=2.9, share=0.4) == [0.01, 0.1]


def test_what_is_lost_is_at_the_upper_edge():
    _, (ax,) = sheet()
    search(ax, NOTE, color=COLOURS["sgd"], label="SGD", top=3.0)
    by_marker = {line.get_marker(): line.get_xdata().tolist() for line in ax.lines}
    assert by_marker["x"] == [10.0]
    assert by_marker["^"] == [1.0]
    assert by_marker["o"] == [0.1]
    valley = next(line for line in ax.lines if line.get_label() == "SGD")
    assert valley.get_xydata().tolist() == [[0.01, 2.0], [0.1, 0.5], [1.0, 9.0]]
    assert ax.get_ylim()[1] == 3.0
