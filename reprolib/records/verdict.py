"""Verdicts: computed from records, never written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reprolib.errors import InvalidInput

REPRODUCED, PARTLY, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "partly", "not reproduced", "inconclusive"
NOT_TESTABLE = "not testable here"
SEEDS_FOR_A_MEAN = 5


def by_seed(holds: Sequence[bool | None]) -> str:
    """The verdict on an effect from its sign in each seed; ``None`` is a seed in which it could not have failed.

    With fewer than five seeds all must agree, or the verdict is inconclusive; from five on, at least four fifths must.

    >>> by_seed([True, True, True]), by_seed([True, False, True]), by_seed([False, False, False])
    ('reproduced', 'inconclusive', 'not reproduced')
    >>> by_seed([True, None, True]), by_seed([None, None, None])
    ('reproduced', 'not testable here')
    """
    told = [bool(hold) for hold in holds if hold is not None]
    if not told:
        return NOT_TESTABLE
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


def combined(verdicts: Iterable[str]) -> str:
    """The verdict on one claim from those on its cases, such as tasks and methods.

    What is known of some cases decides: one that is inconclusive cannot undo *partly*, but it can keep the others from
    being the whole answer. Cases that are not testable here are left out, unless there is no other.

    >>> combined(["reproduced", "reproduced"]), combined(["not reproduced"]), combined(["reproduced", "not reproduced"])
    ('reproduced', 'not reproduced', 'partly')
    >>> combined(["reproduced", "inconclusive"]), combined(["reproduced", "inconclusive", "not reproduced"])
    ('inconclusive', 'partly')
    >>> combined(["not testable here", "reproduced"]), combined(["not testable here"])
    ('reproduced', 'not testable here')
    """
    seen = set(verdicts)
    if not seen:
        raise InvalidInput("no verdicts to combine: a claim that no case speaks of is open")
    judged = seen - {NOT_TESTABLE} or seen
    if PARTLY in judged or {REPRODUCED, NOT_REPRODUCED} <= judged:
        return PARTLY
    return INCONCLUSIVE if INCONCLUSIVE in judged else judged.pop()
