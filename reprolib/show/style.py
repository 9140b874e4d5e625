"""The look of every figure: one colour a method through the whole book, muted tones for everything else, sizes."""

from __future__ import annotations

from reprolib.errors import UnknownName

# One colour a method, and no method's colour for anything else. They are vivid and of medium brightness, so that they keep
# their hue on the dark theme, whose filter (book.css) turns light into dark; those that meet in one figure stay apart with
# normal sight and with each kind of colour blindness, on both themes (tests/show/test_style.py).
COLOURS = {
    "sgd": "#E99526",
    "rmsprop": "#4F7ACC",
    "red-sgd": "#EE300C",
    "red-rmsprop": "#3CBB98",
    "curveball": "#CD5989",
    "adler": "#8F9AFF",
    "summary": "#B581BD",
    "csdd": "#618200",
    "momentum": "#8A4446",
    "adam": "#115CC2",
    "adamw": "#C926FE",
    "adagrad": "#8BA057",
    "torch-rmsprop": "#5F8FFD",
    "lbfgs": "#BB3068",
    "shampoo": "#724092",
    "adahessian": "#AD6551",
    "prodigy": "#63609F",
    "schedule-free": "#52BCCD",
    "d-adaptation": "#A669AF",
    "step-tuned": "#0F7903",
    "robbins-monro": "#FF7E86",
}
# Everything else is drawn in ink, in grey, or in tones that are too muted to be taken for a method.
INK = "#000000"
NEUTRAL = "#666666"
TONES = ("#3F566A", "#8A6A70", "#A3977F", "#C9C9C9")  # slate, mauve, sand, silver
WIDTH = 7.4  # inches: at this width one printed point is about one point of the page's text


def colour(method: str) -> str:
    """The colour of a method.

    Raises:
        UnknownName: it has none.
    """
    if method not in COLOURS:
        raise UnknownName.among("method with a colour", method, COLOURS)
    return COLOURS[method]


def shades(n: int, of: str = INK) -> list[str]:
    """``n`` shades of one colour from light to dark, for what is ordered: batch sizes, or the settings of one method.

    >>> shades(3)
    ['#b2b2b2', '#595959', '#000000']
    """
    from matplotlib.colors import to_hex, to_rgb

    r, g, b = to_rgb(of)
    lightest = 0.7  # of the way to white
    mixed = (lightest * (1 - k / max(1, n - 1)) for k in range(n))
    return [to_hex((r + share * (1 - r), g + share * (1 - g), b + share * (1 - b))) for share in mixed]


def use_style() -> None:
    """Set the book's style for the figures that follow (transparent, so that they sit on either theme)."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.2),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "savefig.bbox": "tight",
            "figure.dpi": 120,
            "font.size": 9.5,
            "axes.titlesize": 10,
            "axes.labelsize": 9.5,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#999999",
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.6,
            "axes.prop_cycle": cycler(color=[INK, *TONES]),  # a line without a method is in no method's colour
        }
    )
