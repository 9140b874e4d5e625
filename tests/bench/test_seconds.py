"""Seconds at equal work are steps times what one costs; how fast anything is, is not tested."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from reprolib.bench import harness
from reprolib.bench.harness import Costs
from reprolib.bench.seconds import COLUMNS, Going, costs, measure, seconds_of, timed, work
from reprolib.cli.bench import command
from reprolib.errors import RecordError
from reprolib.lab import History, Run, train
from reprolib.lab.train import Training
from reprolib.records import Record
from reprolib.records.record import published


def run(method: str = "sgd", **fields) -> Run:
    options = {"sgd": {"lr": 0.1}, "adamw": {"lr": 0.01}}.get(method, {})
    fields = {"task": "digits-classifier", "epochs": 1, "batch_size": 500, "seed": 0, "options": options} | fields
    return Run.of(method, **fields)


def history(run: Run, *iterations: int) -> History:
    table = pd.DataFrame({"iteration": iterations, "seconds": 1000.0, "loss": 1.0})
    return History(run, table, [1.0])


def test_runs_whose_steps_are_alike_are_measured_once(monkeypatch):
    ticks = iter(range(0, 10_000, 6))
    monkeypatch.setattr(harness, "clock", lambda device: float(next(ticks)))  # every call seems to last six seconds
    fields = {"task": "digits-autoencoder"}
    record = Record.of(
        "red/trial",
        "smoke",
        {
            "reported": [history(r, 3) for r in (run(), run("summary", options={"period": 4}), run(**fields))],
            "trial": [history(r, 3) for r in (run(options={"lr": 9.0}), run("adamw"), run(batch_size=100))],
        },
    )
    said: list[str] = []
    rows = list(measure(record, rounds=2, say=said.append))
    kinds = [run(), run("summary", options={"period": 4}), run("adamw"), run(batch_size=100), run(**fields)]
    assert sorted(row["work"] for row in rows) == sorted(map(work, kinds))
    by_work = {row["work"]: row for row in rows}
    assert by_work[work(run())] == {
        "work": work(run()),
        "seconds": 0.6,
        "spread": 0,
        "steps": 10,
        "threads": torch.get_num_threads(),
    }
    assert by_work[work(kinds[1])]["steps"] == 12  # whole periods
    assert said[0].endswith("round 1 of 2") and len(said) == 4


def test_what_makes_the_work_of_a_step():
    same = [run(), run(options={"lr": 0.5}), run(seed=3), run(epochs=9), run(train_size=600), run(dtype="float32")]
    assert len({work(r) for r in same}) == 1
    others = [
        run("adamw"),
        run(batch_size=100),
        run(task="digits-convnet"),
        run(options={"lr": 0.1, "weight_decay": 0.0}),
    ]
    assert len({work(r) for r in [run(), *others]}) == 5
    assert work(run("csdd", train_size=600)) != work(run("csdd", train_size=700))  # its step sees all of them


def test_seconds_are_steps_times_their_cost(tmp_path, monkeypatch):
    record = Record.of("red/trial", "smoke", [history(run(), 1, 4), history(run(seed=1), 2), history(run("adamw"), 10)])
    found = [{"work": work(run()), "seconds": 0.5}, {"work": work(run("adamw")), "seconds": 2.0}]
    seconds = seconds_of(record, costs(found, record, "cpu", 1, 0.1))
    assert seconds.tolist() == [0.5, 2.0, 1.0, 20.0]
    monkeypatch.setenv("REPROLIB_RECORDS", str(tmp_path))
    assert timed(record) is record
    with pytest.raises(RecordError, match=r"seconds-smoke\.cpu"):
        seconds_of(record)
    costs(found, record, "cpu", 1, 0.1).save(tmp_path / "red/trial/seconds-smoke.cpu")
    assert seconds_of(record).tolist() == timed(record).rows["seconds"].tolist() == seconds.tolist()
    assert set(record.rows["seconds"]) == {1000}  # how long it took that day is still there
    with pytest.raises(RecordError, match=f"nobody has measured a step of run {run('adamw').key}"):
        seconds_of(record, costs(found[:1], record, "cpu", 1, 0.1))


def test_the_steps_that_are_measured_are_those_of_the_run():
    r = run("red-sgd", batch_size=150, dtype="float64", epochs=2)
    go = Going(r, "cpu")
    assert go.steps == 10  # an epoch has fewer
    go()
    training = Training(r)
    training.advance()
    for number, (x, y) in zip(range(training.per_epoch, 10), training.problem.batches.epoch(1), strict=False):
        training.step(number, x, y)
    for p, q in zip(go._training.problem.net.parameters(), training.problem.net.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_command_writes_what_chapters_read(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_RECORDS", str(tmp_path))
    record = Record.of("red/trial", "smoke", [train(run())])
    record.save()
    path, threads = tmp_path / "red" / "trial" / "seconds-smoke.cpu", torch.get_num_threads()
    words = ["seconds", "red/trial", "--rounds", "1", "--threads", str(threads), "--write", str(path)]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    assert work(run()) in result.output
    found = Costs.load(path)
    assert list(found.table.columns) == list(COLUMNS)
    assert found.about["of"] == "red/trial smoke"
    assert (seconds_of(Record.load("red/trial")) > 0).all()
    assert published(tmp_path) == [("red/trial", "smoke")]  # it is not taken for a record
