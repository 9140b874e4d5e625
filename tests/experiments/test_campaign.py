"""The campaign in pieces: stopped in time, packed, carried elsewhere, continued, imported; and what it passes over."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from reprolib import experiments as registry
from reprolib.cli import main as command_line
from reprolib.errors import DataError, InvalidInput, RecordError, ReprolibError, UnknownName
from reprolib.experiments import campaign, package, work
from reprolib.experiments.queue import Entry
from reprolib.experiments.work import Work
from reprolib.lab import Run, execute, train
from reprolib.lab.store import Store
from reprolib.lab.train import Training
from reprolib.lab.workers import Ended, WorkerKilled
from reprolib.records import Record

ROOT = Path(__file__).resolve().parents[2]
RUNS = [Run.of("sgd", seed=s, options={"lr": 0.1}, task="digits-classifier", batch_size=64, epochs=3) for s in range(3)]
OTHER = replace(RUNS[0], seed=7)
TINY, ALONE, BROKEN = Entry("tiny/trial", "paper"), Entry("tiny/alone", "desk"), Entry("tiny/broken", "desk")


class tiny:
    """An experiment of three short runs."""

    NAME = "tiny/trial"

    @staticmethod
    def plan(scale):
        histories = yield RUNS[:2]
        histories = histories + (yield [replace(RUNS[2], keeps_end=True)])  # a package does not carry its weights
        return histories, {"ends": sum(h.end is not None for h in histories)}

    @staticmethod
    def verdicts(record):
        return []


class alone:
    """An experiment of one run."""

    @staticmethod
    def plan(scale):
        return (yield [OTHER]), {}


class broken:
    """An experiment with a mistake in what comes after its run."""

    @staticmethod
    def plan(scale):
        histories = yield [RUNS[0]]
        return histories[1:][0]


@pytest.fixture(autouse=True)
def known(monkeypatch, tmp_path):
    found = {"tiny/trial": tiny, "tiny/alone": alone, "tiny/broken": broken}
    monkeypatch.setattr(registry, "experiments", lambda: found)
    monkeypatch.setenv("REPROLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("REPROLIB_RECORDS", str(tmp_path / "records"))


def same(a, b) -> bool:
    columns = [c for c in a.table.columns if c not in ("seconds", "wall")]
    return a.table[columns].equals(b.table[columns])


def command(*words: str):
    return CliRunner().invoke(command_line, words, catch_exceptions=False)


def quiet(line: str) -> None:
    pass


# ---- in pieces


def carried(keep: Path, out: Path, source: Path | None, epochs: int) -> bool:
    """A call on a fresh machine whose time is over after so many epochs."""
    passed, advance = [0.0], Training.advance

    def an_epoch(training):
        advance(training)
        passed[0] += 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "advance", an_epoch)
        patch.setattr("time.monotonic", lambda: passed[0])
        minutes = (epochs - 0.5) / 54  # a tenth is kept for packing
        return campaign.campaign([TINY], out=out, minutes=minutes, source=source, keep=keep, say=quiet)


def test_a_campaign_in_pieces_is_one_campaign(tmp_path):
    source, finished, calls = None, False, 0
    while not finished:
        out = tmp_path / f"package {calls}"
        finished = carried(tmp_path / f"machine {calls}", out, source, 2)
        assert len(list(out.iterdir())) <= package.FILES
        source, calls = out, calls + 1
        assert calls < 20
    assert calls == 5  # 9 epochs
    store = Store(tmp_path / f"machine {calls - 1}")
    assert all(same(store.read(r), train(r)) for r in RUNS)
    assert not list(store.folder.glob("*.pt"))
    assert not (tmp_path / "records").exists()


def test_what_a_campaign_leaves_becomes_a_record(tmp_path):
    part, out = str(tmp_path / "part"), str(tmp_path / "out")
    carried(tmp_path / "a", Path(part), None, 2)
    assert "2 are missing" in command("records", "import", part, "--only", "tiny/trial:paper").output
    words = ["--out", out, "--keep", str(tmp_path / "b"), "--device", "cpu", "--only", "tiny/trial:paper"]
    assert command("campaign", *words).exit_code == 0
    assert "wrote" in command("records", "import", out, "--only", "tiny/trial:paper").output
    record = Record.load("tiny/trial", "paper")
    assert len(record.runs) == 3 and record.notes == {"ends": 0}
    assert "3 runs (0 ended early)" in command("records", "list").output
    assert "0 differences" in command("records", "diff", "tiny/trial@paper", "tiny/trial").output
    assert command("records", "show", "tiny/trial").output.count("finished") == 3
    assert command("records", "verify").exit_code == 0
    assert (
        "is there" in command("records", "import", out, "--only", "tiny/trial:paper").output
    )  # it is not written again


def test_a_checkpoint_that_is_too_large_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(package, "SIZE", 10_000)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.json").write_bytes(b"{}")
    (tmp_path / "runs" / "small.pt").write_bytes(os.urandom(40_000))
    (tmp_path / "runs" / "large.pt").write_bytes(os.urandom(60_000))
    said: list[str] = []
    paths = package.pack(tmp_path / "runs", tmp_path / "out", said.append)
    assert len(paths) == 5
    assert "large does not fit" in said[0]
    assert package.unpack(tmp_path / "out", tmp_path / "back") == 2
    assert package.unpack(tmp_path / "out", tmp_path / "back") == 0  # nothing that is there is replaced
    assert (tmp_path / "back" / "small.pt").read_bytes() == (tmp_path / "runs" / "small.pt").read_bytes()
    paths[2].unlink()
    with pytest.raises(RecordError, match="4 of 5 parts"):
        package.unpack(tmp_path / "out", tmp_path / "other")


def test_nothing_is_packed_of_nothing(tmp_path):
    assert package.pack(tmp_path / "runs", tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_what_is_no_package_is_refused(tmp_path):
    with pytest.raises(RecordError, match="is it the folder"):
        package.unpack(tmp_path, tmp_path / "runs")
    (tmp_path / "campaign-1-of-1.part").write_bytes(b"not an archive")
    with pytest.raises(RecordError, match="damaged"):
        package.unpack(tmp_path, tmp_path / "runs")


# ---- records


def test_each_record_is_written_when_it_is_complete_and_not_again(tmp_path):
    said: list[str] = []
    assert campaign.campaign([TINY, ALONE], say=said.append)
    record = Record.load("tiny/trial", "paper")
    assert record.notes == {"ends": 1}  # here the last weights are kept
    assert set(record.runs) == {run.key for run in RUNS}
    order = [line for line in said if "wrote" in line or "1/1" in line]
    assert "tiny/trial paper: complete" in order[0] and "tiny/alone desk [1/1]" in order[1]
    path = tmp_path / "records" / "tiny" / "trial" / "paper.json"
    before = path.stat().st_mtime_ns
    for file in (tmp_path / "runs").glob("*.json"):
        file.unlink()  # what is published needs no runs
    again: list[str] = []
    assert campaign.campaign([TINY, ALONE], say=again.append)
    assert [line for line in again if "its record is there" in line] == again[1:3] and len(again) == 4
    assert path.stat().st_mtime_ns == before and not list((tmp_path / "runs").glob("*.json"))


def test_a_record_that_lacks_a_run_is_completed(monkeypatch):
    histories = execute(RUNS[:2])
    Record.of("tiny/trial", "paper", histories).save()
    assert TINY.record is None
    assert campaign.campaign([TINY], say=quiet)
    assert TINY.record is not None and len(TINY.record.runs) == 3


def test_what_a_record_knows_of_a_run(tmp_path):
    (history,) = execute(RUNS[:1])
    Record.of("tiny/trial", "paper", [history]).save()
    record = Record.load("tiny/trial", "paper")
    found = record.history(RUNS[0])
    assert found.run == RUNS[0] and found.status == history.status and found.first_losses == history.first_losses
    assert found.final["loss"] == pytest.approx(history.final["loss"], rel=1e-5)
    assert len(found.table) == len(history.table)
    assert record.history(RUNS[1]) is None


# ---- who gets which run


class Trainers:
    """Two trainers that do nothing; a test says which of them has done."""

    def __init__(self, store: Store):
        self.store, self.given, self.order = store, [], []
        self.ends: list[Exception | None] = []

    @property
    def idle(self) -> bool:
        return len(self.given) < 2

    def start(self, run: Run, seconds: float) -> None:
        self.given.append(run)
        self.order.append(run.seed)

    def wait(self) -> Ended:
        run = self.given.pop(0)
        error = self.ends.pop(0) if self.ends else None
        if error:
            return Ended(run, error=error)
        execute([run], keep=self.store.folder)
        return Ended(run, True)


def worked(tmp_path, entries, ends=()):
    said: list[str] = []
    store = Store(tmp_path / "runs")
    trainers, jobs = Trainers(store), Work(entries, store, said.append, recording=True)
    trainers.ends = list(ends)
    assert jobs.done(trainers, math.inf)
    return trainers.order, [str(entry) for entry in jobs.passed], said


def test_who_has_nothing_to_do_begins_with_the_next_experiment(tmp_path):
    """The third run of the first experiment waits for its first two, so the other trainer goes on with the second."""
    order, passed, _ = worked(tmp_path, [TINY, ALONE])
    assert order == [0, 1, 7, 2] and not passed


def test_what_cannot_go_on_is_passed_over_and_the_rest_is_done(tmp_path):
    order, passed, said = worked(tmp_path, [BROKEN, TINY, ALONE], [DataError("no such file")])
    assert passed == ["tiny/broken desk", "tiny/trial paper"]  # both need that run
    assert order[-1] == 7
    assert sum("passed over: no such file" in line for line in said) == 2


def test_a_mistake_of_an_experiment_is_shown_and_the_rest_is_done(tmp_path):
    _, passed, said = worked(tmp_path, [BROKEN, ALONE])
    assert passed == ["tiny/broken desk"]
    assert any("IndexError" in line and "Traceback" in line for line in said)
    assert Record.load("tiny/alone", "desk")


def test_a_run_that_kills_its_worker_again_and_again_is_passed_over(tmp_path):
    killed = WorkerKilled("its worker ended by signal 9")
    order, passed, said = worked(tmp_path, [ALONE], [killed] * work.TRIES)
    assert order == [7] * work.TRIES and passed == ["tiny/alone desk"]
    assert sum("goes on from its checkpoint" in line for line in said) == work.TRIES - 1


def test_kills_do_not_count_while_the_run_gets_on(tmp_path):
    store = Store(tmp_path)
    jobs = Work([], store, quiet, recording=True)
    for k in range(10):
        store.checkpoint(OTHER).write_bytes(b"")
        os.utime(store.checkpoint(OTHER), ns=(k, k))
        assert jobs._deserves_another(OTHER)
    assert [jobs._deserves_another(OTHER) for _ in range(work.TRIES)] == [True] * (work.TRIES - 2) + [False] * 2


def test_a_finished_run_that_is_not_there_is_an_error(tmp_path):
    class Forgetful(Trainers):
        def wait(self):
            return Ended(self.given.pop(0), True)

    store = Store(tmp_path / "runs")
    jobs = Work([ALONE], store, quiet, recording=True)
    assert jobs.done(Forgetful(store), math.inf)
    assert jobs.passed == [ALONE]


def test_a_campaign_that_passed_something_over_says_so_at_the_end(tmp_path):
    with pytest.raises(ReprolibError, match="finished but for tiny/broken desk"):
        campaign.campaign([BROKEN, ALONE], say=quiet)
    assert Record.load("tiny/alone", "desk")


# ---- bad input


def test_bad_input_is_refused_before_anything_is_written(tmp_path):
    for bad in ({"minutes": -1}, {"minutes": math.nan}, {"workers": 0}, {"device": "cudaa"}):
        with pytest.raises(InvalidInput):
            campaign.campaign([TINY], out=tmp_path / "out", say=quiet, **bad)
    for words in (["--only", "tiny/trail"], ["--only", "tiny/trial:papre"], ["--workers", "0"], ["--mintes", "3"]):
        result = command("campaign", "--device", "cpu", "--out", str(tmp_path / "out"), *words)
        assert result.exit_code == 2 and len(result.output.splitlines()) == 1, result.output
    with pytest.raises(UnknownName, match="did you mean 'tiny/trial'"):
        campaign.main(["--device", "cpu", "--only", "tiny/trail:paper"])
    assert not list(tmp_path.iterdir())


def test_an_empty_campaign_writes_nothing(tmp_path):
    (tmp_path / "queue.yaml").write_text("[]")
    words = ["--device", "cpu", "--queue", str(tmp_path / "queue.yaml"), "--out", str(tmp_path / "out")]
    assert "nothing to do" in command("campaign", *words).output
    assert [path.name for path in tmp_path.iterdir()] == ["queue.yaml"]


# ---- a machine with little on it

LITTLE = """
import sys
for name in ("click", "pooch", "tqdm", "platformdirs", "joblib", "sklearn", "yaml", "matplotlib", "distributed", "scipy"):
    sys.modules[name] = None  # what a machine with only torch, numpy and pandas does not have
import runpy
sys.argv[0] = "campaign"
runpy.run_module("reprolib.experiments.campaign", run_name="__main__")
"""


def on_little(tmp_path, *words: str):
    """In a process that can import nothing else; data are missing there."""
    words = ("--minutes", "0.05", "--out", str(tmp_path / "out"), "--keep", str(tmp_path / "runs"), *words)
    environ = os.environ | {"REPROLIB_DATA": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    code = [sys.executable, "-c", LITTLE, "--device", "cpu"]
    return subprocess.run([*code, *words], capture_output=True, text=True, env=environ)


def test_it_needs_torch_numpy_and_pandas_only(tmp_path):
    result = on_little(tmp_path, "--only", "red/cifar10:paper")
    assert "red/cifar10 paper is passed over: downloading cifar10 needs pooch" in result.stdout, result.stderr
    assert result.stderr == "error: finished but for red/cifar10 paper: see above\n"
    assert result.returncode == 1
    assert not (tmp_path / "out").exists()


def test_without_yaml_it_asks_for_names(tmp_path):
    result = on_little(tmp_path)
    assert result.returncode == 1
    assert result.stderr == "error: reading queue.yaml needs the package: pip install pyyaml\n"
