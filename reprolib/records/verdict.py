"""Verdicts: computed from records, never written by hand; the words here are all that the book, the README and the
command line use.

A *statement* is reproduced or not. A *figure*, a table that is a drawing, or a setting can only be *drawn*: that it is there
confirms nothing that the paper says of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from reprolib.errors import InvalidInput

REPRODUCED, PARTLY, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "partly", "not reproduced", "inconclusive"
WHERE_TESTABLE, NOT_TESTABLE = "reproduced where testable", "not testable here"
STATEMENTS = (REPRODUCED, WHERE_TESTABLE, PARTLY, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTABLE)
DRAWN, DRAWN_IN_PART, NOT_DRAWN = DRAWINGS = ("drawn", "drawn in part", "not drawn")
SEEDS_FOR_A_VERDICT, SEEDS_FOR_A_MEAN = 2, 5


def by_seed(holds: Sequence[bool | None]) -> str:
    """The verdict on an effect from its sign in each seed; ``None`` is a seed in which it could not have failed.

    One seed is an anecdote: inconclusive. With fewer than five all must agree, or the verdict is inconclusive; from five on,
    at least four fifths must.

    >>> by_seed([True, True, True]), by_seed([True, False, True]), by_seed([False, False, False])
    ('reproduced', 'inconclusive', 'not reproduced')
    >>> by_seed([True, None, True]), by_seed([True]), by_seed([False, None, None]), by_seed([None, None, None])
    ('reproduced', 'inconclusive', 'inconclusive', 'not testable here')
    """
    told = [bool(hold) for hold in holds if hold is not None]
    if not told:
        return NOT_TESTABLE
    if len(told) < SEEDS_FOR_A_VERDICT:
        return INCONCLUSIVE
    share = sum(told) / len(told)
    margin = 0.2 if len(told) >= SEEDS_FOR_A_MEAN else 0.0
    if share >= 1 - margin:
        return REPRODUCED
    return NOT_REPRODUCED if share <= margin else INCONCLUSIVE


def unless_idle(holds: bool, idle: bool) -> bool | None:
    """``holds`` for :func:`by_seed`, but ``None`` where a network that has learned nothing (``idle``) would pass, too.

    >>> unless_idle(True, False), unless_idle(True, True), unless_idle(False, True)
    (True, None, False)
    """
    return None if holds and idle else bool(holds)


def over_cases(holds: Sequence[bool]) -> str:
    """The verdict on a statement about each of several cases, such as networks, that do not depend on chance.

    >>> over_cases([True, True]), over_cases([True, False]), over_cases([False, False])
    ('reproduced', 'partly', 'not reproduced')
    """
    return REPRODUCED if all(holds) else PARTLY if any(holds) else NOT_REPRODUCED


def drawn(curves: Sequence[bool]) -> str:
    """What became of a figure, from whether each of its curves is there to the end.

    >>> drawn([True, True]), drawn([True, False]), drawn([False, False])
    ('drawn', 'drawn in part', 'not drawn')
    """
    return DRAWN if all(curves) else DRAWN_IN_PART if any(curves) else NOT_DRAWN


def combined(verdicts: Iterable[str]) -> str:
    """The verdict on one claim from those on its cases, such as tasks and methods.

    What is known of some cases decides: one that is inconclusive cannot undo *partly*, but it can keep the others from
    being the whole answer. One that is not testable here leaves "not reproduced" as it is, and "reproduced" with a limit.

    >>> combined(["reproduced", "reproduced"]), combined(["not reproduced"]), combined(["reproduced", "not reproduced"])
    ('reproduced', 'not reproduced', 'partly')
    >>> combined(["reproduced", "inconclusive"]), combined(["reproduced", "inconclusive", "not reproduced"])
    ('inconclusive', 'partly')
    >>> combined(["not testable here", "reproduced"]), combined(["not testable here"])
    ('reproduced where testable', 'not testable here')
    >>> combined(["drawn", "drawn"]), combined(["drawn", "not drawn"])
    ('drawn', 'drawn in part')

    Raises:
        InvalidInput: there are none, one is not among the words of this module, or a drawing is mixed with a statement.
    """
    seen = set(verdicts)
    if not seen:
        raise InvalidInput("no verdicts to combine: a claim that no case speaks of is open")
    judged = seen - {NOT_TESTABLE} or seen
    if judged <= set(DRAWINGS):
        return NOT_DRAWN if judged == {NOT_DRAWN} else DRAWN if seen == {DRAWN} else DRAWN_IN_PART
    if wrong := seen - set(STATEMENTS):
        raise InvalidInput(
            f"{', '.join(sorted(wrong))!r} among the verdicts on a statement: they are {', '.join(STATEMENTS)}"
        )
    if PARTLY in judged or (judged & {REPRODUCED, WHERE_TESTABLE} and NOT_REPRODUCED in judged):
        return PARTLY
    if INCONCLUSIVE in judged:
        return INCONCLUSIVE
    if judged <= {REPRODUCED, WHERE_TESTABLE}:
        return REPRODUCED if seen == {REPRODUCED} else WHERE_TESTABLE
    return judged.pop()


def in_words(verdicts: Sequence[str]) -> str:
    """:func:`combined`, and what it is made of where its cases differ.

    >>> print(in_words(["reproduced", "not testable here", "reproduced", "not testable here"]))
    reproduced where testable (2 of 4)
    >>> print(in_words(["not reproduced", "reproduced", "not reproduced"]))
    partly (1 reproduced, 2 not reproduced)
    >>> print(in_words(["reproduced", "reproduced"]))
    reproduced
    """
    whole, counts = combined(verdicts), Counter(verdicts)
    if len(counts) == 1:
        return whole
    if whole in (WHERE_TESTABLE, DRAWN_IN_PART):
        return f"{whole} ({counts[REPRODUCED] + counts[DRAWN]} of {counts.total()})"
    return f"{whole} ({', '.join(f'{counts[word]} {word}' for word in STATEMENTS if counts[word])})"


def by_claim(rows: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """The verdicts on the cases of each claim, from rows of an experiment's ``verdicts``.

    >>> rows = [{"claim": "red-c01", "verdict": word} for word in ("reproduced", "not testable here")]
    >>> {claim: in_words(found) for claim, found in by_claim(rows).items()}
    {'red-c01': 'reproduced where testable (1 of 2)'}
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["claim"], []).append(row["verdict"])
    return found
