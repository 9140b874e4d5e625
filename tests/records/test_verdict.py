"""The words of verdicts, and what cases add up to."""

from __future__ import annotations

from itertools import product

import pytest

from reprolib.errors import InvalidInput
from reprolib.records.verdict import (
    DRAWINGS,
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    PARTLY,
    REPRODUCED,
    STATEMENTS,
    WHERE_TESTABLE,
    by_claim,
    by_seed,
    combined,
    drawn,
    in_words,
    over_cases,
)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("silent", [0, 1, 4])
def test_one_seed_is_inconclusive_whatever_it_shows(told, silent):
    assert by_seed([None] * silent + [told]) == INCONCLUSIVE
    assert by_seed([None] * silent + [told] * 2) == (REPRODUCED if told else NOT_REPRODUCED)


def test_below_five_seeds_all_agree_and_from_five_on_four_fifths():
    assert by_seed([True] * 3 + [False]) == by_seed([False] * 3 + [True]) == INCONCLUSIVE
    assert by_seed([True] * 4 + [False]) == REPRODUCED
    assert by_seed([False] * 4 + [True]) == NOT_REPRODUCED
    assert by_seed([True] * 3 + [False] * 2) == by_seed([True] * 7 + [False] * 3) == INCONCLUSIVE


def test_seeds_that_tell_nothing_are_not_testable():
    assert by_seed([None, None, None]) == by_seed([]) == NOT_TESTABLE


@pytest.mark.parametrize("cases", list(product(STATEMENTS, repeat=3)))
def test_what_could_not_be_tested_never_adds_up_to_reproduced(cases):
    whole = combined(cases)
    assert whole in STATEMENTS
    if whole == REPRODUCED:
        assert set(cases) == {REPRODUCED}
    if NOT_TESTABLE in cases:
        assert whole in (WHERE_TESTABLE, PARTLY, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTABLE)
    assert combined(cases[::-1]) == whole


@pytest.mark.parametrize(
    ("cases", "whole"),
    [
        ([REPRODUCED, NOT_TESTABLE], WHERE_TESTABLE),
        ([NOT_REPRODUCED, NOT_TESTABLE], NOT_REPRODUCED),
        ([INCONCLUSIVE, NOT_TESTABLE], INCONCLUSIVE),
        ([PARTLY, NOT_TESTABLE], PARTLY),
        ([REPRODUCED, INCONCLUSIVE], INCONCLUSIVE),
        ([NOT_REPRODUCED, INCONCLUSIVE], INCONCLUSIVE),
        ([REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE], PARTLY),
        ([REPRODUCED, WHERE_TESTABLE], WHERE_TESTABLE),
        ([WHERE_TESTABLE, NOT_REPRODUCED], PARTLY),
        ([NOT_TESTABLE, NOT_TESTABLE], NOT_TESTABLE),
    ],
)
def test_cases_add_up(cases, whole):
    assert combined(cases) == whole


@pytest.mark.parametrize(
    ("cases", "whole"),
    [
        (["drawn", "drawn"], "drawn"),
        (["drawn", "not drawn"], "drawn in part"),
        (["drawn", "drawn in part"], "drawn in part"),
        (["drawn", NOT_TESTABLE], "drawn in part"),
        (["not drawn", NOT_TESTABLE], "not drawn"),
        (["not drawn", "not drawn"], "not drawn"),
    ],
)
def test_drawings_add_up_to_a_drawing(cases, whole):
    assert combined(cases) == whole


def test_a_drawing_is_no_evidence_for_a_statement():
    for word in DRAWINGS:
        with pytest.raises(InvalidInput, match=f"'{word}' among the verdicts on a statement"):
            combined([word, REPRODUCED])
    with pytest.raises(InvalidInput, match="'fine' among"):
        combined(["fine"])
    with pytest.raises(InvalidInput, match="no verdicts"):
        combined([])


def test_a_figure_is_drawn_when_all_its_curves_are():
    assert [drawn(curves) for curves in ([True] * 3, [True, False], [False])] == list(DRAWINGS)
    assert not {drawn([True]), drawn([False])} & set(STATEMENTS)
    assert over_cases([True]) not in DRAWINGS


def test_words_say_what_the_whole_is_made_of():
    assert in_words([REPRODUCED] * 2 + [NOT_TESTABLE] * 2) == "reproduced where testable (2 of 4)"
    assert (
        in_words([NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED])
        == "partly (1 reproduced, 1 not reproduced, 1 inconclusive)"
    )
    assert in_words([INCONCLUSIVE, INCONCLUSIVE]) == "inconclusive"
    assert in_words(["drawn", "drawn", "not drawn"]) == "drawn in part (2 of 3)"


def test_rows_by_claim_keep_their_order():
    rows = [{"claim": c, "verdict": v} for c, v in (("b", REPRODUCED), ("a", PARTLY), ("b", NOT_TESTABLE))]
    assert by_claim(rows) == {"b": [REPRODUCED, NOT_TESTABLE], "a": [PARTLY]}
