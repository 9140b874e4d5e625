"""Runs, training, records: reproducible, resumable, and refused when they do not belong together."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, fields, replace
from importlib import import_module

import pandas as pd
import pytest
import torch

from reprolib.errors import DataError, InvalidInput, RecordError, UnknownName, UnsupportedOperation
from reprolib.experiments import conduct, module
from reprolib.experiments.red import protocol as red_protocol
from reprolib.lab import History, Run, execute, train
from reprolib.lab import methods as methods_module
from reprolib.lab.methods import METHODS, take_step
from reprolib.lab.plan import follow, outstanding, together
from reprolib.lab.run import STATED
from reprolib.lab.store import Store
from reprolib.lab.train import Training
from reprolib.records import Record
from reprolib.records.record import differences, published, run_of
from reprolib.records.replay import differences as not_replayed
from reprolib.records.verdict import by_seed
from reprolib.tasks import TASKS, task


def run(method: str = "red-sgd", seed: int = 0, **fields) -> Run:
    options = (
        {}
        if method.startswith("red") or method in ("adler", "csdd", "curveball", "summary")
        else {"lr": 0.1 if method == "sgd" else 0.01}
    )
    fields = {"task": "digits-classifier", "epochs": 2, "batch_size": 256, "options": options} | fields
    return Run.of(method, seed=seed, **fields)


def same(a, b) -> bool:
    columns = [c for c in a.table.columns if c not in ("seconds", "wall")]
    return a.table[columns].equals(b.table[columns]) and a.first_losses == b.first_losses


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_a_function_of_its_specification(method):
    torch.manual_seed(1)
    a = train(run(method))
    torch.manual_seed(2)  # the global random state must not matter
    b = train(run(method))
    assert same(a, b)
    assert not same(a, train(run(method, seed=1)))
    assert a.final["loss"] < a.first_losses[0]
    assert Training(run(method)).first_losses() == a.first_losses


def test_every_task_that_is_embedded_trains():
    for name, t in TASKS.items():
        if t.dataset == "digits":
            history = train(run(task=name, epochs=1))
            assert math.isfinite(history.final["test_loss"])
            assert math.isnan(history.final["test_accuracy"]) == (t.kind == "input")


def test_held_out_samples_are_neither_trained_on_nor_the_test_set():
    whole = task("digits-classifier").build(0, batch_size=64)
    part = task("digits-classifier").build(0, batch_size=64, held_out=100)
    assert len(part.batches.x) == len(whole.batches.x) - 100
    assert torch.equal(part.held_out[0], whole.batches.x[-100:])
    with pytest.raises(InvalidInput, match="held_out"):
        task("digits-classifier").build(0, batch_size=64, train_size=50, held_out=50)


def test_a_diverging_run_is_kept_and_marked():
    history = train(run("sgd", task="digits-autoencoder", options={"lr": 1e6}))
    assert history.diverged
    assert not math.isfinite(history.final["loss"])


def test_keys_follow_the_specification_and_the_versions(monkeypatch):
    assert run().key == run().key
    assert (
        len({run().key, run(seed=1).key, run(epochs=3).key, run("sgd").key, run("sgd", options={"lr": 0.2}).key}) == 5
    )
    before = run().key
    newer = methods_module.METHODS["red-sgd"]
    monkeypatch.setitem(methods_module.METHODS, "red-sgd", type(newer)(**{**vars(newer), "version": newer.version + 1}))
    assert run().key != before


def test_a_field_that_comes_later_changes_no_key_where_it_has_its_default():
    @dataclass(frozen=True, kw_only=True)
    class Later(Run):
        precision: str = "high"

    before = {f.name: getattr(run(), f.name) for f in fields(Run) if f.init}
    assert Later(**before).key == run().key == "e97d980a8aaa75a2"
    assert "precision" not in Later(**before).specification
    assert Later(**before, precision="low").key != run().key
    assert Later(**before, precision="low").specification["precision"] == "low"
    assert replace(run(), keeps_end=True).key == run().key
    assert set(run().specification) == STATED
    assert all(f.name in STATED or f.default is not MISSING for f in fields(Run))


@pytest.mark.parametrize("workers", [1, 2])
def test_execution_continues_where_it_stopped(tmp_path, workers):
    runs = [run("sgd"), run("sgd", seed=1), run("sgd")]
    said: list[str] = []
    first = execute(runs[:1], keep=tmp_path, say=said.append)
    (tmp_path / f"{runs[1].key}.json").write_text("{broken")  # as a killed process might leave it
    both = execute(runs, keep=tmp_path, workers=workers, say=said.append)
    assert [line.partition(" ")[0] for line in said] == ["[1/1]", f"{tmp_path / runs[1].key}.json", "[2/2]"]
    assert "is there and not used: it cannot be read (Expecting" in said[1]
    assert same(both[0], first[0])
    assert same(both[2], first[0])
    assert [h.run.seed for h in both] == [0, 1, 0]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".lock"}
    again = execute(runs, keep=tmp_path, say=said.append)
    assert len(said) == 3
    assert same(again[1], both[1])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: content | {"format": 1}, "it has format 1, this code reads 2"),
        (lambda content: {"Reason" if k == "reason" else k: v for k, v in content.items()}, "argument 'Reason'"),
        (lambda content: {k: v for k, v in content.items() if k != "table"}, "(KeyError: 'table')"),
        (lambda content: [content], "it is not what this code writes (TypeError"),
        (
            lambda content: content | {"specification": content["specification"] | {"seed": 7, "new": 1}},
            "it is of another specification (see its new, seed)",
        ),
    ],
)
def test_a_finished_run_that_cannot_be_used_is_named(tmp_path, change, why):
    said: list[str] = []
    execute([run("sgd")], keep=tmp_path)
    path = tmp_path / f"{run('sgd').key}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    store = Store(tmp_path)
    for _ in range(2):
        assert store.read(run("sgd"), said.append) is None
    (line,) = said
    assert line.startswith(f"{path} is there and not used: ") and why in line
    assert store.read(run("sgd", seed=1), said.append) is None  # that is not there
    assert len(said) == 1


def test_records_round_trip(tmp_path):
    record = Record.of("red/trial", "smoke", execute([run("sgd"), run("red-sgd")]), {"why": "test"})
    path = record.save(tmp_path)
    back = Record.load("red/trial", where=tmp_path)
    assert back.scale == "smoke"
    assert back.notes == {"why": "test"}
    assert back.runs == record.runs
    pd.testing.assert_frame_equal(back.table, record.table, rtol=1e-5, check_dtype=False)
    assert back.statuses == {"finished": 2}
    assert back.stale() == []
    assert not_replayed(back) == []
    content = path.read_text()
    for private in ("/home", "/root", "/tmp"):
        assert private not in content
    environment = next(iter(back.runs.values()))["environment"]
    assert {"date", "device", "capability", "threads", "workers", "tf32", "versions", "commit", "data"} == set(
        environment
    )
    assert {"torch", "mkl", "onednn"} <= set(environment["versions"])
    assert environment["workers"] == 1
    assert list(environment["data"]) == ["digits of scikit-learn"]


def test_the_best_scale_is_read(tmp_path):
    histories = execute([run("sgd")])
    for scale in ("desk", "smoke"):
        Record.of("red/trial", scale, histories).save(tmp_path)
    assert Record.load("red/trial", where=tmp_path).scale == "desk"
    assert Record.load("red/trial", "smoke", where=tmp_path).scale == "smoke"


def test_records_that_do_not_belong_are_refused(tmp_path):
    record = Record.of("red/trial", "smoke", execute([run("sgd")]))
    meta = record.save(tmp_path)
    csv = meta.with_suffix(".csv")
    good_meta, good_csv = meta.read_text(), csv.read_text()
    key = next(iter(record.runs))
    for path, text, words in [
        (meta, "{", "damaged"),
        (meta, good_meta.replace('"format": 2', '"format": 99'), "format 99"),
        (meta, good_meta.replace('"lr": 0.1', '"lr": 0.3'), f"run {key} is not what its specification says"),
        (csv, good_csv.replace(key, "0"), "without provenance"),
    ]:
        meta.write_text(good_meta)
        csv.write_text(good_csv)
        path.write_text(text)
        with pytest.raises(RecordError, match=words):
            Record.load("red/trial", where=tmp_path)
    with pytest.raises(RecordError, match="make one with"):
        Record.load("red/nothing", where=tmp_path)
    with pytest.raises(RecordError, match="no paper record"):
        Record.load("red/trial", "paper", where=tmp_path)
    with pytest.raises(UnknownName, match="scale"):
        Record.load("red/trial", "huge", where=tmp_path)


def test_a_record_of_another_version_is_stale(tmp_path, monkeypatch):
    Record.of("red/trial", "smoke", execute([run("sgd")])).save(tmp_path)
    sgd = METHODS["sgd"]
    monkeypatch.setitem(methods_module.METHODS, "sgd", replace(sgd, version=sgd.version + 1))
    assert len(Record.load("red/trial", where=tmp_path).stale()) == 1


def test_every_run_is_counted_however_it_ended(tmp_path, monkeypatch):
    def broken(*args):
        raise UnsupportedOperation("no rule for it")

    diverging = run("sgd", task="digits-autoencoder", options={"lr": 1e6})
    good, trial = run("sgd"), run("sgd", seed=9)
    histories = execute([good, diverging, trial])
    monkeypatch.setattr(import_module("reprolib.lab.train"), "take_step", broken)
    failed = execute([run("sgd", seed=5)])
    Record.of("red/trial", "smoke", {"reported": [*histories[:2], *failed], "trial": [histories[2]]}).save(tmp_path)
    back = Record.load("red/trial", where=tmp_path)
    assert back.statuses == {"finished": 2, "diverged": 1, "failed": 1}
    assert back.made["ended_early"] == 2 and back.made["trials_ended_early"] == 0
    assert back.runs[failed[0].run.key]["reason"] == "UnsupportedOperation: no rule for it"
    kept = back.runs[diverging.key]
    assert 0 < kept["iterations"] < 12
    assert math.isfinite(kept["last_finite_loss"])
    assert set(back.table["seed"]) == {0}  # trials are kept, but not among the reported
    assert len(back.of_role("trial")) == 1


def test_histories_say_what_a_step_costs():
    """In matrix products of a 3-layer network: a gradient takes 8, RED by Algorithm 2 7 more (the first layer needs fewer)."""
    sgd, ours = (train(run(m, epochs=1)).final for m in ("sgd", "red-sgd"))
    assert sgd["gradients"] == sgd["iteration"] == 6
    assert 1.6 < ours["gradients"] / 6 < 15 / 8
    assert sgd["seconds"] > 0
    assert sgd["wall"] > 0


def test_parts_of_a_record_are_merged(tmp_path):
    a, b = (Record.of("red/trial", "smoke", execute([run("sgd", seed=s)]), {f"from {s}": s}) for s in (0, 1))
    with ThreadPoolExecutor(2) as pool:  # at the same time
        list(pool.map(lambda r: r.save(tmp_path, merge=True), [a, b]))
    whole = Record.load("red/trial", where=tmp_path)
    assert set(whole.runs) == set(a.runs) | set(b.runs)
    assert whole.notes == {"from 0": 0, "from 1": 1}
    assert differences(whole, whole) == []
    assert len(differences(whole, a)) == 1


def test_published_records_belong_to_this_code():
    """Every committed record: its runs have today's versions. How they begin: tests/records/test_replay.py."""
    found = published()
    assert found
    for name, scale in found:
        record = Record.load(name, scale)
        assert record.stale() == []
        for kept in record.runs.values():
            assert json.loads(json.dumps(run_of(kept["specification"]).specification)) == kept["specification"]
        assert [run_of(kept["specification"]).key for kept in record.runs.values()] == list(record.runs)


def test_the_protocol_of_the_first_experiment():
    columns = [red_protocol.COLUMNS["paper"][name] for name in ("mnist", "autoencoder")]
    assert [c.decay(0.97) for c in columns] == [0.97, 0.97]
    desk = red_protocol.COLUMNS["desk"]["mnist"]
    assert desk.decay(0.97) ** desk.epochs == pytest.approx(0.97**200)
    assert len(red_protocol.STEPS) == 14
    assert min(red_protocol.STEPS) == pytest.approx(1e-5)
    assert max(red_protocol.STEPS) == pytest.approx(50)
    asked = []

    def fake(runs):  # the loss of a run is its distance from lr = 0.5 and no decay; larger steps than 5 diverge
        asked.append(len(runs))
        out = []
        for r in runs:
            o = dict(r.options)
            loss = abs(math.log10(o["lr"]) - math.log10(0.5)) + (1 - o["decay"]) if o["lr"] <= 5 else math.nan
            table = pd.DataFrame({"loss": [loss], "test_loss": [1.0 if o["lr"] == 0.1 else 2.0], "seconds": [1.0]})
            out.append(History(r, table, [], "diverged" if o["lr"] > 5 else "finished"))
        return out

    result = follow(desk.tuned("sgd", (0, 1), halving=True), fake)
    assert result["options"] == {"lr": 0.5, "decay": 1.0}
    assert result["by_validation"]["lr"] == pytest.approx(0.1)
    assert sum(row["train_loss"] is None for row in result["first_round"]) == 2
    assert asked == [14, 16, 2]
    assert len(result["trials"]) == 30
    assert [h.run.seed for h in result["histories"]] == [0, 1]


def test_plans_advance_side_by_side():
    runs = [run("sgd", seed=s) for s in range(6)]

    def short():
        first = yield runs[:2]
        return len(first)

    def long():
        yield runs[2:3]
        second = yield runs[3:6]
        return [h.run.seed for h in second]

    asked = []

    def fake(batch):
        asked.append([r.seed for r in batch])
        return [History(r, pd.DataFrame(), []) for r in batch]

    assert follow(together([short(), long()]), fake) == [2, [3, 4, 5]]
    assert asked == [[0, 1, 2], [3, 4, 5]]


def test_what_is_outstanding_grows_with_what_is_done():
    known, missing = outstanding(module("red/mnist").plan("smoke"), lambda r: None)
    assert not known
    assert len({r.key for r in missing}) == len(missing)
    untuned = [r for r in missing if not r.held_out]
    assert {r.method for r in untuned} == {"sgd", "rmsprop", "red-sgd", "red-rmsprop"}

    def find(r):
        table = pd.DataFrame({"loss": [dict(r.options).get("lr", 0.0)], "test_loss": [1.0], "seconds": [1.0]})
        return History(r, table, []) if r.stop_after != 1 else None

    known, missing = outstanding(module("red/mnist").plan("smoke"), find)
    assert all(r.stop_after == 1 for r in missing)
    assert len(known) == len(untuned)


def test_verdicts():
    assert by_seed([True] * 3) == "reproduced"
    assert by_seed([True, True, False]) == "inconclusive"
    assert by_seed([True] * 4 + [False]) == "reproduced"
    assert by_seed([True] * 3 + [False] * 2) == "inconclusive"
    assert by_seed([False] * 5) == "not reproduced"


def test_bad_names_have_one_clear_error():
    for call, words in [
        (lambda: run("red"), "did you mean 'red-"),
        (lambda: run(task="mnist"), "unknown task"),
        (lambda: run("sgd", options={"momentum": 0.9}), "option of sgd"),
        (lambda: run(epochs=0), "epochs = 0"),
        (lambda: conduct("red/mnst", "smoke", execute), "did you mean 'red/mnist'"),
        (lambda: conduct("red/mnist", "tiny", execute), "unknown scale"),
        (lambda: execute([], engine="slurm"), "unknown engine"),
        (lambda: execute([], engine="dask"), "address of a scheduler"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()


def test_a_missing_data_set_leaves_no_record(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match="mnist"):
        Training(run(task="mnist-classifier"), download=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("method", ["sgd", "rmsprop", "red-sgd", "red-rmsprop"])
def test_on_a_gpu_nothing_waits_within_an_epoch(method):
    training = Training(run(method), "cuda")
    (x, y), *batches = training.problem.batches.epoch(0)
    take_step(training.optimizer, *training.problem.pair(x, y))  # the first one checks
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, y in batches:
            take_step(training.optimizer, *training.problem.pair(x, y))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("method", ["sgd", "red-rmsprop"])
def test_a_gpu_follows_the_processor(method, tmp_path):
    here, there = train(run(method, dtype="float64")), train(run(method, dtype="float64"), "cuda")
    assert there.first_losses == pytest.approx(here.first_losses, rel=1e-10)
    training = Training(run(method), "cuda")
    training.advance()
    training.save(tmp_path / "c.pt")
    assert Training(run(method), "cuda").restore(tmp_path / "c.pt")
