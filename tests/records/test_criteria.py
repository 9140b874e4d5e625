"""Criteria that change are marked: what is in force is what was first written, or says when and why it is not."""

from __future__ import annotations

import copy
import datetime
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from reprolib.errors import InvalidInput
from reprolib.records.claims import Change, Claim, claims
from tests.records import criteria

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = claims()
GROUPS = criteria.read()
KEPT = criteria.frozen(GROUPS)
FIRST_EDITION = (
    "f29bee2b677b78d1",
    "ea8bfb03ad194c45",
    "e1261554b36a240f",
)  # of what was written before 30 November 2026


SAID = Claim("red-x", "red", "Fig 2", "it is fast", "the ratio is below 2", "record", desk="below 3, in every seed")
THEN = {"red-x.criterion.0": "the ratio is below 2", "red-x.desk.0": "below 3, in every seed"}


def entry(field):
    return Change(datetime.date(2026, 12, 24), field, "less", "a reason", "no run")


def findings(kept=THEN, **fields):
    return criteria.findings({"red-x": replace(SAID, **fields)}, kept)


def test_every_change_of_a_criterion_is_marked():
    assert criteria.findings(CLAIMS, KEPT) == []


def test_what_was_kept_is_as_it_was():
    assert criteria.broken(GROUPS) == []
    assert tuple(group["digest"] for group in GROUPS[: len(FIRST_EDITION)]) == FIRST_EDITION
    keys = [key for group in GROUPS for key in group["texts"]]
    assert len(keys) == len(set(keys))
    assert all(isinstance(text, str) and text == criteria.words(text) for text in KEPT.values())


def test_what_was_kept_is_what_history_says():
    """Each group with a commit has the texts that the file got there; in a copy without history there is nothing to ask."""
    import yaml

    for group in GROUPS[: len(FIRST_EDITION)]:
        shown = subprocess.run(
            ["git", "-C", str(ROOT), "show", f"{group['commit']}:book/claims.yaml"], capture_output=True, check=False
        )
        if shown.returncode:
            pytest.skip("the history is not here")
        then = yaml.load(shown.stdout.decode("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for key, text in group["texts"].items():
            id, field, count = key.split(".")
            assert (criteria.words(then[id][field]), count) == (text, "0"), key


def test_what_is_as_it_was_is_fine_however_its_lines_fold():
    assert findings() == findings(desk="below 3,\n  in every seed ") == []


@pytest.mark.parametrize(("field", "text"), [("criterion", "the ratio is below 3"), ("desk", "below 3")])
def test_a_changed_criterion_is_found(field, text):
    (found,) = findings(**{field: text})
    assert found.startswith(f"red-x.{field}.0 was ") and found.endswith("say so under `changes`, with date and reason")
    assert findings(**{field: text}, changes=(entry("code"), entry("night"))) == [found]  # marked for something else
    marked = {field: text, "changes": (entry(field),)}
    assert findings(**marked) == [f"red-x.{field}.1 is not kept: run `python -m tests.records.criteria`"]
    assert findings(THEN | {f"red-x.{field}.1": text}, **marked) == []
    # one mark is good for one change
    (found,) = findings(THEN | {f"red-x.{field}.1": text}, **marked | {field: "anything"})
    assert found.startswith(f"red-x.{field}.1 was ")


def test_a_mark_that_is_taken_away_is_found():
    kept = THEN | {"red-x.desk.2": "below 9"}
    assert findings(kept) == ["red-x.desk has 0 changes, and had 2: they may be added to, not taken away"]


def test_a_criterion_that_vanishes_is_found():
    gone = [f"red-x.{field}.0 is gone: a criterion may change, not vanish" for field in ("criterion", "desk")]
    assert criteria.findings({}, THEN) == gone
    assert findings(desk="") == gone[1:]


def test_a_new_claim_and_a_new_scale_are_to_be_kept():
    assert findings(night="below 2.5") == ["red-x.night.0 is not kept: run `python -m tests.records.criteria`"]
    assert [found.split()[0] for found in findings({})] == ["red-x.criterion.0", "red-x.desk.0"]


@pytest.mark.parametrize("n", range(len(GROUPS)))
def test_no_group_can_be_edited_alone(n):
    groups = copy.deepcopy(GROUPS)
    key = next(iter(groups[n]["texts"]))
    groups[n]["texts"][key] += "."
    assert criteria.broken(groups) == [n]
    groups[n]["digest"] = criteria.chained(groups[n]["texts"], groups[n - 1]["digest"] if n else "")
    assert criteria.broken(groups) == ([n + 1] if n + 1 < len(groups) else [])


def test_the_command_appends_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(criteria, "FILE", tmp_path / "criteria.yaml")
    first = {"date": "2026-12-24", "digest": criteria.chained(THEN, ""), "texts": THEN}
    criteria.write([first])
    assert criteria.read() == [first]
    known = {"red-x": replace(SAID, night="below 2.5")}
    monkeypatch.setattr(criteria, "claims", lambda: known)
    criteria.main()
    criteria.main()  # nothing more
    assert capsys.readouterr().out == "1 texts added to criteria.yaml\n0 texts added to criteria.yaml\n"
    groups = criteria.read()
    assert groups[0] == first and groups[1]["texts"] == {"red-x.night.0": "below 2.5"}
    assert criteria.broken(groups) == []
    known["red-x"] = replace(SAID, criterion="easier", night="below 2.5")
    with pytest.raises(InvalidInput, match=r"red-x\.criterion\.0 was .* and is 'easier'"):
        criteria.main()
    known["red-x"] = replace(SAID, night="below 2.5")
    groups[0]["texts"]["red-x.desk.0"] = "below 9"
    criteria.write(groups)
    with pytest.raises(InvalidInput, match="group 0 was edited"):
        criteria.main()


def test_what_the_review_found_is_on_record():
    by_field = {id: [change.field for change in CLAIMS[id].changes] for id in ("red-c09", "red-tab3-time")}
    assert "desk" in by_field["red-c09"]
    assert by_field["red-tab3-time"].count("desk") >= 2 and "code" in by_field["red-tab3-time"]
    assert "dense task" in CLAIMS["red-tab3-time"].desk and "not part of it" not in CLAIMS["red-tab3-time"].desk
    for c in CLAIMS.values():
        assert "added after" not in c.criterion + c.desk + c.night, f"{c.id}: an addition belongs under `changes`"
        dates = [change.date for change in c.changes]
        assert dates == sorted(dates), f"{c.id}: changes in the order of their dates"
