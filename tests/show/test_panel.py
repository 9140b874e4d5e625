"""What every figure is built of."""

from __future__ import annotations

import pytest

from reprolib.errors import InvalidInput
from reprolib.show.panel import few_ticks, headline, label, legend, level, mark, name_rows, shade, sheet, ticks
from reprolib.show.style import NEUTRAL


def test_a_sheet_has_one_to_four_panels_and_says_what_it_shows():
    figure, axes = sheet(3, title="three of them")
    assert len(axes) == len(figure.axes) == 3
    assert figure.get_suptitle() == "three of them"
    for panels in (0, 5):
        with pytest.raises(InvalidInput, match="table"):
            sheet(panels)


def test_a_long_headline_stays_within_the_figure():
    figure, _ = sheet()
    headline(figure, "RED is below the tuned baseline in seven of eight comparisons " * 3)
    figure.canvas.draw()
    words = figure._suptitle.get_window_extent()
    assert words.x1 <= figure.bbox.x1
    assert "\n" in figure.get_suptitle()


def test_a_panel_names_its_axes_and_keeps_the_names_that_are_not_given():
    _, (ax,) = sheet()
    label(ax, "panel", "epoch", "loss", yscale="log")
    label(ax, y="training loss")
    assert (ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()) == ("panel", "epoch", "training loss")
    assert ax.get_yscale() == "log"


def test_a_level_lies_across_the_whole_panel_and_its_words_inside():
    figure, (ax,) = sheet()
    ax.set(xlim=(0, 10), ylim=(0, 10))
    across, up = level(ax, 4.0, "guessing"), level(ax, 6.0, "limit", axis="x")
    assert list(across.get_xdata()) == list(up.get_ydata()) == [0, 1]
    assert across.get_color() == NEUTRAL
    figure.canvas.draw()
    for text in ax.texts:
        box = text.get_window_extent()
        assert ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1
        assert ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
    with pytest.raises(InvalidInput, match="'z'"):
        level(ax, 1, axis="z")


def test_a_mark_is_a_point_with_its_word_beside_it():
    _, (ax,) = sheet()
    mark(ax, 0.5, 2.0, "bottom", shift=(0, -8))
    assert ax.lines[0].get_xydata().tolist() == [[0.5, 2.0]]
    (text,) = ax.texts
    assert (text.get_text(), text.xy, text.get_va()) == ("bottom", (0.5, 2.0), "top")


def test_a_shaded_phase_does_not_hide_curves():
    _, (ax,) = sheet()
    shade(ax, 1, 2)
    (line,) = ax.plot([0, 3], [0, 1])
    assert ax.patches[0].get_zorder() < line.get_zorder()
    assert ax.patches[0].get_alpha() < 0.5


def test_one_legend_names_each_label_once_in_the_order_of_appearance():
    figure, (left, right) = sheet(2)
    for ax, names in ((left, "ab"), (right, "bc")):
        for name in names:
            ax.plot([0, 1], label=name)
    legend(figure)
    (found,) = figure.legends
    assert [text.get_text() for text in found.get_texts()] == ["a", "b", "c"]
    with pytest.raises(InvalidInput, match="label="):
        legend(sheet()[0])


def test_a_legend_of_long_names_wraps_within_the_figure():
    figure, (ax,) = sheet()
    for k in range(6):
        ax.plot([0, k], label=f"a rather long name of method number {k}")
    legend(figure)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert not box.overlaps(ax.get_window_extent())


def test_ticks_are_those_that_are_asked_for():
    _, (ax,) = sheet()
    ax.set(xscale="log", xlim=(0.1, 10))
    ticks(ax, [0.2, 1, 5])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.2", "1", "5"]
    assert len(ax.xaxis.get_minorticklocs()) == 0


@pytest.mark.parametrize("limits", [(1e-5, 10), (1.7, 2.4), (0.02, 0.1), (3, 30)])
def test_logarithmic_axes_have_a_few_labels_that_do_not_overlap(limits):
    figure, (ax,) = sheet()
    ax.set(yscale="log", ylim=limits)
    few_ticks(ax)
    figure.canvas.draw()
    shown = [
        t.get_window_extent()
        for t in ax.get_yticklabels()
        if t.get_text() and ax.bbox.y0 <= t.get_window_extent().y0 <= ax.bbox.y1
    ]
    assert 2 <= len(shown) <= 10
    assert not any(a.overlaps(b) for i, a in enumerate(shown) for b in shown[:i])


def test_rows_count_from_the_top():
    _, (ax,) = sheet()
    assert name_rows(ax, ["first", "second"]).tolist() == [0, 1]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["first", "second"]
    low, high = ax.get_ylim()
    assert low > high
