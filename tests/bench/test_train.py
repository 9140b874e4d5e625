"""The benchmark of training counts what it says; how fast anything is, is not tested."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from reprolib.bench import harness
from reprolib.bench import train as bench_train
from reprolib.bench.harness import Costs
from reprolib.cli.bench import command
from reprolib.errors import InvalidInput, UnknownName
from reprolib.records.record import published


def test_rates_are_per_step_of_one_run(monkeypatch):
    ticks = iter(range(0, 10_000, 6))
    monkeypatch.setattr(harness, "clock", lambda device: float(next(ticks)))  # every call seems to last six seconds
    said: list[str] = []
    rows = bench_train.measure("digits-classifier", rounds=2, steps=2, members=3, say=said.append)
    assert [(r["method"], r["how"], r["members"]) for r in rows] == [
        ("sgd", "alone", 1),
        ("red-sgd", "alone", 1),
        ("sgd", "separate", 3),
        ("sgd", "together", 3),
    ]
    assert [r["seconds"] for r in rows] == [3, 3, 1, 1]
    assert [r["per_second"] for r in rows] == pytest.approx([1 / 3, 1 / 3, 1, 1])
    assert [r["time"] for r in rows] == pytest.approx([1, 1, 1 / 3, 1 / 3])
    assert [r["spread"] for r in rows] == [0] * 4
    assert said == ["digits-classifier: round 1 of 2", "digits-classifier: round 2 of 2"]


def test_both_ways_train_the_same(monkeypatch):
    run = lambda seed: bench_train.Run.of(
        "sgd", task="digits-classifier", epochs=1, batch_size=500, seed=seed, options={"lr": 0.1}, dtype="float64"
    )
    made = []
    for name in ("Training", "Ensemble"):
        kind = getattr(bench_train, name)
        monkeypatch.setattr(bench_train, name, lambda *a, kind=kind: made.append(kind(*a)) or made[-1])
    for way in (bench_train.separate, bench_train.together):
        go = way([run(0), run(1)], "cpu", 4)  # further than an epoch of three batches
        go()
        go()
    *trainings, ensemble = made
    for training, member in zip(trainings, ensemble.members, strict=True):
        for p, q in zip(training.problem.net.parameters(), member.problem.net.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), q.detach())


def test_the_command_writes_a_record(tmp_path):
    path, threads = tmp_path / "training-speed.cpu", torch.get_num_threads()
    words = ["train", "--task", "digits-classifier", "--rounds", "1", "--steps", "1", "--members", "2"]
    result = CliRunner().invoke(command, [*words, "--threads", str(threads), "--write", str(path)])
    assert result.exit_code == 0, result.output
    assert "together" in result.output
    costs = Costs.load(path)
    assert list(costs.table.columns) == list(bench_train.COLUMNS)
    assert costs.table.notna().all(axis=None)
    assert costs.about["environment"]["threads"] == threads
    assert published(tmp_path) == []  # it is not taken for the record of an experiment


def test_bad_input():
    with pytest.raises(UnknownName, match="task"):
        bench_train.measure("digits")
    with pytest.raises(InvalidInput, match="members=0"):
        bench_train.measure("digits-classifier", members=0)
