"""Points, bars, guides of growth, histograms."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reprolib.show.panel import sheet
from reprolib.show.points import bars, dots, samples, scaling, seeds
from reprolib.show.style import COLOURS, TONES


def test_dots_of_a_row_do_not_hide_each_other():
    _, (ax,) = sheet()
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0]}, index=["first", "second"])
    dots(ax, table, {"a": {"label": "A"}, "b": {"label": "B"}}, spread=table / 10)
    first, second = (line.get_ydata() for line in ax.lines[:2])
    assert (np.abs(first - second) > 0.2).all()
    assert [text.get_text() for text in ax.get_yticklabels()] == ["first", "second"]


def test_a_run_that_diverged_stands_at_the_edge_by_name():
    _, (ax,) = sheet()
    ax.set(xscale="log", xlim=(0.1, 10))
    seeds(ax, 0, [np.nan, np.inf], (0.1, 10), color=COLOURS["sgd"])
    assert ax.lines[0].get_xdata().tolist() == [10, 10]
    assert [text.get_text() for text in ax.texts] == ["diverged"]
    seeds(ax, 1, [0.01, 1.0, 80.0], (0.1, 10))
    assert {text.get_text() for text in ax.texts[1:]} == {"0.01", "80"}


def test_bars_add_up():
    _, (ax,) = sheet()
    bars(
        ax,
        {"SGD": {"forward": 1, "backward": 2}, "RED": {"forward": 1, "backward": 2, "tangent": 3}},
        total="{:.0f} passes",
    )
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
    assert max(ends) == 6
    assert [text.get_text() for text in ax.texts] == ["3 passes", "6 passes"]
    assert [handle.get_label() for handle in ax.containers] == ["forward", "backward", "tangent"]
    assert not {tuple(patch.get_facecolor()[:3]) for patch in ax.patches} & set(COLOURS.values())


def test_many_parts_have_a_tone_each_time():
    _, (ax,) = sheet()
    bars(ax, {"one": {str(k): 1.0 for k in range(len(TONES) + 2)}})
    assert len(ax.patches) == len(TONES) + 2


def test_a_guide_has_the_slope_that_is_expected():
    _, (ax,) = sheet()
    x = np.array([1.0, 10.0, 100.0])
    scaling(ax, x, {"norm": 5 / x}, {"norm": {"color": COLOURS["adler"]}}, slopes={"norm": -0.5})
    curve, guide = ax.lines
    assert np.allclose(guide.get_ydata(), 5 * x**-0.5)
    assert curve.get_label() == "norm"
    assert ax.texts[0].get_text() == "slope −0.5"


def test_no_bar_of_the_histogram_has_both_signs_and_all_samples_are_in_it():
    _, (ax,) = sheet()
    values = np.random.default_rng(0).normal(1, 2, 500)
    samples(ax, values, color=COLOURS["red-sgd"])
    bars_ = [(p.get_x(), p.get_x() + p.get_width(), p.get_height()) for p in ax.patches]
    assert all(left >= -1e-12 or right <= 1e-12 for left, right, n in bars_ if n)
    assert sum(n for _, _, n in bars_) == 500
    mean, absolute = (float(line.get_xdata()[0]) for line in ax.lines)
    assert (mean, absolute) == (values.mean(), np.abs(values).mean())
