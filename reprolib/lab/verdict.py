"""Verdicts: computed from records, never written by hand."""

from __future__ import annotations

from collections.abc import Sequence

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
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
