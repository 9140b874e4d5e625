"""Colours: told apart by everybody, on both themes, and no method's colour is used for anything else."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from reprolib.errors import UnknownName
from reprolib.lab.methods import METHODS
from reprolib.show.style import COLOURS, INK, NEUTRAL, TONES, colour, shades, use_style
from tests.show import vision

CSS = Path(__file__).parents[2] / "book" / "assets" / "book.css"
FIGURE_2 = ["sgd", "rmsprop", "red-sgd", "red-rmsprop"]
# those that may meet in one figure: the five papers' methods and the common baselines
MEET = [*FIGURE_2, "curveball", "adler", "summary", "csdd", "momentum", "adam", "adamw"]
THEMES = {"light": lambda c: c, "dark": vision.dark}
GROUNDS = {"light": np.ones(3), "dark": np.array([18, 18, 18]) / 255}


def test_every_method_has_a_colour():
    assert COLOURS.keys() >= METHODS.keys()
    assert colour("sgd") == COLOURS["sgd"]
    with pytest.raises(UnknownName, match="red-sgd"):
        colour("red-sdg")


def test_the_filter_of_the_dark_theme_is_the_one_that_is_tested():
    assert f"filter: invert({vision.INVERT}) hue-rotate(180deg)" in CSS.read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(
    ("names", "normal", "least"), [(FIGURE_2, 0.18, 0.09), (MEET, 0.09, 0.05), (list(COLOURS), 0.06, 0.025)]
)
def test_methods_are_told_apart(theme, names, normal, least):
    seen = THEMES[theme](vision.rgb([COLOURS[name] for name in names]))
    assert vision.closest(seen) >= normal
    for kind in vision.BLIND:
        assert vision.closest(vision.blind(seen, kind)) >= least, kind


@pytest.mark.parametrize("theme", THEMES)
def test_methods_stand_out_from_the_page(theme):
    seen = THEMES[theme](vision.rgb(list(COLOURS.values())))
    assert (vision.contrast(seen, GROUNDS[theme]) >= 2.2).all()


def test_a_method_keeps_its_hue_in_the_dark():
    light = vision.lab(vision.rgb(list(COLOURS.values())))
    dark = vision.lab(vision.dark(vision.rgb(list(COLOURS.values()))))
    turned = np.arctan2(light[:, 2], light[:, 1]) - np.arctan2(dark[:, 2], dark[:, 1])
    assert (np.abs((turned + math.pi) % (2 * math.pi) - math.pi) < math.radians(30)).all()


def test_what_is_no_method_is_muted():
    others = vision.rgb([INK, NEUTRAL, *TONES])
    assert vision.chroma(others).max() < 0.045
    assert vision.chroma(vision.rgb(list(COLOURS.values()))).min() > 2 * 0.045
    assert vision.closest(vision.rgb([*TONES])) > 0.12
    assert vision.closest(vision.dark(vision.rgb([*TONES]))) > 0.08


def test_shades_go_from_light_to_dark_and_end_in_the_colour():
    found = vision.lab(vision.rgb(shades(5, COLOURS["red-sgd"])))[:, 0]
    assert (np.diff(found) < 0).all()
    assert shades(5, COLOURS["red-sgd"])[-1].upper() == COLOURS["red-sgd"]


def test_a_line_without_a_method_has_no_methods_colour():
    with mpl.rc_context():
        use_style()
        cycle = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
        assert mpl.rcParams["figure.facecolor"] == mpl.rcParams["axes.facecolor"] == "none"
    assert not set(cycle) & set(COLOURS.values())
