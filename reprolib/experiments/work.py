"""Working down a list of experiments: whoever can train a run gets the first that can be trained now.

An experiment's next runs may depend on its earlier ones; while there are fewer of them than trainers, the next experiment
begins. One that cannot go on is passed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reprolib.errors import RecordError
from reprolib.experiments import plan
from reprolib.experiments.package import portable
from reprolib.experiments.queue import Entry
from reprolib.lab.execute import line
from reprolib.lab.files import written
from reprolib.lab.run import Run
from reprolib.lab.store import Store
from reprolib.lab.train import History
from reprolib.lab.workers import Ended, Here, WorkerKilled, Workers, told
from reprolib.records.record import Record

TRIES = 5  # of a run whose workers are killed before they write another checkpoint


class Job:
    """An entry that is worked on: its plan, and the runs that it waits for."""

    def __init__(self, entry: Entry, *, carried: bool = False):
        self.entry, self._carried = entry, carried
        self._plan = plan(entry.experiment, entry.scale)
        self._all: set[tuple[str, bool]] = set()
        self.asked: list[Run] = []
        self.result: Any = None
        self._advance(None)

    def proceed(self, known: Mapping[tuple[str, bool], History]) -> bool:
        """Go on with the plan if everything that it waits for is known; whether that was so."""
        if self.result is not None or any(_id(run) not in known for run in self.asked):
            return False
        self._advance([known[_id(run)] for run in self.asked])
        return True

    def count(self, known: Mapping[tuple[str, bool], History]) -> str:
        """How many of the runs that were asked for so far are known."""
        return f"{sum(id in known for id in self._all)}/{len(self._all)}"

    def _advance(self, histories: list[History] | None) -> None:
        try:
            asked = next(self._plan) if histories is None else self._plan.send(histories)
            self.asked = [portable(run) for run in asked] if self._carried else list(asked)
            self._all.update(map(_id, self.asked))
        except StopIteration as end:
            self.asked, self.result = [], end.value


class Work:
    """The entries of a campaign, what is known of their runs, and which of these are being trained."""

    def __init__(self, entries: Sequence[Entry], store: Store, say: Callable[[str], None], *, recording: bool):
        self.store, self.say, self.recording = store, say, recording
        self.passed: list[Entry] = []
        self._coming = list(entries)
        self._jobs: list[Job] = []
        self._known: dict[tuple[str, bool], History] = {}
        self._trained: set[str] = set()
        self._failed: dict[str, Exception] = {}
        self._killed: dict[str, list[int]] = {}  # how far the checkpoint was each time

    def done(self, trainers: Here | Workers, end: float) -> bool:
        """Have everything trained that is missing, until ``end``; whether that was all."""
        while True:
            while trainers.idle and time.monotonic() < end and (run := self._next()):
                self._trained.add(run.key)
                trainers.start(run, end - time.monotonic())
            if not self._trained:
                return self._next() is None
            ended = trainers.wait()
            self._trained.remove(ended.run.key)
            self._take(ended)
            for job in list(self._jobs):
                self._look(job)

    def _next(self) -> Run | None:
        """The first run that nobody trains, in the order of the entries; an entry begins when it is reached."""
        for job in self._jobs:
            if run := self._missing(job):
                return run
        while self._coming:
            begun = self._begin(self._coming.pop(0))
            if begun and (run := self._missing(begun)):
                return run
        return None

    def _missing(self, job: Job) -> Run | None:
        waiting = (run for run in job.asked if _id(run) not in self._known and run.key not in self._trained)
        return next(waiting, None)

    def _begin(self, entry: Entry) -> Job | None:
        """The job of an entry, if there is anything left to do of it."""
        try:
            if record := entry.record:
                self.say(f"{entry}: its record is there, with {len(record.runs)} runs")
                return None
            job = Job(entry, carried=not self.recording)
        except Exception as error:
            self._pass(entry, error)
            return None
        self._jobs.append(job)
        self._look(job)
        if job not in self._jobs:
            return None
        self.say(f"{entry}: {job.count(self._known)} runs are here")
        return job

    def _take(self, ended: Ended) -> None:
        """Say how a run ended, and remember it if it cannot be trained."""
        run, error = ended.run, ended.error
        if isinstance(error, WorkerKilled) and self._deserves_another(run):
            self.say(f"{run.key}: {error}; it goes on from its checkpoint")
        elif error:
            self._failed[run.key] = error
        elif ended.finished:
            history = self.store.read(run)
            if history is None:
                self._failed[run.key] = RecordError(f"run {run.key} is finished, but is not in {self.store.folder}")
                return
            self._known[_id(run)] = history
            of = [f"{job.entry} [{job.count(self._known)}]" for job in self._jobs if run in job.asked]
            self.say(" ".join([*of, line(history)]))

    def _deserves_another(self, run: Run) -> bool:
        """Whether a run whose worker was killed has come further lately than the last few times."""
        kills = self._killed.setdefault(run.key, [])
        kills.append(written(self.store.checkpoint(run)) or 0)
        return len(kills) < TRIES or len(set(kills[-TRIES:])) > 1

    def _look(self, job: Job) -> None:
        """Bring a job as far as what is known allows; if that is its end, write the record."""
        try:
            while job.result is None:
                for run in job.asked:
                    if error := self._failed.get(run.key):
                        raise error
                    if _id(run) not in self._known and (history := self.store.read(run, self.say)):
                        self._known[_id(run)] = history
                if not job.proceed(self._known):
                    return
            histories, notes = job.result
            record = Record.of(job.entry.experiment, job.entry.scale, histories, notes)
            self.say(f"{job.entry}: complete" + (f", wrote {record.save()}" if self.recording else ""))
        except Exception as error:
            self._pass(job.entry, error)
        self._jobs.remove(job)

    def _pass(self, entry: Entry, error: Exception) -> None:
        self.say(f"{entry} is passed over: {told(error)}")
        self.passed.append(entry)


def _id(run: Run) -> tuple[str, bool]:
    """What the store tells apart: a run, with its last weights or without."""
    return run.key, run.keeps_end
