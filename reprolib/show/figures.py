"""All pieces that figures are made of, under one name: ``from reprolib.show import figures``."""

from reprolib.show.along import ELLS, along, errors, rates, rounding
from reprolib.show.curves import NAMES, Line, band, curves, lines_of, phases, window
from reprolib.show.maps import arrow, heat, levels, path
from reprolib.show.panel import few_ticks, headline, label, legend, level, mark, name_rows, shade, sheet, ticks
from reprolib.show.points import bars, dots, samples, scaling, seeds
from reprolib.show.search import chosen, search, trials, within
from reprolib.show.style import COLOURS, INK, NEUTRAL, TONES, WIDTH, colour, shades, use_style

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
