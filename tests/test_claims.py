"""Each claim test names a mutation that still applies to the code (``make mutants`` runs them)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import mutant_of

PACKAGE = Path(__file__).resolve().parents[1] / "reprolib"
FIRST = [
    "red-alg1",
    "red-alg2",
    "red-alg3",
    "red-alg4",
    "red-eq9",
    "red-guide1",
    "red-guide2",
    "red-guide3",
    "red-ex1",
    "red-ex2",
    "red-ex3",
    "red-rm",
    "red-l2",
    "red-inv",
    "red-abs",
    "red-tab2",
    "red-tab3",
]
ENGINE = [
    "red-alg2",
    "red-tab1",
    "red-hvp",
    "red-hvpcost",
    "red-bbcost",
    "red-thm1",
    "red-fig1",
    "summary-def",
    "summary-eqtaylor",
    "summary-appA",
    "curveball-hvp",
    "curveball-fuse",
]


@pytest.fixture
def mutants(request: pytest.FixtureRequest):
    session = request.session
    found = {item.path.name for item in session.items}
    if (
        not {"test_red.py", "test_local_model.py", "test_algorithm_2.py", "test_batches.py", "test_data_published.py"}
        <= found
    ):
        pytest.skip("only a part of the tests was collected")
    return [mutant_of(item, mark) for item in session.items for mark in item.iter_markers("claim")]


def test_every_mutation_applies_exactly_once(mutants):
    for m in mutants:
        assert (PACKAGE / m.file).read_text().count(m.old) == 1, f"{m.claim}: {m.old!r} in {m.file}"
        assert m.old != m.new


def test_the_claims_of_the_first_chapters_have_tests(mutants):
    assert set(FIRST) <= {m.claim for m in mutants}


def test_the_claims_about_the_engine_have_tests(mutants):
    assert set(ENGINE) <= {m.claim for m in mutants}
