"""What several records say only together, and what a benchmark says: red-tab3-time, and memory."""

from __future__ import annotations

import pandas as pd
import pytest

from reprolib.bench.harness import Costs
from reprolib.experiments import judged
from reprolib.experiments.red import price
from reprolib.experiments.red.protocol import PAIRS
from reprolib.lab.run import Run
from reprolib.lab.train import History
from reprolib.records.record import Record

ENVIRONMENT = {"date": "2000-01-01", "device": "cpu", "threads": 1, "commit": ""}
DENSE, CONVOLUTIONAL = ("digits-classifier", "digits-autoencoder"), ("digits-convnet", "digits-convnet-with-batch-norm")


def record(ratios, scale="desk", seeds=(0, 1)):
    """A record in which an epoch of RED takes ``ratios[task][seed]`` times as long as one of the baseline."""
    histories = []
    for task, factors in ratios.items():
        for pair in PAIRS:
            for seed, factor in zip(seeds, factors, strict=True):
                for name, seconds in zip(pair, (3.0 * factor, 3.0), strict=True):
                    run = Run.of(name, task=task, seed=seed, epochs=2, batch_size=256)
                    rows = {"epoch": [1.0, 2.0], "iteration": [1, 2], "seconds": [seconds, 2 * seconds]}
                    table = pd.DataFrame(rows | {"loss": [1.0, 1.0], "step": [0.1, 0.1]})
                    histories.append(History(run, table, [1.0], environment=ENVIRONMENT))
    return Record.of("red/some", scale, histories)


def test_networks_with_convolutions_are_known():
    assert [price.convolves(name) for name in (*DENSE, *CONVOLUTIONAL)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("dense", "verdict"),
    [
        ([1.4, 1.2], "reproduced"),
        ([1.9, 1.8], "not reproduced"),
        ([1.4, 1.55], "inconclusive"),
        ([1.6, 1.6], "inconclusive"),
    ],
)
def test_a_dense_task_is_to_be_cheaper_than_each_convolutional_one(dense, verdict):
    """The cheapest convolutional task has 1.7 in the first seed and 1.5 in the second."""
    first = record({DENSE[0]: dense, CONVOLUTIONAL[0]: [1.7, 2.0]})
    second = record({CONVOLUTIONAL[1]: [2.0, 1.5]}, "night")
    rows = price.dense_is_cheaper([second, first])
    assert [(row["claim"], row["task"], row["verdict"]) for row in rows] == [("red-tab3-time", DENSE[0], verdict)] * 2
    assert {row["scale"] for row in rows} == {"desk"}  # the smallest of those that are compared
    assert ["RED-SGD" in row["statement"] for row in rows] == [True, False]


def test_without_both_kinds_of_tasks_nothing_is_compared():
    assert price.dense_is_cheaper([]) == []
    assert price.dense_is_cheaper([record({DENSE[0]: [1.4, 1.2]})]) == []
    assert price.dense_is_cheaper([record({CONVOLUTIONAL[0]: [1.4, 1.2]})]) == []


def test_seeds_that_only_one_record_has_are_not_compared():
    rows = price.dense_is_cheaper(
        [record({DENSE[0]: [1.0, 1.0]}), record({CONVOLUTIONAL[0]: [2.0, 2.0]}, seeds=(1, 2))]
    )
    assert {row["verdict"] for row in rows} == {"inconclusive"}  # one seed is left


def test_only_records_that_are_judged_by_their_time_are_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(price, "folder", lambda: tmp_path)  # no benchmark here
    timed = record({DENSE[0]: [1.0, 1.0], CONVOLUTIONAL[0]: [2.0, 2.0]})
    about = {"claim": "red-tab3-time"}
    assert len(price.verdicts([(timed, [about])])) == 2
    assert price.verdicts([(timed, [{"claim": "red-c01"}])]) == []


def costs(**memory):
    """Peak memories in gradients, a network each."""
    rows = [
        {"network": f"net{n}", "quantity": quantity.replace("_", "-"), "library": library, "memory": peak}
        for quantity, peaks in memory.items()
        for library in ("torch", "reprolib")
        for n, peak in enumerate(peaks if library == "torch" or "product" not in quantity else [9.0])
    ]
    return Costs(pd.DataFrame(rows), {})


def test_memory_is_judged_on_every_network():
    found = price.memory(costs(curvature=[2.05, 1.5], curvature_recompute=[1.2, 1.0], hessian_product=[3.06, 4.0]))
    assert [(row["claim"], row["verdict"]) for row in found] == [
        ("red-thm1-memory", "reproduced"),
        ("red-thm1-memory", "partly"),
        ("red-hvpcost-memory", "not reproduced"),
    ]
    assert found[1]["statement"] == "curvature with recomputation takes the memory of 1 gradient"
    assert found[1]["criterion"] == "peak memory ≤ 1.05 × a gradient's on each of 2 networks"
    assert {(row["task"], row["scale"]) for row in found} == {("", "")}


def test_what_was_not_measured_is_not_judged():
    assert price.memory(costs(curvature=[1.0])) != []
    assert price.memory(costs(gradient=[1.0])) == []


def test_published_records_are_judged_alone_and_together():
    rows = judged.judged()
    together = [row for row in rows if row["claim"] == "red-tab3-time"]
    assert {"cheaper" in row["statement"] for row in together} == {True, False}
    assert {row["claim"] for row in rows} >= {"red-c01", "red-thm1-memory", "red-hvpcost-memory"}


def test_smoke_is_no_evidence(monkeypatch):
    monkeypatch.setattr(judged, "published", lambda: [("red/cifar10", "smoke")])
    monkeypatch.setattr(judged, "BESIDE", ())
    assert judged.judged() == []
    monkeypatch.setattr(judged, "published", lambda: [("red/cifar10", scale) for scale in ("smoke", "desk")])
    assert {row["scale"] for row in judged.judged()} == {"desk"}
