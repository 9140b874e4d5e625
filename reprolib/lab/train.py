"""Train one run: epoch by epoch, from any checkpoint on, and keep its history."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pandas as pd
import torch

from reprolib.errors import DataError, InvalidInput, ReprolibError, SkippedStep
from reprolib.lab.files import replaced
from reprolib.lab.methods import Step, evaluating, further_data, method, take_step
from reprolib.lab.price import price
from reprolib.lab.run import Run
from reprolib.tasks import task
from reprolib.tasks.task import Problem

SMOOTHING = 0.99  # of the loss and step curves, per iteration, as in RED's figures
POINTS = 100  # rows that a history keeps
FIRST = 5  # unsmoothed losses that it keeps: enough to notice a change of behaviour
COLUMNS = [
    "epoch",
    "iteration",
    "loss",
    "step",
    "gradients",
    "seconds",
    "wall",
    "epoch_loss",
    "epoch_std",
    "test_loss",
    "test_accuracy",
]

FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"
FAILURES = (ReprolibError, torch.OutOfMemoryError, torch.linalg.LinAlgError)  # the run's own; all others are ours


@dataclass
class History:
    """What a run recorded.

    ``table`` has one row per logged iteration: ``epoch`` (fractions), ``iteration``, ``loss`` and ``step`` (bias-corrected
    exponential averages over iterations, the L² term included), ``gradients`` (matrix products so far, in gradients of a
    batch), ``seconds`` (process CPU time, or device time, of training alone; both spread evenly within an epoch), ``wall``
    (seconds since the start, evaluation and loading included), at epoch ends ``epoch_loss`` and ``epoch_std`` (mean and
    standard deviation of the epoch's losses, not smoothed), ``test_loss`` and ``test_accuracy`` (of the validation split if
    the run holds one out), the method's own traces, as they were in that iteration, and at epoch
    ends its means over the epoch. ``end`` has the last weights (on the CPU) of a run that ``keeps_end``.
    """

    run: Run
    table: pd.DataFrame
    first_losses: list[float]
    status: str = FINISHED
    reason: str = ""  # why it failed
    skipped: int = 0  # steps that changed nothing
    environment: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] | None = None

    @property
    def diverged(self) -> bool:
        """Whether the loss stopped being finite."""
        return self.status == DIVERGED

    @property
    def final(self) -> dict[str, float]:
        """The last value of each column (NaN where the run ended before its first value)."""
        return {name: _last(self.table[name]) for name in self.table.columns}

    @property
    def last_finite_loss(self) -> float | None:
        """The smoothed loss of the last row in which it is finite."""
        finite = [x for x in self.table["loss"] if math.isfinite(x)]
        return finite[-1] if finite else None


class Training:
    """A run under way. After each :meth:`advance` it stands at the end of an epoch, where it can be saved and restored.

    Within an epoch nothing waits for the device: losses and steps stay there until it ends.
    ``problem`` is what :func:`problem_of` built for the run, where somebody has it; it is trained. Without a ``priced`` step
    there is no history, only :meth:`first_losses`.
    """

    def __init__(
        self,
        run: Run,
        device: str | torch.device = "cpu",
        *,
        download: bool = True,
        problem: Problem | None = None,
        priced: bool = True,
    ):
        self.began = time.perf_counter()
        self.run, self.device = run, torch.device(device)
        self.problem = problem or problem_of(run, device, download=download)
        torch.manual_seed(run.seed)  # for networks that draw random numbers (dropout)
        self.method = method(run.method)
        self.optimizer, self.scheduler = self.method.build(
            list(self.problem.net.parameters()), run.epochs, **dict(run.options)
        )
        self.epochs, self.per_epoch = run.stop_after or run.epochs, len(self.problem.batches)
        self.log = Log(self.per_epoch, self.epochs, self.method.traces, self.method.means)
        if priced:
            self.price = price(run, self.problem)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.log.epoch >= self.epochs or self.log.status != FINISHED

    def advance(self) -> None:
        """Train one epoch and evaluate."""
        reports: list[Step] = []
        counts, start = Counter(getattr(self.optimizer, "counts", ())), clock(self.device)
        done = self.log.epoch * self.per_epoch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkippedStep)  # counted in the history instead
            for x, y in self.problem.batches.epoch(self.log.epoch):
                reports.append(self.step(done + len(reports), x, y))
                if self.device.type == "cpu" and not math.isfinite(reports[-1]["loss"]):
                    break  # elsewhere looking would cost a wait, and the end of the epoch shows it too
        seconds = clock(self.device) - start
        counts = Counter(getattr(self.optimizer, "counts", ())) - counts
        values = {name: self._read([report[name] for report in reports]) for name in reports[0]}
        wall = lambda: time.perf_counter() - self.began  # noqa: E731
        self.log.add(values, seconds, self.price.of(len(reports), counts), wall, self._evaluate)
        self.scheduler.step()

    def step(self, number: int, x: torch.Tensor, y: torch.Tensor) -> Step:
        """Step number ``number``, on a batch; no history knows of it."""
        further = further_data(self.optimizer, self.problem, number)
        return take_step(self.optimizer, *self.problem.pair(x, y), **further)

    def first_losses(self, before: Callable[[], None] = lambda: None) -> list[float]:
        """The unsmoothed losses of the first steps, as a history keeps them; ``before`` is called before each."""
        losses: list[float] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkippedStep)
            for number, (x, y) in enumerate(islice(self.problem.batches.epoch(0), FIRST)):
                before()
                losses.append(float(self.step(number, x, y)["loss"]))
                if not math.isfinite(losses[-1]):
                    break
        return losses

    def history(self) -> History:
        """What has been recorded so far."""
        skipped = int(getattr(self.optimizer, "skipped", 0))
        end = (
            {name: value.cpu() for name, value in self.problem.net.state_dict().items()} if self.run.keeps_end else None
        )
        made = self.environment
        return History(self.run, self.log.table, self.log.first, self.log.status, "", skipped, made, end)

    @property
    def environment(self) -> dict[str, Any]:
        """What it is trained on, for the environment of its history: checksums of the data, if there are files."""
        return {"data": dict(self.problem.files)} if self.problem.files else {}

    def _evaluate(self) -> dict[str, float]:
        with evaluating(self.optimizer):
            return self.problem.evaluate()

    def _read(self, values: list[torch.Tensor]) -> list[float]:
        """Numbers that may be on the device, fetched at once."""
        return torch.stack([v.to(self.device, torch.float64) for v in values]).tolist()

    # ---- checkpoints

    def save(self, path: Path) -> None:
        """Write everything that the rest of the run depends on; the file is whole or not there."""
        state = {
            "key": self.run.key,
            "net": self.problem.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "skipped": int(getattr(self.optimizer, "skipped", 0)),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "log": self.log.state(time.perf_counter() - self.began),
        }
        with replaced(path) as partial:
            torch.save(state, partial)

    def restore(self, path: Path) -> bool:
        """Continue from a checkpoint; ``False``, and nothing happens, if there is none of this run that can be read."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)  # data only: no code is run
        except Exception:  # an unpickler that meets other bytes raises whatever they lead it to
            return False
        if state.get("key") != self.run.key:
            return False
        self.problem.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if hasattr(self.optimizer, "skipped"):
            self.optimizer.skipped = state["skipped"]
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        self.began -= self.log.restore(state["log"])
        return True


class Log:
    """The rows of a history, made from what an epoch brings: every so many iterations, and at its end."""

    def __init__(self, per_epoch: int, epochs: int, traces: Sequence[str] = (), means: Sequence[str] = ()):
        self.per_epoch, self.traces, self.means = per_epoch, list(traces), list(means)
        self.every = max(1, per_epoch * epochs // POINTS)
        self.epoch, self.seconds, self.gradients, self.status = 0, 0.0, 0.0, FINISHED
        self.loss, self.step = _Average(SMOOTHING), _Average(SMOOTHING)
        self.rows: list[dict[str, float]] = []
        self.first: list[float] = []

    def add(
        self,
        values: dict[str, list[float]],
        seconds: float,
        gradients: float,
        wall: Callable[[], float],
        evaluate: Callable[[], dict[str, float]],
    ) -> None:
        """An epoch: what its steps reported, its time and its cost; ``evaluate`` is called if it went well."""
        done, losses = self.epoch * self.per_epoch, values["loss"]
        if self.epoch == 0:  # later ones depend on the schedule, too
            self.first = losses[:FIRST]
        for i, (loss, step) in enumerate(zip(losses, values["step"], strict=True), start=1):
            self.loss.add(loss)
            self.step.add(step)
            if not math.isfinite(loss):
                self.status = DIVERGED
            last = i == self.per_epoch
            if last or self.status == DIVERGED or (done + i) % self.every == 0:
                row = {"epoch": (done + i) / self.per_epoch, "iteration": done + i}
                row |= {"loss": self.loss.value, "step": self.step.value}
                row |= {"gradients": self.gradients + gradients * i / len(losses)}
                row |= {"seconds": self.seconds + seconds * i / len(losses), "wall": wall()}
                row |= {name: values[name][i - 1] for name in self.traces}
                if last:
                    row |= {"epoch_loss": fmean(losses), "epoch_std": pstdev(losses)}
                    row |= {name: fmean(values[name]) for name in self.means}
                if last and self.status == FINISHED:
                    row |= {f"test_{k}": v for k, v in evaluate().items()}
                    row["wall"] = wall()
                self.rows.append(row)
            if self.status == DIVERGED:
                break
        self.seconds += seconds
        self.gradients += gradients
        self.epoch += 1

    @property
    def table(self) -> pd.DataFrame:
        """The rows as :class:`History` has them."""
        return pd.DataFrame(self.rows).reindex(columns=COLUMNS + self.traces + self.means)

    def state(self, wall: float) -> dict[str, Any]:
        """All of it as plain data, with the seconds since the start."""
        averages = [(a.total, a.weight) for a in (self.loss, self.step)]
        names = ("epoch", "seconds", "gradients", "status", "rows", "first")
        return {name: getattr(self, name) for name in names} | {"averages": averages, "wall": wall}

    def restore(self, state: dict[str, Any]) -> float:
        """Take :meth:`state` up again; returns its seconds."""
        for name in ("epoch", "seconds", "gradients", "status", "rows", "first"):
            setattr(self, name, state[name])
        for average, (total, weight) in zip((self.loss, self.step), state["averages"], strict=True):
            average.total, average.weight = total, weight
        return state["wall"]


def train(
    run: Run,
    device: str | torch.device = "cpu",
    *,
    checkpoint: Path | None = None,
    every: float = 30.0,
    watch: Callable[[Log], None] = lambda log: None,
    deadline: Callable[[], bool] = lambda: False,
    download: bool = True,
) -> History | None:
    """Train ``run``; a run whose loss stops being finite ends there, one that raises for its own reasons has failed.

    Args:
        run: what to train.
        device: where.
        checkpoint: file to continue from, and to write at ends of epochs.
        every: seconds between two checkpoints, at least.
        watch: is shown the log after each epoch.
        deadline: asked after each epoch whether to stop there; then a checkpoint is written and ``None`` returned.
        download: fetch the data set if it is not here.
    """
    training = None
    try:
        training = Training(run, device, download=download)
        if checkpoint:
            training.restore(checkpoint)
        saved = time.perf_counter()
        while not training.over:
            if deadline():
                if checkpoint:
                    training.save(checkpoint)
                return None
            training.advance()
            watch(training.log)
            if checkpoint and not training.over and time.perf_counter() - saved >= every:
                training.save(checkpoint)
                saved = time.perf_counter()
        return training.history()
    except (InvalidInput, DataError):
        raise  # of the caller's making
    except FAILURES as error:
        table = training.log.table if training else pd.DataFrame(columns=COLUMNS)
        first, made = (training.log.first, training.environment) if training else ([], {})
        return History(run, table, first, FAILED, f"{type(error).__name__}: {error}"[:300], environment=made)


def problem_of(run: Run, device: str | torch.device = "cpu", *, download: bool = True) -> Problem:
    """The task of ``run`` at its start."""
    return task(run.task).build(
        run.seed,
        batch_size=run.batch_size,
        device=device,
        dtype=getattr(torch, run.dtype),
        train_size=run.train_size,
        held_out=run.held_out,
        test_size=run.test_size,
        batch_seed=run.batch_seed,
        download=download,
    )


class _Average:
    """Exponential moving average with bias correction; infinities are kept, not averaged away."""

    def __init__(self, decay: float):
        self.decay, self.total, self.weight = decay, 0.0, 0.0

    def add(self, x: float) -> None:
        self.total = self.decay * self.total + (1 - self.decay) * x
        self.weight = self.decay * self.weight + (1 - self.decay)

    @property
    def value(self) -> float:
        return self.total / self.weight


def clock(device: torch.device) -> float:
    """Seconds of process CPU time; on a GPU, of wall time after the device has caught up."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def _last(column: pd.Series) -> float:
    known = column.dropna()
    return float(known.iloc[-1]) if len(known) else math.nan
