"""What captions say of records."""

from __future__ import annotations

import pytest

from reprolib.lab import Run, execute
from reprolib.records import Record
from reprolib.records.record import TRIAL
from reprolib.show.report import conditions


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
