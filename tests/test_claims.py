"""Each test that names a mutation names one that still applies to the code (``make mutants`` runs them)."""

from __future__ import annotations

from pathlib import Path

import pytest

from reprolib.records.claims import claims
from tests.mutants import mutants_of

PACKAGE = Path(__file__).resolve().parents[1] / "reprolib"
TESTS = {test for claim in claims().values() if claim.kind == "test" for test in claim.evidence}


@pytest.fixture
def items(request: pytest.FixtureRequest):
    items = request.session.items
    files = {item.nodeid.split("::")[0] for item in items}
    if {test.split("::")[0] for test in TESTS} - files:
        pytest.skip("only a part of the tests was collected")
    return items


def test_every_mutation_applies_exactly_once(items):
    for m in (m for item in items for m in mutants_of(item)):
        assert (PACKAGE / m.file).read_text().count(m.old) == 1, f"{m.claim}: {m.old!r} in {m.file}"
        assert m.old != m.new


def test_every_claim_that_is_said_to_be_tested_is(items):
    assert {m.test for item in items for m in mutants_of(item, ["claim"])} == TESTS
