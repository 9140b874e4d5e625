"""Curves of methods over training."""

from __future__ import annotations

import pandas as pd
import pytest

from reprolib.errors import InvalidInput
from reprolib.show.curves import Line, band, curves, lines_of, phases, window
from reprolib.show.panel import sheet
from reprolib.show.style import COLOURS


def rows(method="sgd", losses=((1.0, 0.5), (3.0, 1.5)), **more):
    """A row for each seed and each of two iterations."""
    found = [
        {
            "task": "t",
            "method": method,
            "seed": seed,
            "iteration": k,
            "epoch": k + 1.0,
            "loss": loss,
            "step": 0.1 * loss,
        }
        for seed, both in enumerate(losses)
        for k, loss in enumerate(both)
    ]
    return pd.DataFrame(found).assign(**more)


def test_band_is_mean_and_range_over_the_seeds():
    _, (ax,) = sheet()
    band(ax, rows(), "loss", method="sgd", label="SGD")
    assert ax.lines[0].get_xydata().tolist() == [[1.0, 2.0], [2.0, 1.0]]
    assert ax.lines[0].get_color() == COLOURS["sgd"]
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (0.5, 3.0)


def test_a_method_without_values_draws_nothing():
    _, (ax,) = sheet()
    band(ax, rows(), "loss", method="adam")
    assert not ax.has_data()


def test_curves_have_a_panel_a_task_and_one_legend():
    tables = {"one": pd.concat([rows(), rows("red-sgd")]), "two": rows("red-sgd")}
    figure = curves(tables, title="both")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["one", "two"]
    assert [len(ax.lines) for ax in figure.axes] == [2, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SGD, tuned", "RED-SGD"]
    assert figure.axes[0].get_ylabel() == "training loss"
    assert [ax.get_xlabel() for ax in figure.axes] == ["epoch", "epoch"]


def test_curves_of_two_quantities_have_a_row_for_each():
    figure = curves({"one": rows(), "two": rows()}, {"loss": "training loss", "step": "step"})
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss", "", "step", ""]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "epoch", "epoch"]
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["one", "two", "", ""]


def test_more_than_four_panels_are_refused_and_so_is_what_no_method_has():
    with pytest.raises(InvalidInput, match="5 panels"):
        curves({str(k): rows() for k in range(5)})
    with pytest.raises(InvalidInput, match="'step' of Adam"):
        curves({"one": rows()}, {"step": "step"}, lines=[Line("adam")])


def test_a_line_takes_the_rows_that_it_is_about():
    table = pd.concat([rows("red-sgd", kind="RED"), rows("red-sgd", losses=((8.0, 8.0),), kind="RAn")])
    figure = curves({"one": table}, lines=[Line("red-sgd", "RAn", {"kind": "RAn"}, {"ls": ":"})])
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == [8.0, 8.0]
    assert (line.get_label(), line.get_linestyle()) == ("RAn", ":")
    assert Line("rmsprop").name == "RMSProp, tuned"


def test_methods_come_in_the_order_of_the_book():
    assert [line.method for line in lines_of(pd.concat([rows("red-sgd"), rows("sgd")]))] == ["sgd", "red-sgd"]


def test_the_longer_the_rate_the_darker_its_phase():
    _, (ax,) = sheet()
    phases(ax, [(0, 5, 1.0), (5, 18, 0.5), (18, 20, 2.0)])
    one, two = ax.patches
    assert (one.get_x(), one.get_width(), two.get_x(), two.get_width()) == (0, 5, 18, 2)
    assert one.get_alpha() < two.get_alpha()


def test_the_window_ends_above_the_start_and_below_the_lowest():
    low, high = window(rows(losses=((1.0, 0.5), (1.0, 500.0))), "loss")
    assert low < 0.5
    assert 1.0 < high < 500.0
