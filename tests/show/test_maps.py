"""Heat maps, level lines, paths."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

from reprolib.errors import InvalidInput
from reprolib.show.maps import arrow, heat, levels, path
from reprolib.show.panel import sheet
from reprolib.show.style import COLOURS
from tests.show import vision


@pytest.mark.parametrize("cmap", ["Greys", "YlOrRd", "viridis", "RdBu_r"])
def test_every_number_of_a_heat_map_can_be_read(cmap):
    _, (ax,) = sheet()
    heat(ax, np.arange(9.0).reshape(3, 3), list("abc"), list("xyz"), cmap=cmap)
    (image,) = ax.images
    for text in ax.texts:
        j, i = text.get_position()
        ground = np.array(mpl.colormaps[cmap](image.norm(3 * i + j))[:3])
        assert vision.contrast(vision.rgb([text.get_color()]), ground)[0] > 4
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]


def test_a_cell_without_a_number_is_empty():
    _, (ax,) = sheet()
    heat(ax, np.array([[1.0, np.nan]]), ["a"], ["x", "y"], text=lambda v: f"<{v:g}>")
    assert [text.get_text() for text in ax.texts] == ["<1>"]
    with pytest.raises(InvalidInput, match="2 columns"):
        heat(ax, np.zeros((2, 3)), ["a", "b"], ["x", "y"])


def test_level_lines_of_a_bowl_are_equally_far_apart_and_no_grid_lies_over_them():
    _, (ax,) = sheet()
    levels(ax, lambda x, y: x**2 + y**2, (-3, 3), (-3, 3), at=5)
    heights = ax.collections[0].levels
    assert np.allclose(np.diff(np.sqrt(heights)), np.diff(np.sqrt(heights))[0], rtol=1e-3)
    assert ax.get_xlim() == (-3, 3)
    assert not ax.xaxis.get_gridlines()[0].get_visible()


def test_a_path_begins_with_a_ring():
    _, (ax,) = sheet()
    points = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    path(ax, points, color=COLOURS["curveball"], label="CurveBall", ls="--")
    way, ring = ax.lines
    assert way.get_xydata().tolist() == points.tolist()
    assert (way.get_label(), way.get_color(), way.get_linestyle()) == ("CurveBall", COLOURS["curveball"], "--")
    assert ring.get_xydata().tolist() == [[0.0, 1.0]]
    assert ring.get_markerfacecolor() == "none"


def test_an_arrow_goes_from_here_to_there():
    _, (ax,) = sheet()
    arrow(ax, (0.1, 0.2), (0.7, 0.9))
    (text,) = ax.texts
    assert (text.xyann, text.xy) == ((0.1, 0.2), (0.7, 0.9))
