"""The claims: the file says what it should, and names exactly the tests and experiments that there are."""

from __future__ import annotations

import ast
import datetime
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from reprolib.book import ledger
from reprolib.book.layout import Layout
from reprolib.errors import InvalidInput, RecordError, UnknownName
from reprolib.experiments import experiments
from reprolib.experiments.judged import judged
from reprolib.records.claims import FINDINGS, HOLDS, KINDS, OPEN, PAPERS, Change, Claim, claims, digest, status
from reprolib.records.scale import CONCLUSIVE
from reprolib.records.verdict import DRAWINGS, NOT_TESTABLE, STATEMENTS

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = Layout(ROOT)
CLAIMS = claims()


class Mark(NamedTuple):
    """``@pytest.mark.claim`` on a test, read from the source: nothing needs to be collected."""

    claim: str
    test: str
    mutation: frozenset[str]


def marks() -> list[Mark]:
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.claim":
                    test = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                    found.append(Mark(ast.literal_eval(mark.args[0]), test, frozenset(k.arg for k in mark.keywords)))
    return found


# ---- the file


def test_every_claim_is_there():
    assert len(CLAIMS) == 236
    counts = {"red": 68, "summary": 41, "adler": 30, "curveball": 49, "csdd": 43, "family": 5}
    assert Counter(c.paper for c in CLAIMS.values()) == Counter(id.split("-")[0] for id in CLAIMS) == counts
    order = [PAPERS.index(c.paper) for c in CLAIMS.values()]
    assert order == sorted(order)


def test_every_claim_says_what_it_is_and_what_would_settle_it():
    for c in CLAIMS.values():
        assert c.where and c.statement and c.criterion, c.id
        assert c.kind in KINDS


FIGURES = {
    *(f"red-fig{n}" for n in range(2, 10)),
    *(f"summary-fig{n}" for n in range(1, 8)),
    *("adler-fig1", "adler-fig2", "curveball-fig1", "curveball-fig5", "curveball-fig6", "curveball-figB5"),
    *("csdd-s-fig1", "csdd-s-time", "family-2", "family-5"),
}
SETTINGS = {"summary-tab3", "adler-c09", "curveball-c07", "csdd-pre", "csdd-hp"}


def test_figures_and_settings_are_told_from_statements():
    """By hand: the criterion of each of these only asks for something to be there, so nothing that is measured fails it."""
    assert {c.id for c in CLAIMS.values() if c.form == "figure"} == FIGURES
    assert {c.id for c in CLAIMS.values() if c.form == "setting"} == SETTINGS
    for c in CLAIMS.values():
        assert not (c.form and c.headline), c.id
        assert not (c.form and re.search("[≤≥]", c.criterion + c.desk + c.night)), f"{c.id} can fail: a statement"


def test_the_readme_names_a_few_headline_claims():
    assert 6 <= sum(c.headline for c in CLAIMS.values() if c.paper == "red") <= 8


def test_tests_do_not_speak_of_what_only_a_benchmark_measures():
    for id in ("red-thm1", "red-hvpcost"):
        assert CLAIMS[id].kind == "test" and "memory" not in CLAIMS[id].criterion
        assert f"{id}-memory" in CLAIMS[id].statement
        assert CLAIMS[f"{id}-memory"].kind == "record"


def test_the_file_is_for_reading():
    text = (ROOT / "book" / "claims.yaml").read_text(encoding="utf-8")
    assert "\t" not in text
    assert max(map(len, text.splitlines())) <= 120
    for leftover in ("[proof]", "[train]", "id.", "METHODS"):
        assert leftover not in text


def test_tests_are_evidence_for_the_claims_that_they_are_marked_with():
    named = {(c.id, test) for c in CLAIMS.values() if c.kind == "test" for test in c.evidence}
    assert named == {(m.claim, m.test) for m in marks()}
    for m in marks():
        assert m.mutation >= {"file", "old", "new"}, m.test


def test_a_criterion_that_expects_a_contradiction_or_names_a_correction_has_it_found():
    for c in CLAIMS.values():
        if c.kind == "test" and c.evidence and "contradict" in c.criterion:
            assert c.finding == "contradicted", c.id
        if c.kind == "test" and c.evidence and "correct" in c.criterion:
            assert c.finding == "corrected", c.id
        if c.finding == "corrected":
            assert ledger.ERRATUM.search(c.criterion), f"{c.id}: which erratum corrects it?"


def test_evidence_from_experiments_names_experiments():
    named = {name for c in CLAIMS.values() if c.kind == "record" for name in c.evidence}
    assert named
    assert named <= {*experiments(), *LAYOUT.listed()}


def test_the_digest_follows_the_file(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_bytes((ROOT / "book" / "claims.yaml").read_bytes())
    assert digest() == digest(path)
    assert len(digest()) == 16
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert digest() != digest(path)


# ---- files that are refused

GOOD = """\
red-x:
  paper: red
  where: Figure 1
  statement: it is fast
  criterion: the time ratio is below 2
  kind: record
  evidence: [some/experiment]
"""


def read(tmp_path: Path, text: str) -> dict[str, Claim]:
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    return claims(path)


def test_a_good_file_is_read(tmp_path):
    wanted = Claim(
        "red-x", "red", "Figure 1", "it is fast", "the time ratio is below 2", "record", evidence=("some/experiment",)
    )
    assert read(tmp_path, GOOD) == {"red-x": wanted}


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("criterion:", "criterium:", UnknownName, "field of claim red-x, 'criterium'.*did you mean 'criterion'"),
        ("kind: record", "kind: records", UnknownName, "kind of claim red-x, 'records'"),
        ("paper: red", "paper: blue", UnknownName, "paper of claim red-x, 'blue'"),
        ("paper: red", "paper: csdd", InvalidInput, "must begin with csdd-"),
        ("  kind: record\n", "", InvalidInput, "claim red-x has no kind"),
        ("it is fast", "235", InvalidInput, "statement of claim red-x is 235: write a text"),
        ("[some/experiment]", "some/experiment", InvalidInput, "write a list"),
        ("[some/experiment]", "[1]", InvalidInput, "evidence of claim red-x is 1"),
        ("  kind: record\n", "  kind: record\n  kind: test\n", InvalidInput, "'kind' comes twice"),
        ("  kind: record\n", "  kind: test\n  finding: wrong\n", UnknownName, "finding of claim red-x, 'wrong'"),
        ("  kind: record\n", "  kind: record\n  finding: corrected\n", InvalidInput, "no test that finds it"),
        (GOOD, GOOD + GOOD, InvalidInput, "'red-x' comes twice"),
        (GOOD, "red-x: nothing\n", InvalidInput, "claim red-x has no fields"),
        (GOOD, "", InvalidInput, "maps no ids"),
        (GOOD, "red-x: [", RecordError, "is no YAML"),
        ("  kind: record\n", "  kind: record\n  form: drawing\n", UnknownName, "form of claim red-x, 'drawing'"),
        ("  kind: record\n", "  kind: test\n  form: figure\n", InvalidInput, "a figure, which a record draws"),
        (
            "  kind: record\n",
            "  kind: record\n  headline: yes please\n",
            InvalidInput,
            "headline of claim red-x is 'yes",
        ),
        ("  kind: record\n", "  kind: record\n  night: 3\n", InvalidInput, "night of claim red-x is 3: write a text"),
        (
            "  kind: record\n",
            "  kind: record\n  changes: yes\n",
            InvalidInput,
            "changes of claim red-x are True: write a",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path, old, new, error, message):
    assert old in GOOD
    with pytest.raises(error, match=message):
        read(tmp_path, GOOD.replace(old, new))


CHANGED = """\
  changes:
    - date: 2026-11-22
      field: criterion
      was: the time ratio is below 1
      why: nobody is that fast
      after: a run
"""


def test_a_change_is_read(tmp_path):
    claim = read(tmp_path, GOOD + CHANGED)["red-x"]
    (change,) = claim.changes
    assert change == Change(
        datetime.date(2026, 11, 22), "criterion", "the time ratio is below 1", "nobody is that fast", "a run"
    )
    assert (claim.changed("criterion"), claim.changed("desk")) == (1, 0)


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("2026-11-22", "yesterday", InvalidInput, "the date 'yesterday': write one like 2026-11-30"),
        ("2026-11-22", "2026-11-22 12:00:00", InvalidInput, "write one like 2026-11-30"),
        (
            "field: criterion",
            "field: dusk",
            UnknownName,
            "field of a change of claim red-x, 'dusk'.*did you mean 'desk'",
        ),
        ("after: a run", "after: lunch", UnknownName, "after of a change of claim red-x, 'lunch'"),
        ("      why: nobody is that fast\n", "", InvalidInput, "needs date, field, was, why, after, and nothing else"),
        ("nobody is that fast", "''", InvalidInput, "why of a change of claim red-x is ''"),
        ("after: a run", "after: a run\n      who: me", InvalidInput, "and nothing else"),
    ],
)
def test_a_bad_change_is_refused(tmp_path, old, new, error, message):
    assert old in CHANGED
    with pytest.raises(error, match=message):
        read(tmp_path, GOOD + CHANGED.replace(old, new))


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(RecordError, match="no claims in"):
        claims(tmp_path / "claims.yaml")


def test_a_finding_needs_a_test(tmp_path):
    text = GOOD.replace("kind: record", "kind: test\n  finding: contradicted")
    assert read(tmp_path, text)["red-x"].finding == "contradicted"
    with pytest.raises(InvalidInput, match="claim red-x has a finding, but no test that finds it"):
        read(tmp_path, text.replace("[some/experiment]", "[]"))


# ---- verdicts


def test_status():
    a = Claim("red-x", "red", "here", "it is so", "it is seen to be so", "test")
    assert status(a, []) == OPEN
    tested = vars(a) | {"evidence": ("tests/a.py::test_a",)}
    assert status(Claim(**tested), []) == HOLDS
    words = {name: status(Claim(**tested | {"finding": name}), []) for name in FINDINGS}
    assert words == {"corrected": "holds after correction (tested)", "contradicted": "contradicted (tested)"}
    reason = vars(a) | {"kind": "reason"}
    assert status(Claim(**reason), []) == OPEN
    assert status(Claim(**reason | {"evidence": ("its data are not public",)}), []) == NOT_TESTABLE
    record = Claim(**vars(a) | {"kind": "record", "evidence": ("red/x",)})
    rows = [{"claim": id, "verdict": v} for id, v in (("red-x", "reproduced"), ("red-y", "not reproduced"))]
    assert status(record, rows) == "reproduced"
    assert status(record, [*rows, {"claim": "red-x", "verdict": "not reproduced"}]) == "partly"
    assert status(record, [*rows, {"claim": "red-x", "verdict": NOT_TESTABLE}]) == "reproduced where testable"


# ---- the page


ROWS = [
    {"claim": "red-c01", "task": "mnist-classifier", "verdict": "reproduced", "scale": "desk"},
    {"claim": "red-c01", "task": "mnist-autoencoder", "verdict": "not reproduced", "scale": "night"},
    {"claim": "red-c06", "task": "mnist-classifier", "verdict": "reproduced", "scale": "desk"},
    {"claim": "red-c06", "task": "mnist-classifier", "verdict": NOT_TESTABLE, "scale": "desk"},
    {"claim": "red-fig2", "task": "mnist-classifier", "verdict": "drawn", "scale": "desk"},
    {"claim": "red-thm1-memory", "task": "", "verdict": "not reproduced", "scale": ""},
]


@pytest.fixture
def page(monkeypatch) -> str:
    monkeypatch.setattr(ledger, "judged", lambda: ROWS)
    return ledger.filled((ROOT / "book" / "claims.md").read_text(encoding="utf-8"), LAYOUT)


def test_the_page_lists_every_claim_once(page):
    assert "<!--" not in page
    for c in CLAIMS.values():
        assert page.count(f"[{c.id}]{{#{c.id}}}") == 1


def test_the_page_says_what_was_computed(page):
    both = "partly (1 reproduced, 1 not reproduced), at scale desk and night: MNIST classifier, MNIST autoencoder"
    assert both in page
    assert "reproduced where testable (1 of 2), at scale desk: MNIST classifier" in page
    assert "drawn, at scale desk: MNIST classifier" in page
    assert "not reproduced, in the benchmark\n" in page


def test_the_counts_come_first_and_tell_statements_from_figures(page):
    first, second, *_ = page.split(":::{list-table}")[1:]
    assert page.index("ledger-counts") < page.index("What the words mean") < page.index("# RED")
    header, *lines = (line.split("\n:::")[0].split("\n  - ") for line in first.split("\n* - ")[1:])
    assert [cell.replace("\u00ad", "") for cell in header] == ["", *ledger.NAMES.values(), "sum"]
    tested = Counter(c.finding for c in CLAIMS.values() if c.kind == "test" and c.evidence)
    drawings = sum(bool(c.form) for c in CLAIMS.values())
    reasons = sum(c.kind == "reason" and bool(c.evidence) for c in CLAIMS.values())
    said = {HOLDS: tested[""], **{FINDINGS[name]: tested[name] for name in FINDINGS}}
    said |= {"reproduced where testable": 1, "partly": 1, "not reproduced": 1, NOT_TESTABLE: reasons}
    statements = len(CLAIMS) - drawings
    wanted = [
        ("**statements**", f"**{statements}**"),
        *((word, str(n)) for word, n in said.items()),
        (OPEN, str(statements - sum(said.values()))),
        ("**figures and settings**", f"**{drawings}**"),
        ("drawn", "1"),
        (OPEN, str(drawings - 1)),
    ]
    assert [(line[0], line[-1]) for line in lines] == wanted
    for line in lines:
        numbers = [int(cell.strip("*").replace("–", "0")) for cell in line[1:]]
        assert numbers[-1] == sum(numbers[:-1])
    assert "ledger" in second


def test_each_paper_is_folded_by_how_its_claims_stand(page):
    red = page.split("## RED")[1].split("## NewtonSummary")[0]
    titles = re.findall(r"^::::\{dropdown\} (.*): (\d+) (statements?|figures and settings)$", red, re.MULTILINE)
    assert [word for word, *_ in titles] == [
        *(HOLDS, FINDINGS["corrected"], "reproduced where testable", "partly", "not reproduced", NOT_TESTABLE, OPEN),
        *("drawn", OPEN),
    ]
    assert sum(int(n) for _, n, _ in titles) == sum(c.paper == "red" for c in CLAIMS.values())
    assert {n for _, n, noun in titles if noun == "statement"} == {"1"}
    drawn = red.split("} drawn: 1")[1].split("::::")[0]
    assert "{#red-fig2}" in drawn and "{#red-c" not in drawn


def test_the_page_shows_what_changed_in_a_criterion(monkeypatch):
    change = Change(datetime.date(2026, 12, 24), "night", "less", "it was too easy", "seeing the paper-scale runs")
    c = replace(CLAIMS["red-c05"], night="more *and* more", changes=(change,))
    cell = ledger.criteria(c, ledger.Links(LAYOUT, set()))
    assert cell[-2:] == [
        r"*At scale night:* more \*and\* more",
        "*Criterion at scale night changed on 2026-12-24, after seeing the paper-scale runs.* Before: less. "
        "Reason: it was too easy.",
    ]


def test_every_change_is_on_the_page(page):
    assert page.count(" changed on 20") == sum(len(c.changes) for c in CLAIMS.values())


def test_the_page_says_what_tests_found(page):
    assert "contradicted (tested), see [E-cs-1](errata.md)" in page
    assert "holds after correction (tested), see [E-red-1](errata.md)" in page
    assert f"{HOLDS}, see [E-cb-4](errata.md)" in page


def test_the_page_must_ask_for_every_paper():
    with pytest.raises(InvalidInput, match="must ask for each of"):
        ledger.filled("<!-- ledger: red -->\n", LAYOUT)


def test_the_page_explains_every_word():
    text = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
    for word in dict.fromkeys(word for standings in ledger.STANDINGS.values() for word in standings):
        assert f"**{word}**" in text, word


def test_records_judge_claims_that_expect_them():
    rows = judged()
    assert {row["scale"] for row in rows} <= {*CONCLUSIVE, ""}
    for row in rows:
        c = CLAIMS[row["claim"]]
        assert c.kind == "record" and c.evidence, f"{c.id} is judged by a record: name it in book/claims.yaml"
        assert row["verdict"] in (DRAWINGS if c.form else STATEMENTS), f"{c.id}: {row['verdict']}"
