"""Nothing is lost, mixed up or done twice: runs that are killed, writers at the same time, a cluster that loses a worker."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from reprolib.errors import ReprolibError
from reprolib.lab import Run, execute, train
from reprolib.lab.store import Store
from reprolib.lab.train import Training

SLOW = {"task": "digits-autoencoder", "batch_size": 32, "epochs": 12}  # a second or two

# executes the runs given as keyword lists, so that a real process can be killed
SCRIPT = """
import json, sys
from pathlib import Path
import reprolib.lab.train as t
from reprolib.lab import Run, execute
saved = t.train.__kwdefaults__
saved["every"] = 0.0  # a checkpoint after every epoch
runs = [Run.of(**fields) for fields in json.loads(sys.argv[2])]
print("started", flush=True)
execute(runs, keep=Path(sys.argv[1]), say=lambda line: print(line, flush=True))
"""


def process(keep: Path, *runs: dict) -> subprocess.Popen:
    script = SCRIPT.replace(
        "import reprolib.lab.train as t", "import sys; import reprolib.lab; t = sys.modules['reprolib.lab.train']"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, str(keep), json.dumps(runs)], stdout=subprocess.PIPE, text=True
    )


def same(a, b) -> bool:
    columns = [c for c in a.table.columns if c not in ("seconds", "wall")]
    return a.table[columns].equals(b.table[columns]) and a.first_losses == b.first_losses


@pytest.mark.parametrize("method", ["red-rmsprop", "sgd", "adler", "curveball", "summary", "csdd"])
def test_a_checkpoint_continues_bit_for_bit(tmp_path, method):
    """Stopped after each epoch in turn and taken up by a new Training: the same numbers, schedule and averages included."""
    short = SLOW | {"epochs": 3, "train_size": 200}
    run = Run.of(method, seed=3, options={"lr": 0.5} if method == "sgd" else {}, **short)
    whole, path = train(run), tmp_path / "c.pt"
    history = None
    while history is None:
        epochs = iter([False, True])  # one epoch, then the time is over
        torch.manual_seed(random.randrange(1000))
        history = train(run, checkpoint=path, deadline=lambda: next(epochs))
    assert same(history, whole)
    assert history.final["wall"] > 0


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path):
    a, b = (Run.of("sgd", seed=s, options={"lr": 0.1}, **SLOW) for s in (0, 1))
    training = Training(a)
    training.advance()
    training.save(tmp_path / "a.pt")
    assert Training(a).restore(tmp_path / "a.pt")
    assert not Training(b).restore(tmp_path / "a.pt")
    (tmp_path / "broken.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:1000])
    assert not Training(a).restore(tmp_path / "broken.pt")
    assert not Training(a).restore(tmp_path / "none.pt")


class Harmful:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("code was run",))


def test_a_checkpoint_runs_no_code(tmp_path, capsys):
    torch.save({"key": Harmful()}, tmp_path / "bad.pt")
    assert not Training(Run.of("sgd", seed=0, options={"lr": 0.1}, **SLOW)).restore(tmp_path / "bad.pt")
    assert "code was run" not in capsys.readouterr().out


def test_killed_at_any_moment_the_record_is_the_same(tmp_path):
    """Kill -9 at random moments, again and again, until it is through: as if nothing had happened."""
    fields = {"method": "red-rmsprop", "seed": 1, **SLOW}
    run, store = Run.of(**fields), Store(tmp_path)
    chance, kills = random.Random(0), 0
    while store.read(run) is None:
        child = process(tmp_path, fields)
        assert child.stdout.readline() == "started\n"
        if kills < 3:
            time.sleep(chance.uniform(0.2, 1.5))
            child.send_signal(signal.SIGKILL)
        child.wait(300)
        child.stdout.close()
        kills += 1
    assert kills > 1
    assert same(store.read(run), train(run))
    assert not store.checkpoint(run).exists()


def test_processes_that_share_a_folder_train_nothing_twice(tmp_path):
    runs = [{"method": "sgd", "seed": s, "options": {"lr": 0.1}, **(SLOW | {"epochs": 2})} for s in range(4)]
    children = [process(tmp_path, *runs), process(tmp_path, *reversed(runs))]
    for child in children:
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        assert out.count("[4/4]") == 1
    dates = [(tmp_path / f"{Run.of(**r).key}.json").stat().st_mtime_ns for r in runs]
    again = execute([Run.of(**r) for r in runs], keep=tmp_path)
    assert [h.run.seed for h in again] == [0, 1, 2, 3]
    assert dates == [(tmp_path / f"{Run.of(**r).key}.json").stat().st_mtime_ns for r in runs]


def test_a_killed_worker_is_reported_and_what_is_finished_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    short = Run.of("sgd", seed=0, options={"lr": 0.1}, **(SLOW | {"epochs": 1}))
    long = [Run.of("sgd", seed=s, options={"lr": 0.1}, **(SLOW | {"epochs": 1000})) for s in (1, 2)]

    seeds: list[int] = []

    def kill(line: str) -> None:  # the first run is finished: kill those who train
        seeds.append(int(line.partition("seed ")[2].partition(":")[0]))
        for pid in children():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(ReprolibError, match="what is finished is kept"):
        execute([short, *long], workers=2, keep=tmp_path, say=kill)
    first = next(r for r in (short, *long) if r.seed == seeds[0])
    assert Store(tmp_path).read(first) is not None
    assert len(list(tmp_path.glob("*.json"))) < 3


def children() -> list[int]:
    """The worker processes of joblib below this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_text()
        except OSError:
            continue
        if int(words[1]) == os.getpid() and "loky" in command and "resource_tracker" not in command:
            found.append(int(path.parent.name))
    return found


def test_a_cluster_that_loses_a_worker_finishes_the_sweep(tmp_path):
    """Two real dask workers, one killed while it trains: all runs come back, each once."""
    distributed = pytest.importorskip("distributed")
    runs = [Run.of("sgd", seed=s, options={"lr": 0.1}, **(SLOW | {"epochs": 4})) for s in range(6)]
    finished: list[str] = []
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True) as cluster:
        victim = next(iter(cluster.workers.values())).pid

        def kill_one(line: str) -> None:
            finished.append(line)
            if len(finished) == 1:
                os.kill(victim, signal.SIGKILL)

        histories = execute(runs, engine="dask", scheduler=cluster.scheduler_address, keep=tmp_path, say=kill_one)
    assert [h.run.seed for h in histories] == list(range(6))
    assert len(finished) == 6
    assert len(list(tmp_path.glob("*.json"))) == 6
    assert all(same(h, train(h.run)) for h in histories[:2])
