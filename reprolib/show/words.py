"""Words for numbers, so that titles and sentences can be computed."""

from __future__ import annotations

import math
from collections.abc import Iterable

FEW = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def number(n: int) -> str:
    """A small whole number as a word.

    >>> number(0), number(8), number(45)
    ('no', 'eight', '45')
    """
    return FEW[n] if 0 <= n < len(FEW) else str(n)


def counted(n: int, what: str, plural: str = "") -> str:
    """How many of something.

    >>> counted(1, "seed"), counted(3, "seed"), counted(0, "loss", "losses")
    ('one seed', 'three seeds', 'no losses')
    """
    return f"{number(n)} {what if n == 1 else plural or what + 's'}"


def listed(names: Iterable[str], word: str = "and") -> str:
    """An enumeration.

    >>> listed(["a"]), listed("ab"), listed("abc", "or")
    ('a', 'a and b', 'a, b or c')
    """
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


def times(ratio: float) -> str:
    """A ratio as a multiple of what is compared with.

    >>> times(0.5), times(1.02), times(1.98), times(2.6), times(0.27), times(31.4)
    ('half', 'as much as', 'twice', '2.6 times', '0.27 times', '31 times')
    """
    for value, word in ((0.5, "half"), (1.0, "as much as"), (2.0, "twice")):
        if math.isclose(ratio, value, rel_tol=0.04):
            return word
    return f"{plain(ratio)} times"


def plain(value: float) -> str:
    """A number with two digits, never as a power of ten.

    >>> plain(0.745), plain(117.3), plain(2.0)
    ('0.74', '120', '2')
    """
    return f"{float(f'{value:.2g}'):g}"


def between(values: Iterable[float], form: str = "") -> str:
    """The range of some numbers, with two digits or in the format that is given.

    >>> between([1.4, 117.3, 19]), between([2.0, 2.0], "{:.0f}")
    ('1.4 to 120', '2')
    """
    values = list(values)
    write = form.format if form else plain
    return " to ".join(dict.fromkeys([write(min(values)), write(max(values))]))
