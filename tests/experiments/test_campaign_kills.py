"""Ten kills, of workers and of the campaign itself, and the record is what it would have been."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reprolib.experiments import conduct
from reprolib.lab import execute, plugins
from reprolib.lab.files import written
from reprolib.records import Record

ROOT = Path(__file__).resolve().parents[2]
KILLS = 10
OF_ALL = {3: signal.SIGKILL, 7: signal.SIGTERM}  # these are of the campaign, the others of one of its workers
PATIENCE = 300.0  # seconds; a loaded machine may take its time

PLUGIN = """
'''Six runs on digits, and two that depend on them; a checkpoint after every epoch.'''
import sys
import reprolib.lab
from reprolib.lab import Run

sys.modules["reprolib.lab.train"].train.__kwdefaults__["every"] = 0.0
NAME = "kills/digits"


def plan(scale):
    more = {"task": "digits-autoencoder", "batch_size": 32, "train_size": 300}
    first = yield [Run.of("red-rmsprop", seed=s, epochs=10, **more) for s in range(6)]
    best = min(first, key=lambda h: h.final["loss"]).run.seed
    then = yield [Run.of("sgd", seed=best + s, options={"lr": 0.1}, epochs=4, **more) for s in (10, 20)]
    return first + then, {"best": best}


def verdicts(record):
    return []
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "kills_digits.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_LOADED", [])
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    monkeypatch.setenv("REPROLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("REPROLIB_RECORDS", str(tmp_path / "records"))
    return tmp_path


def begun(folder: Path) -> subprocess.Popen:
    words = ["--import", "kills_digits", "--only", "kills/digits:desk", "--workers", "2", "--device", "cpu"]
    with (folder / "log").open("a") as log:
        return subprocess.Popen([sys.executable, "-m", "reprolib", "campaign", *words], stdout=log, stderr=log)


def below(pid: int) -> list[int]:
    """The processes that the campaign has started, and those that these have started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    children = [p for p, parent in parents.items() if parent == pid]
    return children + [p for p, parent in parents.items() if parent in children]


def workers(pid: int) -> list[int]:
    """Those that keep a run locked."""
    return [p for p in below(pid) if any(name.endswith(".lock") for name in opened(p))]


def opened(pid: int) -> list[str]:
    try:
        return [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def wait_until(happened: Callable[[], object], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


def progress(runs: Path) -> set[tuple[str, int | None]]:
    return {(path.name, written(path)) for path in [*runs.glob("*.pt"), *runs.glob("*.json")]}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_ten_kills_leave_the_record_of_an_undisturbed_campaign(folder):
    chance, runs, log = random.Random(0), folder / "runs", folder / "log"
    child = begun(folder)
    for kill in range(KILLS):
        before = progress(runs)
        wait_until(lambda: progress(runs) - before or child.poll() is not None, log)
        time.sleep(chance.uniform(0, 0.1))
        assert child.poll() is None, log.read_text()  # it has not got through between two kills
        if kill not in OF_ALL:
            wait_until(lambda: workers(child.pid), log)
            os.kill(chance.choice(workers(child.pid)), signal.SIGKILL)
            continue
        started = below(child.pid)
        child.send_signal(OF_ALL[kill])
        assert child.wait(PATIENCE) == (130 if OF_ALL[kill] == signal.SIGTERM else -signal.SIGKILL)
        wait_until(lambda: not any(Path(f"/proc/{p}").exists() for p in started), log)  # nobody trains for nobody
        child = begun(folder)
    assert child.wait(PATIENCE) == 0, log.read_text()
    said = log.read_text()
    assert said.count("goes on from its checkpoint") >= KILLS - 2 * len(
        OF_ALL
    )  # who is killed at once says nothing more
    assert said.count("stopped: the same command continues") == 1
    assert said.endswith("the list is finished\n")
    assert not list(runs.glob("*.pt")) and not list(runs.glob("*.progress"))

    plugins.load("kills_digits")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        undisturbed = conduct("kills/digits", "desk", execute)
    finally:
        torch.set_num_threads(threads)
    undisturbed.save(folder / "undisturbed")
    a, b = Record.load("kills/digits", "desk"), Record.load("kills/digits", "desk", folder / "undisturbed")
    times = ["seconds", "wall"]
    assert a.rows.drop(columns=times).equals(b.rows.drop(columns=times))
    assert a.notes == b.notes
    assert [without(run) for run in a.runs.values()] == [without(run) for run in b.runs.values()]


def without(run: dict) -> dict:
    return {name: value for name, value in run.items() if name != "environment"}
