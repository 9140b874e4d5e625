"""What captions say of records, and tables and tallies of verdicts."""

from __future__ import annotations

import pytest

from reprolib.lab import Run, execute
from reprolib.records import Record
from reprolib.records.record import TRIAL
from reprolib.show.report import conditions, tally, verdicts


@pytest.fixture(scope="module")
def records():
    def run(seed):
        fields = {"task": "digits-classifier", "epochs": 1, "batch_size": 256, "options": {"lr": 0.1}}
        return Run.of("sgd", seed=seed, **fields)

    first, second, third = execute([run(seed) for seed in (0, 1, 2)])
    some = Record.of("red/some", "desk", {"reported": [first, second], "trial": [third]})
    other = Record.of("red/other", "smoke", {"reported": [first]})
    device = some.made["devices"][0]
    for kept in other.runs.values():
        kept["environment"] = {**kept["environment"], "device": "a GPU"}
    return some, other, device


def test_conditions_of_one_record(records):
    some, other, device = records
    assert conditions(some) == f"Scale desk, device {device}, 2 seeds."
    assert conditions(other) == "Scale smoke, device a GPU, 1 seed."


def test_conditions_of_trials(records):
    some, other, device = records
    assert conditions(some, role=TRIAL) == f"Scale desk, device {device}, 1 seed."
    assert conditions(other, role=TRIAL) == "Scale smoke, device a GPU."  # it keeps none


def test_conditions_that_differ_are_all_named(records):
    some, other, device = records
    devices = " and ".join(sorted([device, "a GPU"]))
    assert conditions(some, other) == f"Scale smoke and desk, device {devices}, 1 or 2 seeds."


# ---- verdicts

ROWS = [
    {"claim": claim, "statement": "it is so", "task": task, "criterion": "below 2", "verdict": verdict}
    for claim, task, verdict in (
        ("red-c02", "mnist-classifier", "reproduced"),
        ("red-c01", "mnist-classifier", "not testable here"),
        ("red-c01", "mnist-autoencoder", "reproduced"),
        ("red-thm1-memory", "", "partly"),
        ("red-fig2", "mnist-classifier", "drawn"),
        ("red-fig2", "mnist-autoencoder", "drawn in part"),
        ("red-fig3", "mnist-classifier", "drawn"),
    )
]


def test_a_tally_counts_statements_and_names_drawings_apart():
    said = "4 statements: 2 reproduced, 1 partly, 0 not reproduced, 1 not testable here. Figures: 2 drawn, 1 drawn in part."
    assert tally(ROWS) == tally(ROWS[::-1]) == said
    assert tally(ROWS[:1]) == "1 statement: 1 reproduced, 0 not reproduced."
    assert tally(ROWS[-1:]) == "0 statements: 0 reproduced, 0 not reproduced. Figures: 1 drawn."


def test_what_is_drawn_is_told_by_its_word_and_not_by_its_name():
    assert tally([ROWS[0] | {"claim": "curveball-fig2a"}]) == "1 statement: 1 reproduced, 0 not reproduced."


def test_the_table_of_verdicts_has_the_verdict_in_front():
    table = verdicts(ROWS)
    assert list(table.columns) == ["verdict", "statement", "task", "criterion"]
    assert list(table.index) == sorted(row["claim"] for row in ROWS)
    assert table.loc["red-c01", "task"].tolist() == ["MNIST classifier", "MNIST autoencoder"]
    assert table.loc["red-thm1-memory", "task"] == ""  # a benchmark has no task
