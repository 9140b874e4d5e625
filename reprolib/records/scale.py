"""How large an experiment is: the four scales, smallest first. Imports nothing that takes time."""

from __future__ import annotations

from reprolib.errors import UnknownName

SCALES = ("smoke", "desk", "night", "paper")  # the README and book/how-to-read.md say what they are
SMOKE, *CONCLUSIVE = SCALES  # smoke shows that an experiment runs and is no evidence


def check_scale(scale: str) -> str:
    """The scale itself if it is known.

    >>> check_scale("night")
    'night'
    """
    if scale not in SCALES:
        raise UnknownName.among("scale", scale, SCALES)
    return scale
