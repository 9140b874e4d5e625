"""The claims: the file says what it should, and names exactly the tests and experiments that there are."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from reprolib.book import ledger
from reprolib.book.layout import Layout
from reprolib.errors import InvalidInput, RecordError, UnknownName
from reprolib.experiments import experiments
from reprolib.records.claims import FINDINGS, HOLDS, KINDS, OPEN, PAPERS, Claim, claims, digest, status
from reprolib.records.verdict import NOT_TESTABLE, combined

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
    assert len(CLAIMS) == 226
    counts = {"red": 58, "summary": 41, "adler": 30, "curveball": 49, "csdd": 43, "family": 5}
    assert Counter(c.paper for c in CLAIMS.values()) == Counter(id.split("-")[0] for id in CLAIMS) == counts
    order = [PAPERS.index(c.paper) for c in CLAIMS.values()]
    assert order == sorted(order)


def test_every_claim_says_what_it_is_and_what_would_settle_it():
    for c in CLAIMS.values():
        assert c.where and c.statement and c.criterion, c.id
        assert c.kind in KINDS


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
    ],
)
def test_a_bad_file_is_refused(tmp_path, old, new, error, message):
    assert old in GOOD
    with pytest.raises(error, match=message):
        read(tmp_path, GOOD.replace(old, new))


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


def test_nothing_to_combine_is_no_verdict():
    with pytest.raises(InvalidInput, match="no verdicts"):
        combined([])


# ---- the page


ROWS = [
    {"claim": "red-c01", "task": "mnist-classifier", "verdict": "reproduced", "scale": "desk"},
    {"claim": "red-c01", "task": "mnist-autoencoder", "verdict": "not reproduced", "scale": "desk"},
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
    assert "partly at desk scale (MNIST classifier, MNIST autoencoder)" in page
    tested = Counter(c.finding for c in CLAIMS.values() if c.kind == "test" and c.evidence)
    reasons = sum(c.kind == "reason" and bool(c.evidence) for c in CLAIMS.values())
    numbers = [tested[""], *(tested[name] for name in FINDINGS), 1, reasons]
    header, *_, last = page.split(":::{list-table}")[1].split("\n* - ")[1:]
    assert header.split("\n  - ") == ["", "claims", HOLDS, *FINDINGS.values(), "partly", NOT_TESTABLE, OPEN]
    assert last.split("\n:::")[0].split("\n  - ") == ["together", *map(str, [226, *numbers, 226 - sum(numbers)])]


def test_the_page_says_what_tests_found(page):
    assert "contradicted (tested), see [E-cs-1](errata.md)" in page
    assert "holds after correction (tested), see [E-red-1](errata.md)" in page
    assert f"{HOLDS}, see [E-cb-4](errata.md)" in page


def test_the_page_must_ask_for_every_paper():
    with pytest.raises(InvalidInput, match="must ask for each of"):
        ledger.filled("<!-- ledger: red -->\n", LAYOUT)


def test_records_judge_claims_that_expect_them():
    for row in ledger.judged():
        c = CLAIMS[row["claim"]]
        assert c.kind == "record" and c.evidence, f"{c.id} is judged by a record: name it in book/claims.yaml"
