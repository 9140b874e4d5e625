"""Tables, folded lines, captions."""

from __future__ import annotations

import pandas as pd
import pytest

from reprolib.records import Record
from reprolib.records.verdict import NOT_REPRODUCED, REPRODUCED
from reprolib.show.captions import caption
from reprolib.show.report import conditions
from reprolib.show.tables import checks, claims, folded, ranges


def test_ranges_say_mean_and_ends_of_what_is_known():
    table = pd.DataFrame({"m": ["a", "a", "b"], "x": [1.0, 4.0, None], "y": [2.0, 2.0, 5.0]})
    shown = ranges(table, ["m"], {"x": "first", "y": "second"})
    assert shown["first"].tolist() == ["2.5 (1 – 4)", "–"]
    assert shown["second"].tolist() == ["2", "5"]


def test_a_claim_has_one_verdict_and_its_cases():
    rows = [{"claim": "red-c02", "verdict": v} for v in (REPRODUCED, NOT_REPRODUCED, NOT_REPRODUCED)]
    says = {"red-c02": "it warms up", "red-c03": "nobody judged it"}
    table = claims([*rows, {"claim": "red-c99", "verdict": REPRODUCED}], says, {"red-c02": "It did once."})
    assert list(table.index) == ["red-c02"]
    assert next(iter(table.columns)) == "verdict"  # in front, where a narrow screen shows it
    verdict = f"partly (1 {REPRODUCED}, 2 {NOT_REPRODUCED})"
    assert table.loc["red-c02"].tolist() == [verdict, "it warms up", "It did once."]
    assert "what was seen" not in claims(rows, says)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as (object, keywords)."""
    found = []
    monkeypatch.setattr("IPython.display.display", lambda what, **more: found.append((what, more)))
    return found


def test_folded_is_closed_and_escapes_what_is_text(shown):
    folded("all < 3", pd.DataFrame({"a": ["long " * 40]}), "a < b")
    ((out, _),) = shown
    html = out.data
    assert html.startswith('<details class="folded"><summary>all &lt; 3</summary><table')
    assert "long " * 39 in html  # not cut off
    assert html.endswith("<p>a &lt; b</p></details>")


def test_checks_are_counted_and_stop_the_page(shown):
    checks({"one is one": True, "two is two": 2 == 2})
    ((out, _),) = shown
    assert "<summary>2 checks passed</summary>" in out.data
    with pytest.raises(AssertionError, match="one is two"):
        checks({"one is two": False})


def test_a_caption_says_where_to_look_and_what_the_record_was_made_on(shown):
    record = Record.load("red/cifar10", "smoke")
    caption("ratios", "Look left.", record)
    glued = {more["metadata"]["scrapbook"]["name"]: list(what.values()) for what, more in shown}
    assert glued == {"ratios": ["'Look left.'"], "ratios conditions": [repr(conditions(record))]}
