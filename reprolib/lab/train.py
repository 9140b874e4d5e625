"""Train one run and keep its history."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pandas as pd
import torch

from reprolib.errors import SkippedStep
from reprolib.lab.methods import method, take_step
from reprolib.lab.run import Run
from reprolib.tasks import task

SMOOTHING = 0.99  # of the loss and step curves, per iteration, as in the paper's figures
POINTS = 100  # rows that a history keeps


@dataclass
class History:
    """What a run recorded.

    ``table`` has one row per logged iteration: ``epoch`` (fractions), ``iteration``, ``loss`` and ``step`` (bias-corrected
    exponential averages over iterations, the L² term included), ``seconds`` (process CPU time, or device time, of training
    alone), and at epoch ends ``test_loss`` and ``test_accuracy`` (of the validation split if the run holds one out).
    """

    run: Run
    table: pd.DataFrame
    first_losses: list[float]  # unsmoothed, of the first five iterations: enough to notice a change of behaviour
    skipped: int = 0
    diverged: bool = False
    wall_seconds: float = 0.0  # from the first line to the last, evaluation and loading included
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> dict[str, float]:
        """The last value of each column (NaN where the run diverged before its first value)."""
        return {name: _last(self.table[name]) for name in self.table.columns}


def train(run: Run, device: str | torch.device = "cpu") -> History:
    """Train ``run``; a run whose loss stops being finite ends there and is marked ``diverged``."""
    began = time.perf_counter()
    problem, optimizer, scheduler = _start(run, device)
    per_epoch, epochs = len(problem.batches), run.stop_after or run.epochs
    every = max(1, per_epoch * epochs // POINTS)
    loss, step = _Average(SMOOTHING), _Average(SMOOTHING)
    rows: list[dict[str, float]] = []
    first: list[float] = []
    diverged, seconds = False, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedStep)  # counted in the history instead
        for epoch in range(epochs):
            start = _clock(device)
            for i, (x, y) in enumerate(problem.batches.epoch(epoch)):
                report = take_step(optimizer, *problem.pair(x, y))
                iteration = epoch * per_epoch + i + 1
                value = float(report["loss"])
                if len(first) < 5:  # enough to notice a change of behaviour
                    first.append(value)
                loss.add(value)
                step.add(float(report["step"]))
                diverged = not math.isfinite(value)
                last = i == per_epoch - 1
                if diverged or last or iteration % every == 0:
                    seconds += _clock(device) - start
                    row = {
                        "epoch": iteration / per_epoch,
                        "iteration": iteration,
                        "loss": loss.value,
                        "step": step.value,
                    }
                    row["seconds"] = seconds
                    if last:
                        row |= {f"test_{k}": v for k, v in problem.evaluate().items()}
                    rows.append(row)
                    start = _clock(device)
                if diverged:
                    break
            if diverged:
                break
            scheduler.step()
    columns = ["epoch", "iteration", "loss", "step", "seconds", "test_loss", "test_accuracy"]
    table = pd.DataFrame(rows).reindex(columns=columns)
    wall = time.perf_counter() - began
    return History(run, table, first, getattr(optimizer, "skipped", 0), diverged, wall)


def first_losses(run: Run, device: str | torch.device = "cpu", *, steps: int = 5, download: bool = True) -> list[float]:
    """The unsmoothed losses of the first steps of ``run``, as its history keeps them."""
    problem, optimizer, _ = _start(run, device, download=download)
    batches = islice(problem.batches.epoch(0), steps)
    return [float(take_step(optimizer, *problem.pair(x, y))["loss"]) for x, y in batches]


def _start(run: Run, device: str | torch.device, *, download: bool = True):
    """The problem, optimizer and schedule of a run at its first step."""
    problem = task(run.task).build(
        run.seed,
        batch_size=run.batch_size,
        device=device,
        dtype=getattr(torch, run.dtype),
        train_size=run.train_size,
        held_out=run.held_out,
        download=download,
    )
    torch.manual_seed(run.seed)  # for networks that draw random numbers (dropout)
    optimizer, scheduler = method(run.method).build(list(problem.net.parameters()), run.epochs, **dict(run.options))
    return problem, optimizer, scheduler


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


def _clock(device: str | torch.device) -> float:
    """Seconds of process CPU time; on a GPU, of wall time after the device has caught up."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def _last(column: pd.Series) -> float:
    known = column.dropna()
    return float(known.iloc[-1]) if len(known) else math.nan
