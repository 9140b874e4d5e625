"""Verdicts: computed from records, never written by hand."""

from __future__ import annotations

from collections.abc import Sequence

REPRODUCED, PARTLY, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "partly", "not reproduced", "inconclusive"
SEEDS_FOR_A_MEAN = 5


def by_seed(holds: Sequence[bool]) -> str:
    """The verdict on an effect from its sign in each seed.

    With fewer than five seeds all must agree, or the verdict is inconclusive; from five on, at least four fifths must.

    >>> by_seed([True, True, True]), by_seed([True, False, True]), by_seed([False, False, False])
    ('reproduced', 'inconclusive', 'not reproduced')
    """
    share = sum(map(bool, holds)) / len(holds)
    margin = 0.2 if len(holds) >= SEEDS_FOR_A_MEAN else 0.0
    if share >= 1 - margin:
        return REPRODUCED
    return NOT_REPRODUCED if share <= margin else INCONCLUSIVE


def over_cases(holds: Sequence[bool]) -> str:
    """The verdict on a statement about each of several cases, such as networks, that do not depend on chance.

    >>> over_cases([True, True]), over_cases([True, False]), over_cases([False, False])
    ('reproduced', 'partly', 'not reproduced')
    """
    return REPRODUCED if all(holds) else PARTLY if any(holds) else NOT_REPRODUCED
