"""The campaign's list: what it may say, what a campaign takes of it, and what it tells about itself."""

from __future__ import annotations

import re

import pytest
from filelock import FileLock

from reprolib import experiments as registry
from reprolib.errors import InvalidInput, RecordError, UnknownName
from reprolib.experiments import experiments, plan, queue, scales
from reprolib.experiments.queue import Entry, chosen, listing
from reprolib.lab import Run, execute
from reprolib.lab.store import Store
from reprolib.records import Record
from reprolib.records.claims import claims

GOOD = """
- {experiment: red/cifar10, scale: desk, hours: 2, decides: something}
- {experiment: red/momentum, scale: paper, device: cuda, decides: another thing}
- {experiment: red/cifar10, scale: paper, device: cuda, decides: more}
"""
RUNS = [Run.of("sgd", seed=s, options={"lr": 0.1}, task="digits-classifier", batch_size=64, epochs=1) for s in range(2)]


@pytest.fixture
def listed(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_RECORDS", str(tmp_path / "records"))

    def write(text: str):
        path = tmp_path / "queue.yaml"
        path.write_text(text)
        return path

    return write


# ---- the committed list


def test_the_list_names_experiments_and_scales_that_there_are():
    known = experiments()
    entries = [(entry.experiment, entry.scale) for entry in queue.queue()]
    assert [entry for entry in entries if entry[0] not in known or entry[1] not in scales(entry[0])] == []


def test_the_list_begins_with_what_two_cores_can_do():
    entries = queue.queue()
    devices = [entry.device for entry in entries]
    assert devices == sorted(devices) and devices[0] == "cpu"
    assert (entries[0].experiment, entries[0].scale) == ("red/mnist", "paper")
    assert all(entry.hours for entry in entries if entry.device == "cpu")


def test_what_the_list_decides_are_claims_that_there_are():
    known = claims()
    named = [id for entry in queue.queue() for id in re.findall(r"\bred-[a-z]+\d+\b", entry.decides)]
    assert named and set(named) <= set(known)


# ---- reading


def test_entries_come_in_the_order_of_the_file(listed):
    entries = queue.queue(listed(GOOD))
    assert [str(entry) for entry in entries] == ["red/cifar10 desk", "red/momentum paper", "red/cifar10 paper"]
    assert entries[0] == Entry("red/cifar10", "desk", "something", 2, "cpu")
    assert entries[1].hours is None and entries[1].device == "cuda"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "queue.yaml is no list of entries"),
        ("- red/cifar10", "entry 1 of queue.yaml has no fields: it needs experiment, scale, decides"),
        ("- {experiment: red/cifar10, decides: x}", r"entry 1 of queue.yaml \(red/cifar10\) has no scale"),
        ("- {experiment: red/cifar10, scale: desk}", "has no decides"),
        ("- {experiment: a/b, scale: dask, decides: x}", "unknown scale 'dask'.*did you mean 'desk'"),
        ("- {experiment: a/b, scale: desk, decides: x, hour: 3}", "unknown field.*'hour'.*did you mean 'hours'"),
        ("- {experiment: a/b, scale: desk, decides: x, device: gpu}", "unknown device.*'gpu'"),
        ("- {experiment: a/b, scale: desk, decides: x, hours: long}", "hours = 'long', give a positive number"),
        ("- {experiment: a/b, scale: desk, decides: x, hours: 0}", "hours = 0"),
        ("- {experiment: a/b, scale: desk, decides: x, hours: .nan}", "hours = nan"),
        ("- {experiment: a/b, scale: desk, decides: x, hours: yes}", "hours = True"),
        ("- {experiment: a/b, scale: desk, decides: 3}", "decides = 3, write a text"),
        ("- {experiment: '', scale: desk, decides: x}", "experiment = ''"),
        ("- {experiment: a/b, scale: desk, scale: paper, decides: x}", "'scale' comes twice"),
        (GOOD + "- {experiment: red/cifar10, scale: desk, decides: x}", "red/cifar10 desk comes twice"),
    ],
)
def test_a_list_with_a_mistake_is_refused(listed, text, message):
    with pytest.raises(InvalidInput, match=message):
        queue.queue(listed(text))


def test_no_list(listed, tmp_path):
    with pytest.raises(RecordError, match="name experiments with --only"):
        queue.queue(tmp_path / "none.yaml")
    with pytest.raises(RecordError, match="is no YAML"):
        queue.queue(listed("- {"))


# ---- what a campaign takes of it


def names(entries):
    return [str(entry) for entry in entries]


def test_a_campaign_takes_what_is_for_its_device(listed):
    path = listed(GOOD)
    mine, others = chosen([], "cpu", path)
    assert names(mine) == ["red/cifar10 desk"] and names(others) == ["red/momentum paper", "red/cifar10 paper"]
    mine, others = chosen([], "cuda:1", path)
    assert names(mine) == ["red/momentum paper", "red/cifar10 paper"] and names(others) == ["red/cifar10 desk"]
    assert len(chosen([], None, path)[0]) == 3


def test_it_may_be_told_what_to_take(listed, tmp_path):
    path = listed(GOOD)
    assert names(chosen(["red/cifar10"], "cpu", path)[0]) == ["red/cifar10 desk"]
    assert names(chosen(["red/cifar10"], None, path)[0]) == ["red/cifar10 desk", "red/cifar10 paper"]
    both = ["red/momentum:smoke", "red/cifar10", "red/momentum:smoke"]
    assert names(chosen(both, "cpu", path)[0]) == ["red/momentum smoke", "red/cifar10 desk"]
    assert names(chosen(["red/cifar10:smoke"], "cpu", tmp_path / "none.yaml")[0]) == ["red/cifar10 smoke"]


@pytest.mark.parametrize(
    ("only", "error", "message"),
    [
        ("red/cifar11", UnknownName, "did you mean 'red/cifar10'"),
        ("red/cifar10:papre", UnknownName, "did you mean 'paper'"),
        ("red/momentum", InvalidInput, "no red/momentum, only for cuda: give a scale as well, red/momentum:SCALE"),
        ("red/autoencoder", InvalidInput, "the queue has no red/autoencoder: give a scale"),
    ],
)
def test_what_it_cannot_take_is_refused(listed, only, error, message):
    with pytest.raises(error, match=message):
        chosen([only], "cpu", listed(GOOD))


def test_an_experiment_says_which_scales_it_has(monkeypatch):
    class small:
        @staticmethod
        def plan(scale):
            yield [{"smoke": RUNS[0], "night": RUNS[1]}[scale]]

    class wrong(small):
        @staticmethod
        def plan(scale):
            yield [{}["another key"]]

    monkeypatch.setattr(registry, "experiments", lambda: {"a/small": small, "a/wrong": wrong})
    assert scales("a/small") == ["smoke", "night"]
    with pytest.raises(InvalidInput, match="a/small has no scale paper: use one of smoke, night"):
        plan("a/small", "paper")
    with pytest.raises(KeyError, match="another key"):
        plan("a/wrong", "smoke")


def test_every_experiment_has_a_smoke_scale():
    assert all("smoke" in scales(name) for name in experiments())


# ---- what it tells


def test_the_listing_says_what_is_done_what_is_under_way_and_what_is_left(listed, tmp_path, monkeypatch):
    class two:
        @staticmethod
        def plan(scale):
            return (yield RUNS), {}

    monkeypatch.setattr(registry, "experiments", lambda: {"a/two": two})
    store = Store(tmp_path / "runs")
    entries = [
        Entry("a/two", "desk", "a question", 2.0),
        Entry("a/two", "paper", hours=1.5),
        Entry("a/three", "desk", hours=1.0),
        Entry("a/two", "night", device="cuda"),
    ]
    first, question, *rest = listing(entries, store)
    assert first.split(maxsplit=6) == [
        "a/two",
        "desk",
        "cpu",
        "2.0",
        "h",
        "left",
        "0 runs are done, 2 could be done now",
    ]
    assert question == "    a question"
    assert rest[1].endswith("unknown experiment 'a/three'")
    assert rest[-2:] == ["left for cpu: 4.5 process hours", "left for cuda: 0.0 process hours and what nobody knows"]
    assert not store.folder.exists()

    histories = execute(RUNS[:1], keep=store.folder)
    with FileLock(store.folder / f"{RUNS[1].key}.lock"):
        assert "1 runs are done, 1 could be done now, 1 of them under way" in listing(entries, store)[0]
    assert "under way" not in listing(entries, store)[0]
    Record.of("a/two", "desk", histories + execute(RUNS[1:])).save()
    lines = listing(entries, store)
    assert "0.0 h left  done: 2 runs, " in lines[0] and "done" not in lines[2].partition("left")[0]
    assert lines[-2] == "left for cpu: 2.5 process hours"
